"""How long training takes to know its samples, and what that holds in memory: `ShardReader`, partners and an epoch's order.

    python benchmarks/startup.py [--samples 4000000] [--per-tar 10000] [--ranks 2] [--loaders 2]

Makes indexes of so many samples (keys of 32 characters, three of 20,000 entities) beside sparse files of the size that such
tars have. Then it starts ranks as a training does, each in a process of its own with loader processes that it forks, twice: the
first start finds nothing but the indexes, the second what the first has left in the machine's scratch folder. Memory is the
proportional share (PSS) of all these processes, so what several of them map counts once, less that of the same processes with
one tar; every page of what they hold was touched.
"""

import argparse
import hashlib
import os
import tempfile
import time
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np

from storage.tar_index import encode, fingerprint, index_path
from storage.tar_samples import Found, Told
from storage.tars import Member

IMAGE, TEXT, ABOUT = 20_000, 60, 1_000
ENTITIES = 20_000


def make(folder: Path, samples: int, per_tar: int) -> None:
    """Write the indexes and the sparse files."""
    rng = np.random.default_rng(0)
    for number, first in enumerate(range(0, samples, per_tar)):
        tar = folder / f"{number:05}.tar"
        count, at, found = min(per_tar, samples - first), 512, []
        for sample in range(first, first + count):
            places = []
            for size in (IMAGE, ABOUT, TEXT):
                places.append(Member("", at, size))
                at += 512 + -(-size // 512) * 512
            image, about, caption = places
            found.append(Found(hashlib.md5(str(sample).encode()).hexdigest(), image, caption, about))
        with tar.open("wb+") as file:
            file.truncate(at + 1024)
            probes = fingerprint(file.fileno(), at + 1024)
        drawn = (ENTITIES * rng.random((count, 3)) ** 3).astype(int).tolist()
        told = [Told([], [], [f"entity {entity}" for entity in row]) for row in drawn]
        index_path(tar).write_bytes(encode(found, told, at + 1024, probes))


def pss() -> int:
    """Bytes of this process, what is shared by its share."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("Pss:")).split()[1])


def touch(*arrays: np.ndarray) -> int:
    """Read every page."""
    return sum(int(array.view(np.uint8)[::4096].astype(np.int64).sum()) for array in arrays if array.size)


def rank(folder: Path, tars: int, loaders: int, begin: Barrier, all_there: Barrier, results: Any) -> None:
    """Reads the samples, and forks loaders, which hold the same."""
    from owseg.data import epoch_order
    from owseg.partners import Partners
    from owseg.shards import ShardReader

    begin.wait()
    began = time.perf_counter()
    reader = ShardReader(sorted(folder.glob("*.tar"))[:tars], entities=True)
    read = time.perf_counter() - began
    partners = Partners(reader.entities)
    order = epoch_order(len(reader), 0, 0)
    seconds = time.perf_counter() - began

    def hold() -> None:
        touch(reader.samples.keys, reader.samples.key_ends, reader.samples.tars, reader.samples.places, order)
        touch(reader.entities.flat, reader.entities.ends, partners.samples, partners.starts)
        all_there.wait()
        results.put((read, seconds, pss()))
        all_there.wait()

    children = [get_context("fork").Process(target=hold) for _ in range(loaders)]
    for child in children:
        child.start()
    hold()
    for child in children:
        child.join()


def start(folder: Path, tars: int, ranks: int, loaders: int) -> tuple[float, float, int]:
    """Seconds of the slowest rank until it has the samples, and all; and the bytes of all processes together."""
    context = get_context("spawn")
    begin, all_there, results = context.Barrier(ranks), context.Barrier(ranks * (1 + loaders)), context.Queue()
    given = (folder, tars, loaders, begin, all_there, results)
    processes = [context.Process(target=rank, args=given) for _ in range(ranks)]
    for process in processes:
        process.start()
    found = [results.get() for _ in range(ranks * (1 + loaders))]
    for process in processes:
        process.join()
    return max(read for read, _, _ in found), max(seconds for _, seconds, _ in found), sum(size for _, _, size in found)


def main() -> None:
    """Make the indexes, start twice, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4_000_000)
    parser.add_argument("--per-tar", type=int, default=10_000)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--loaders", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["TMPDIR"] = home
        folder = Path(home) / "tars"
        folder.mkdir()
        make(folder, args.samples, args.per_tar)
        tars = len(list(folder.glob("*.tar")))
        size = sum(path.stat().st_size for path in folder.glob("*.index"))
        print(f"{args.samples:,} samples in {tars} tars; indexes of {size / args.samples:.1f} bytes a sample")
        *_, least = start(folder, 1, args.ranks, args.loaders)
        for which in ("first start", "next start"):
            read, seconds, held = start(folder, tars, args.ranks, args.loaders)
            each = (held - least) / (args.samples - args.per_tar)
            print(
                f"{which}: samples {read:.1f} s, with partners and order {seconds:.1f} s; {each:.0f} bytes a sample "
                f"in {args.ranks} ranks with {args.loaders} loaders each"
            )


if __name__ == "__main__":
    main()
