"""Ranks of one torch.distributed group, each in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from helpers.paths import PYTHONPATH

SCRIPT = """
import os, sys
from importlib import import_module
from pathlib import Path
import torch
module, name, folder, *rest = sys.argv[1:]
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
getattr(import_module(module), name)(Path(folder), *rest)
torch.distributed.barrier()
torch.distributed.destroy_process_group()
sys.stdout.flush(), sys.stderr.flush()
os._exit(0)  # gloo's threads now and then abort an interpreter that takes itself down
"""


def start_ranks(work: Callable[..., None], folder: Path, ranks: int, port: int, *rest: str) -> list[subprocess.Popen[bytes]]:
    """A process a rank, which calls `work(folder, *rest)`: a function of a module of `helpers`, which the process imports."""
    group = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    plain = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH}
    return [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, work.__module__, work.__name__, str(folder), *rest],
            env={**os.environ, **group, **plain, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(ranks)
    ]


def wait_for_ranks(processes: list[subprocess.Popen[bytes]], timeout: float = 300.0) -> None:
    """Until all have ended well; where one has not, none goes on."""
    try:
        assert [process.wait(timeout) for process in processes] == [0] * len(processes)
    finally:
        for process in processes:
            process.kill()


def shard_all_parameters() -> None:
    """Make DeepSpeed's ZeRO 3 shard parameters as small as the tests', which it would leave whole."""
    import deepspeed

    initialize = deepspeed.initialize

    def shard_all(config, **rest):  # type: ignore[no-untyped-def]
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return initialize(config=config, **rest)

    deepspeed.initialize = shard_all


def save_into(out: Path) -> Callable[[int, Callable[[Path], None]], None]:
    """What `fit` calls at a checkpoint: all ranks save into a folder of the step."""

    def checkpoint(step: int, save: Callable[[Path], None]) -> None:
        (out / str(step)).mkdir(parents=True, exist_ok=True)
        save(out / str(step))
        torch.distributed.barrier()

    return checkpoint
