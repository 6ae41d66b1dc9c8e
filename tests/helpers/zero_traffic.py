"""What DeepSpeed's ZeRO exchanges in a step, in a process of its own: it keeps the collectives that it finds at its start."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from cluster.engine import DeepSpeedEngine
from helpers import tiny
from helpers.paths import REPO
from owseg.data import Batch
from owseg.fit import phase_groups


def exchange(stage: int, folder: Path) -> dict[str, int]:
    """Bytes of the second step of a tiny TCL on rank 0 of two, and its trained numbers."""
    sys.path.insert(0, str(REPO / "benchmarks"))
    from scaling import counted_traffic

    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    config = tiny.tcl_config()
    method = config.build(tiny.encoder(folder)).train()
    groups = phase_groups(method, config.phases, config.optim)[0]
    method.requires_grad_(False)
    trained = [parameter.requires_grad_() for group in groups for parameter in group.parameters.values()]
    captions = [f"a red wall number {number}" for number in range(4)]
    batch = Batch(torch.randn(4, 3, 32, 32), method.tokenize(captions), captions, [])
    with counted_traffic() as traffic:
        engine = DeepSpeedEngine(
            method, groups, config.optim, batch_per_worker=4, zero_stage=stage, bf16=False, device=torch.device("cpu")
        )
        engine.step(batch, 1e-3)
        before = asdict(traffic)
        engine.step(batch, 1e-3)
    step = {name: value - before[name] for name, value in asdict(traffic).items()}
    return step | {"trained": sum(parameter.numel() for parameter in trained)}


if __name__ == "__main__":
    print(json.dumps(exchange(int(sys.argv[1]), Path(sys.argv[2]))))
