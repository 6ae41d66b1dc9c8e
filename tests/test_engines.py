"""The twins agree: DeepSpeed takes the same steps as the plain engine over the change of phase, in real processes."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import tiny
import torch
from safetensors.torch import load_file

from owseg.fit import WEIGHTS

RANK = """
import sys
from pathlib import Path
import torch, torch.distributed as dist
sys.path.insert(0, sys.argv[2])
import tiny
import deepspeed
from cluster.engine import DeepSpeedEngine
from owseg.data import CaptionBatches, ShardReader, batches_from
from owseg.engine import TorchEngine
from owseg.fit import fit
folder = Path(sys.argv[1])
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
torch.set_num_threads(1)
initialize = deepspeed.initialize
def shard_all(config, **rest):  # ZeRO 3 would leave parameters as small as these whole
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return initialize(config=config, **rest)
deepspeed.initialize = shard_all
config = tiny.tcl_config(2, 2)
reader = ShardReader(sorted(folder.glob("*.tar")))
home = folder / f"rank{rank}"
home.mkdir()
batches = CaptionBatches(reader, tiny.encoder(home).tokenize, tiny.AUGMENT, normalisation=tiny.HALF, batch_size=8,
    seed=0, rank=rank, world_size=world)
def train(stage, out, resume=None):
    torch.manual_seed(0)
    method = config.build(tiny.encoder(home))
    def make(groups, optim):
        if stage == 0:
            return TorchEngine(method, groups, optim)
        return DeepSpeedEngine(method, groups, optim, batch_per_worker=8 // world, zero_stage=stage, bf16=False,
            device=torch.device("cpu"))
    def checkpoint(step, save):
        (out / str(step)).mkdir(parents=True, exist_ok=True)
        save(out / str(step))
        dist.barrier()
    fit(method, config.phases, config.optim, make, lambda span, step: batches_from(batches, step, span.stop, workers=0), seed=0,
        resume=resume, checkpoint_every=1, on_checkpoint=checkpoint)
for stage in map(int, sys.argv[3:]):
    out = folder / f"stage{stage}"
    train(stage, out / "whole")
    for step in (2, 3):
        train(stage, out / f"from{step}", resume=out / "whole" / str(step))
dist.destroy_process_group()
"""


def train(folder: Path, stages: list[int], world_size: int, port: int) -> None:
    """Train the tiny TCL over both phases (stage 0: the plain engine), and again from the middle checkpoints."""
    tiny.write_shards(folder)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(folder), str(Path(__file__).parent), *map(str, stages)],
            env={
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "DS_ACCELERATOR": "cpu",
                "OMP_NUM_THREADS": "1",
            },
        )
        for rank in range(world_size)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0] * world_size


def weights(folder: Path, stage: int, run: str) -> dict[str, torch.Tensor]:
    return load_file(folder / f"stage{stage}" / run / "4" / WEIGHTS)


def test_deepspeed_takes_the_plain_engines_steps(tmp_path: Path, free_port: Callable[[], int]) -> None:
    """Two steps in each phase on two ranks, with ZeRO 1, 2 and 3; and resumed at the change of phase and after it."""
    train(tmp_path, [0, 1, 2, 3], 2, free_port())

    plain = weights(tmp_path, 0, "whole")
    for step in (2, 3):
        for name, tensor in weights(tmp_path, 0, f"from{step}").items():
            torch.testing.assert_close(tensor, plain[name], rtol=0, atol=0)
    for stage in (1, 2, 3):
        sharded = weights(tmp_path, stage, "whole")
        assert sharded.keys() == plain.keys()
        for name, expected in plain.items():
            # Adam divides by the root of tiny squared gradients, so a difference in the last digit of a sum can show as 1e-5.
            torch.testing.assert_close(
                sharded[name], expected, rtol=1e-3, atol=2e-5, msg=lambda text, n=name, s=stage: f"ZeRO {s}, {n}: {text}"
            )
            for step in (2, 3):
                torch.testing.assert_close(weights(tmp_path, stage, f"from{step}")[name], sharded[name], rtol=0, atol=0)
