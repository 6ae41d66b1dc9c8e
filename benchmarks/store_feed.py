"""Images a second from an object store beside open_clip's loader on local files, and the first batch of a cold start.

    PYTHONPATH=.:benchmarks:tests python benchmarks/store_feed.py [--samples 2048] [--size 64] [--photo 256] [--workers 0 2]
        [--latency 0.1] [--rounds 3]

The store is an S3 server in a process of its own on this machine, behind a proxy that answers each request `latency` seconds
late in the second part. Shards, transform, tokenizer and processes are the same for both loaders, one after the other in each
round. Ours begins each round on an empty disk: its first batches come in ranges, then whole tars.
"""

import argparse
import multiprocessing as mp
import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from gpu_inputs import write_shards
from loader import BATCH, open_clips, pace
from open_clip import get_tokenizer

from helpers.s3 import CREDENTIALS, Fault, s3_server
from owseg.augmentation import AugmentConfig
from owseg.data import CaptionBatches, batches_from
from owseg.normalisation import Normalisation
from owseg.shards import ShardReader
from references.timm_transform import timm_transform
from storage.client import StorageConfig, Store
from storage.copies import attach, detach, workspace_of
from storage.indexes import write_index
from storage.tar_cache import tars_of
from storage.tar_index import index_path

URL = "s3://bucket/run"


def serve(latency: float, told: Connection) -> None:
    """Run a store until the other end hangs up."""
    with s3_server() as server:
        server.make_bucket("bucket")
        server.faults = lambda method, path, number: Fault(seconds=latency) if latency else None
        told.send(server.endpoint)
        told.poll(None)


@contextmanager
def store(shards: list[Path], latency: float) -> Iterator[str]:
    """The endpoint of a store that holds the shards and their indexes."""
    ours, theirs = mp.Pipe()
    process = mp.get_context("spawn").Process(target=serve, args=(latency, theirs), daemon=True)
    process.start()
    endpoint = ours.recv()
    bucket = Store(URL, StorageConfig(endpoint=endpoint))
    for shard in shards:
        write_index(shard, index_path(shard))
        for file in (shard, index_path(shard)):
            bucket.put(f"shards/{file.name}", file)
    try:
        yield endpoint
    finally:
        process.kill()


@contextmanager
def cold(endpoint: str, shards: list[Path]) -> Iterator[list[Path]]:
    """The shards as a machine with an empty disk knows them."""
    with tempfile.TemporaryDirectory() as scratch:
        workspace = workspace_of(URL, StorageConfig(endpoint=endpoint, scratch=scratch))
        attach(workspace)
        try:
            yield [workspace.root / "shards" / shard.name for shard in shards]
        finally:
            detach(workspace)


def ours(shards: list[Path], augment: AugmentConfig, tokenize: Any, workers: int, batch: int = BATCH) -> Iterable[Any]:
    """Batches of an epoch."""
    reader = ShardReader(shards, open_tars=tars_of(shards))
    batches = CaptionBatches(reader, tokenize, augment, normalisation=Normalisation(), batch_size=batch, seed=0)
    batches.prefetch(0)
    return batches_from(batches, 0, len(reader) // batch, workers=workers)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("samples", 2048), ("size", 64), ("photo", 256), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--latency", type=float, default=0.1)
    args = parser.parse_args()
    os.environ.update(CREDENTIALS)
    torch.set_num_threads(1)
    augment, tokenize = AugmentConfig(size=args.size), get_tokenizer("ViT-B-16")
    with tempfile.TemporaryDirectory() as home:
        shards = write_shards(Path(home) / "tars", args.samples, (args.photo, args.photo))
        transform = timm_transform(augment, Normalisation())
        with store(shards, 0.0) as endpoint:
            for workers in args.workers:
                rounds = []
                for _ in range(args.rounds):
                    theirs = pace(partial(open_clips, shards, transform, tokenize, args.samples, workers))
                    with cold(endpoint, shards) as paths:
                        rounds.append((pace(partial(ours, paths, augment, tokenize, workers)), theirs))
                ratios = [own.rate / theirs.rate for own, theirs in rounds]
                costs = [statistics.median(one.cost for one in some) for some in zip(*rounds, strict=True)]
                print(
                    f"{workers} loader processes, from a store: {statistics.median(ratios):.2f}x open_clip's from local files "
                    f"({min(ratios):.2f}..{max(ratios):.2f}); {costs[0]:.2f} ms of processor time an image, the server's not "
                    f"counted, against {costs[1]:.2f}",
                    flush=True,
                )
        with store(shards, args.latency) as endpoint:
            for workers in args.workers:
                first = [_first_batch(endpoint, shards, augment, tokenize, workers) for _ in range(args.rounds)]
                print(
                    f"{workers} loader processes, {args.latency:g} s until each answer: first batch of {BATCH} after "
                    f"{statistics.median(first):.2f} s ({min(first):.2f}..{max(first):.2f})",
                    flush=True,
                )


def _first_batch(endpoint: str, shards: list[Path], augment: AugmentConfig, tokenize: Any, workers: int) -> float:
    with cold(endpoint, shards) as paths:
        began = time.perf_counter()
        next(iter(ours(paths, augment, tokenize, workers)))
        return time.perf_counter() - began


if __name__ == "__main__":
    main()
