"""A rank's training of a tiny TCL on the plain engine (stage 0) and with DeepSpeed's ZeRO."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from cluster.engine import DeepSpeedEngine
from helpers import tiny
from helpers.ranks import save_into, shard_all_parameters
from owseg.augmentation import AugmentConfig
from owseg.data import Batch, CaptionBatches, batches_from
from owseg.engine import Engine, TorchEngine
from owseg.fit import fit
from owseg.optim import OptimConfig, ParameterGroup
from owseg.phases import ScheduledPhase
from owseg.shards import ShardReader

AUGMENT = AugmentConfig(size=32, rand_augment="rand-m9-mstd0.5-inc1", erase=0.5)
"""As random as it gets: ranks must agree on it."""
CROSSINGS = ("0:1:2", "0:3:3", "1:0:3", "1:3:1", "2:1:3", "3:2:3", "3:0:2")
"""Resumes, each as stage of the checkpoint : stage that resumes : step of the checkpoint. Step 2 is the change of phase."""


def train_stages(folder: Path, *stages: str) -> None:
    """Two steps in each phase for each stage, and again from the checkpoints after the second and the third.

    Once more with steps that are not finite: the first one's loss on the last rank, the third one's gradients on the first.
    """
    training = Training(folder)
    for stage in map(int, stages):
        out = folder / f"stage{stage}"
        training(stage, out / "whole")
        training(stage, out / "spoilt", bad=True)
        for step in (2, 3):
            training(stage, out / f"from{step}", resume=out / "whole" / str(step))


def cross(folder: Path, *crossings: str) -> None:
    """Resume from what another stage, or another number of ranks, left."""
    training = Training(folder)
    for crossing in crossings:
        before, after, step = crossing.split(":")
        out = folder / f"on{dist.get_world_size()}" / crossing.replace(":", "-")
        training(int(after), out, resume=folder / f"stage{before}" / "whole" / step)


class Training:
    """A rank's part of a training on shards that lie in a folder."""

    def __init__(self, folder: Path) -> None:
        shard_all_parameters()
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.home = folder / f"rank{self.rank}"
        self.home.mkdir(exist_ok=True)
        self.config = tiny.tcl_config(2, 2)
        self.batches = CaptionBatches(
            ShardReader(sorted(folder.glob("*.tar"))),
            tiny.encoder(self.home).tokenize,
            AUGMENT,
            normalisation=tiny.HALF,
            batch_size=8,
            seed=0,
            rank=self.rank,
            world_size=self.world,
        )

    def spoilt(self, span: ScheduledPhase, first: int) -> Iterator[Batch]:
        """Batches of which the first is NaN on the last rank, and the third infinite on the first."""
        numbered = zip(range(first, span.stop), batches_from(self.batches, first, span.stop, workers=0), strict=True)
        for step, batch in numbered:
            value = {(0, self.world - 1): math.nan, (2, 0): math.inf}.get((step, self.rank))
            yield batch if value is None else batch._replace(image=torch.full_like(batch.image, value))

    def __call__(self, stage: int, out: Path, resume: Path | None = None, *, bad: bool = False) -> None:
        torch.manual_seed(0)
        method = self.config.build(tiny.encoder(self.home))
        counts: list[float] = []

        def make(groups: Sequence[ParameterGroup], optim: OptimConfig) -> Engine:
            if stage == 0:
                return TorchEngine(method, groups, optim)
            own, cpu = 8 // self.world, torch.device("cpu")
            return DeepSpeedEngine(method, groups, optim, batch_per_worker=own, zero_stage=stage, bf16=False, device=cpu)

        fit(
            method,
            self.config.phases,
            self.config.optim,
            make,
            self.spoilt if bad else lambda span, step: batches_from(self.batches, step, span.stop, workers=0),
            seed=0,
            resume=resume,
            max_skipped=9,
            checkpoint_every=1,
            log_every=1,
            on_log=lambda step, losses, lr, watched: counts.append(watched["skipped_steps"]),
            on_checkpoint=save_into(out),
        )
        assert counts == ([1, 1, 2, 2] if bad else [0] * len(counts)), (self.rank, stage, counts)
