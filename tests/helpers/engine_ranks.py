"""A rank's training of a tiny TCL on the plain engine (stage 0) and with DeepSpeed's ZeRO."""

from pathlib import Path

import torch
import torch.distributed as dist

from cluster.engine import DeepSpeedEngine
from helpers import tiny
from helpers.ranks import save_into, shard_all_parameters
from owseg.data import CaptionBatches, batches_from
from owseg.engine import Engine, TorchEngine
from owseg.fit import fit
from owseg.optim import OptimConfig, ParameterGroup
from owseg.shards import ShardReader


def train_stages(folder: Path, *stages: str) -> None:
    """Two steps in each phase for each stage, and again from the checkpoints after the second and the third."""
    shard_all_parameters()
    rank, world = dist.get_rank(), dist.get_world_size()
    home = folder / f"rank{rank}"
    home.mkdir()
    config = tiny.tcl_config(2, 2)
    batches = CaptionBatches(
        ShardReader(sorted(folder.glob("*.tar"))),
        tiny.encoder(home).tokenize,
        tiny.AUGMENT,
        normalisation=tiny.HALF,
        batch_size=8,
        seed=0,
        rank=rank,
        world_size=world,
    )

    def train(stage: int, out: Path, resume: Path | None = None) -> None:
        torch.manual_seed(0)
        method = config.build(tiny.encoder(home))

        def make(groups: list[ParameterGroup], optim: OptimConfig) -> Engine:
            if stage == 0:
                return TorchEngine(method, groups, optim)
            cpu = torch.device("cpu")
            return DeepSpeedEngine(method, groups, optim, batch_per_worker=8 // world, zero_stage=stage, bf16=False, device=cpu)

        fit(
            method,
            config.phases,
            config.optim,
            make,
            lambda span, step: batches_from(batches, step, span.stop, workers=0),
            seed=0,
            resume=resume,
            checkpoint_every=1,
            on_checkpoint=save_into(out),
        )

    for stage in map(int, stages):
        out = folder / f"stage{stage}"
        train(stage, out / "whole")
        for step in (2, 3):
            train(stage, out / f"from{step}", resume=out / "whole" / str(step))
