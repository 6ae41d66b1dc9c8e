"""Batches of the tiny shards for ViL-Seg."""

from pathlib import Path

from helpers import tiny
from owseg.data import Batch, CaptionBatches
from owseg.methods.vilseg import VilSeg
from owseg.shards import ShardReader


def batch_of(method: VilSeg, shards: Path, step: int = 0, size: int = 8) -> Batch:
    reader = ShardReader(tiny.write_shards(shards) if not shards.exists() else sorted(shards.glob("*.tar")))
    drawn = CaptionBatches(
        reader,
        method.tokenize,
        method.config.augment,
        normalisation=tiny.HALF,
        batch_size=size,
        seed=0,
        views=method.views,
    )
    return drawn[step]
