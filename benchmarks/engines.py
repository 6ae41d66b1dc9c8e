"""DeepSpeed ZeRO-1 against the plain torch engine, side by side: seconds per TCL training step in two processes.

    python benchmarks/engines.py [ROUNDS]

Both engines train the miniature world's TCL on the same random batch, in alternating rounds of five steps. Prints the median of
each, the ratio, and its spread over rounds. Only time is measured here; tests/cluster/test_engine.py compares the results.
"""

import os
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cluster.engine import DeepSpeedEngine
from owseg.data import Batch
from owseg.encoders import EncoderConfig, build_encoder
from owseg.engine import Engine, TorchEngine
from owseg.fit import phase_groups
from owseg.methods.tcl import GROUNDER, TclConfig
from owseg.optim import OptimConfig
from owseg.phases import Phase

MODEL = Path(__file__).parents[1] / "configs" / "miniature_clip.json"
WORKERS, PER_WORKER, STEPS = 2, 32, 5


def build(kind: str, optim: OptimConfig) -> Engine:
    """A TCL of its own around a random CLIP, on the engine named."""
    torch.manual_seed(0)
    method = TclConfig(optim=optim).build(build_encoder(EncoderConfig(model=str(MODEL))))
    (groups,) = phase_groups(method, [Phase(steps=1, train=GROUNDER)], optim)
    if kind == "torch":
        return TorchEngine(method, groups, optim)
    return DeepSpeedEngine(
        method, groups, optim, batch_per_worker=PER_WORKER, zero_stage=1, bf16=False, device=torch.device("cpu")
    )


def worker(rank: int, rounds: int) -> None:
    """One rank: measures both engines in turn, rank 0 prints."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORKERS)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    optim = OptimConfig(batch_size=WORKERS * PER_WORKER, lr_batch=0)
    engines = {kind: build(kind, optim) for kind in ("torch", "deepspeed")}
    torch.manual_seed(rank)
    batch = Batch(torch.randn(PER_WORKER, 3, 64, 64), torch.randint(1, 4096, (PER_WORKER, 24)), [], [])
    seconds: dict[str, list[float]] = {kind: [] for kind in engines}
    for number in range(rounds + 1):
        for kind, engine in engines.items():
            dist.barrier()
            began = time.perf_counter()
            for _ in range(STEPS):
                engine.step(batch, 1e-4)
            if number:  # the first round warms up
                seconds[kind].append((time.perf_counter() - began) / STEPS)
    if rank == 0:
        ratios = [deepspeed / plain for plain, deepspeed in zip(seconds["torch"], seconds["deepspeed"], strict=True)]
        for kind, values in seconds.items():
            print(f"{kind:10} {statistics.median(values):.3f} s/step ({min(values):.3f} to {max(values):.3f})")
        print(
            f"deepspeed / torch: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f} over {rounds} rounds)"
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29511")
    mp.spawn(worker, args=(int(sys.argv[1]) if len(sys.argv) > 1 else 5,), nprocs=WORKERS)
