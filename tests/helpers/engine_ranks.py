"""A rank's training of a tiny TCL on the plain engine (stage 0) and with DeepSpeed's ZeRO."""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from cluster.engine import DeepSpeedEngine
from helpers import tiny
from helpers.ranks import save_into, shard_all_parameters
from owseg.data import Batch, CaptionBatches, batches_from
from owseg.engine import Engine, TorchEngine
from owseg.fit import fit
from owseg.optim import OptimConfig, ParameterGroup
from owseg.phases import ScheduledPhase
from owseg.shards import ShardReader


def train_stages(folder: Path, *stages: str) -> None:
    """Two steps in each phase for each stage, and again from the checkpoints after the second and the third.

    Once more with steps that are not finite: the first one's loss on the last rank, the third one's gradients on the first.
    """
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

    def spoilt(span: ScheduledPhase, first: int) -> Iterator[Batch]:
        for step, batch in zip(range(first, span.stop), batches_from(batches, first, span.stop, workers=0), strict=True):
            value = {(0, world - 1): math.nan, (2, 0): math.inf}.get((step, rank))
            yield batch if value is None else batch._replace(image=torch.full_like(batch.image, value))

    def train(stage: int, out: Path, resume: Path | None = None, *, bad: bool = False) -> None:
        torch.manual_seed(0)
        method = config.build(tiny.encoder(home))
        counts: list[float] = []

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
            spoilt if bad else lambda span, step: batches_from(batches, step, span.stop, workers=0),
            seed=0,
            resume=resume,
            max_skipped=9,
            checkpoint_every=1,
            log_every=1,
            on_log=lambda step, losses, lr, watched: counts.append(watched["skipped_steps"]),
            on_checkpoint=save_into(out),
        )
        assert counts == ([1, 1, 2, 2] if bad else [0] * len(counts)), (rank, stage, counts)

    for stage in map(int, stages):
        out = folder / f"stage{stage}"
        train(stage, out / "whole")
        train(stage, out / "spoilt", bad=True)
        for step in (2, 3):
            train(stage, out / f"from{step}", resume=out / "whole" / str(step))
