"""Images a second of our loader, of open_clip's and of plain webdataset, on the same shards, transform and processes.

    python benchmarks/loader.py [--samples 2048] [--size 224] [--photo 256] [--workers 0 2] [--rounds 3]

Shards of noisy pictures under real captions are written first, and lie in the page cache. One after another, each loader reads
an epoch, from nothing to the last batch, with the same timm transform and tokenizer; all of them in each round. Printed are the
medians over the rounds of images a second, of the ratio to open_clip's in the same round, with its least and most, and of
processor time of all processes for an image, which other work on the machine disturbs less. "ours, whole photos" decodes all
pixels, as the others do (`reduced_decoding`).
"""

import argparse
import gc
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import webdataset as wds
from gpu_inputs import write_shards
from open_clip import get_tokenizer
from open_clip_train import data as open_clip_data
from torch.utils.data import DataLoader

from owseg.augmentation import AugmentConfig
from owseg.costs import cpu_seconds
from owseg.data import CaptionBatches, batches_from
from owseg.normalisation import Normalisation
from owseg.shards import ShardReader
from references.timm_transform import timm_transform

BATCH = 64

# webdataset > 0.2.86 yields an empty end-of-shard sample, at which open_clip 3.3's loader stumbles with anybody's shards.
open_clip_data.tar_file_expander = partial(open_clip_data.tar_file_expander, eof_value=None)


def ours(shards: list[Path], augment: AugmentConfig, tokenize: Any, workers: int) -> Iterable[Any]:
    """Batches of an epoch."""
    reader = ShardReader(shards)
    batches = CaptionBatches(reader, tokenize, augment, normalisation=Normalisation(), batch_size=BATCH, seed=0)
    return batches_from(batches, 0, len(reader) // BATCH, workers=workers)


def open_clips(shards: list[Path], transform: Any, tokenize: Any, samples: int, workers: int) -> Iterable[Any]:
    """Batches of an epoch."""
    args = SimpleNamespace(
        train_data=f"{shards[0].parent}/{{{shards[0].stem}..{shards[-1].stem}}}.tar",
        train_num_samples=samples,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        seed=0,
        workers=workers,
        world_size=1,
        batch_size=BATCH,
    )
    found: Iterable[Any] = open_clip_data.get_wds_dataset(args, transform, True, tokenizer=tokenize).dataloader
    return found


def plain(shards: list[Path], transform: Any, tokenize: Any, workers: int) -> Iterable[Any]:
    """Batches of an epoch, as webdataset's own documentation reads them."""
    dataset = wds.WebDataset([str(shard) for shard in shards], shardshuffle=100, nodesplitter=None).shuffle(1000)
    dataset = dataset.decode("pilrgb").to_tuple("jpg", "txt").map_tuple(transform, lambda text: tokenize([text])[0])
    return DataLoader(dataset.batched(BATCH, partial=False), batch_size=None, num_workers=workers)


class Pace(NamedTuple):
    """How fast a loader is."""

    rate: float
    """Images a second, from making the loader to its last batch."""
    cost: float
    """Milliseconds of processor time for an image, loader processes included."""


def pace(make: Callable[[], Iterable[Any]]) -> Pace:
    """That of an epoch."""
    began, spent, images = time.perf_counter(), cpu_seconds(), 0
    for batch in make():
        images += len(batch[0])
    seconds = time.perf_counter() - began
    gc.collect()  # so that loader processes have ended, and count
    return Pace(images / seconds, 1e3 * (cpu_seconds() - spent) / images)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2048)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--photo", type=int, default=256)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    augment, tokenize = AugmentConfig(size=args.size), get_tokenizer("ViT-B-16")
    with tempfile.TemporaryDirectory() as home:
        shards = write_shards(Path(home) / "tars", args.samples, (args.photo, args.photo), args.samples // 8)
        transform, whole = timm_transform(augment, Normalisation()), replace(augment, reduced_decoding=False)
        for workers in args.workers:
            loaders: dict[str, Callable[[], Iterable[Any]]] = {
                "open_clip": partial(open_clips, shards, transform, tokenize, args.samples, workers),
                "webdataset": partial(plain, shards, transform, tokenize, workers),
                "ours": partial(ours, shards, augment, tokenize, workers),
                "ours, whole photos": partial(ours, shards, whole, tokenize, workers),
            }
            rounds = [{name: pace(make) for name, make in loaders.items()} for _ in range(args.rounds)]
            for name in loaders:
                ratios = sorted(round_[name].rate / round_["open_clip"].rate for round_ in rounds)
                print(
                    f"{workers} loader processes, {name}: {median(round_[name].rate for round_ in rounds):.0f} images/s, "
                    f"{median(ratios):.2f}x open_clip's ({ratios[0]:.2f}..{ratios[-1]:.2f}), "
                    f"{median(round_[name].cost for round_ in rounds):.2f} ms of processor time an image",
                    flush=True,
                )


if __name__ == "__main__":
    main()
