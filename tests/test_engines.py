"""The twins agree: DeepSpeed takes the same steps as the plain engine, in real processes."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch

RANK = """
import json, os, sys
from pathlib import Path
import torch, torch.distributed as dist
sys.path.insert(0, sys.argv[4])
import tiny
from cluster.engine import DeepSpeedEngine
from owseg.data import CaptionBatches, ShardReader, batches_from
from owseg.engine import TorchEngine
from owseg.fit import fit, learned_state
folder, kind, stage = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
torch.set_num_threads(1)
torch.manual_seed(0)
config = tiny.tcl_config(2, 2)
encoder = tiny.encoder(folder)
method = config.build(encoder)
reader = ShardReader(sorted(folder.glob("*.tar")))
batches = CaptionBatches(reader, encoder.tokenize, tiny.AUGMENT, mean=(.5,) * 3, std=(.5,) * 3, batch_size=8, seed=0,
    rank=rank, world_size=world)
def make(parameters):
    if kind == "torch":
        return TorchEngine(method, parameters, config.optim)
    return DeepSpeedEngine(method, parameters, config.optim, batch_per_worker=8 // world, zero_stage=stage, bf16=False,
        device=torch.device("cpu"))
saved = folder / f"{kind}-{world}"
def checkpoint(step, save):
    if step == 3:
        saved.mkdir(exist_ok=True)
        save(saved)
def train(resume):
    fit(method, config.phases, config.optim, make, lambda a, b: batches_from(batches, a, b, workers=0), seed=0, resume=resume,
        checkpoint_every=1, on_checkpoint=checkpoint)
    return {name: tensor.clone() for name, tensor in learned_state(method, config.phases).items()}
first = train(None)
dist.barrier()
again = train(saved)  # from step 3, in the second phase
if rank == 0:
    torch.save({"first": first, "again": again}, folder / f"{kind}-{stage}-{world}.pt")
dist.destroy_process_group()
"""


def run(folder: Path, kind: str, stage: int, world_size: int, port: int) -> dict[str, dict[str, torch.Tensor]]:
    """Train the tiny TCL over both phases with an engine; weights at the end, and at the end of a resumed run."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(folder), kind, str(stage), str(Path(__file__).parent)],
            env={
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
        )
        for rank in range(world_size)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0] * world_size
    result: dict[str, dict[str, torch.Tensor]] = torch.load(folder / f"{kind}-{stage}-{world_size}.pt", weights_only=True)
    return result


@pytest.mark.parametrize(("stage", "world_size"), [(1, 2), (2, 1)])
def test_deepspeed_takes_the_plain_engines_steps(
    tmp_path: Path, free_port: Callable[[], int], stage: int, world_size: int
) -> None:
    tiny.write_shards(tmp_path)
    plain = run(tmp_path, "torch", 0, world_size, free_port())
    sharded = run(tmp_path, "deepspeed", stage, world_size, free_port())

    for name, expected in plain["first"].items():
        # Adam divides by the root of tiny squared gradients, so a difference in the last digit of a sum can show as 1e-5.
        torch.testing.assert_close(
            sharded["first"][name], expected, rtol=1e-3, atol=2e-5, msg=lambda text, n=name: f"{n}: {text}"
        )
        torch.testing.assert_close(sharded["again"][name], sharded["first"][name], rtol=1e-3, atol=2e-5)
        torch.testing.assert_close(plain["again"][name], expected, rtol=0, atol=0)
