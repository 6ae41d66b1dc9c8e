"""Ray Data's own readers, `download` expression and checkpoints beside what the project has in their place.

    python benchmarks/ray_data.py LINKS.tsv --work DIR [--only parquet tars ...] [--rows 400000] [--number 4000] [--rounds 2]

LINKS.tsv is a table as captions.py makes it. Each pair does the same work on the same input and the same local Ray, in turns,
after a round that counts for nothing. Seconds are wall time without Ray's start; ratios are taken within a round.

    parquet     links and captions of parquet files cleaned, keyed and written: read_parquet, map_batches and write_parquet
                against the filter's reading pass, which also deals rows out to shards
    tars        captions of a WebDataset's tars: read_webdataset against the filter's reader
    download    images of the local server (benchmarks/image_server.py), bytes alone: the expression against the fetcher
    checkpoint  the first pair with and without CheckpointConfig, and what its resuming holds in memory
"""

import argparse
import asyncio
import io
import shutil
import statistics
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from image_server import serve_images

from cluster.data import run_on_ray
from cluster.session import SessionConfig, ensure_session
from filtering.captions.formats.source import SourceConfig
from filtering.captions.read_pass import ReadWork, point_at_parts
from filtering.captions.reader import parts_of, read_part
from filtering.cleaning import clean
from filtering.images.fetch import Fetcher
from filtering.images.fetch_config import FetchConfig
from filtering.schema import LINKS, key_of

FILES = 8
SAMPLES_PER_TAR = 2_000
IMAGE = bytes(20_000)
"""What stands for an image in a tar of which the captions alone are read."""

Job = Callable[[], str]
"""Does the work; returns a word on what came out."""


def compare(name: str, jobs: Mapping[str, Job], rounds: int, unit: str, number: int) -> None:
    """Run jobs in turns and print their rates, and the ratios to the first."""
    took: dict[str, list[float]] = {job: [] for job in jobs}
    told = {}
    for turn in range(rounds + 1):
        order = list(jobs) if turn % 2 else list(jobs)[::-1]
        for job in order:
            began = time.perf_counter()
            told[job] = jobs[job]()
            took[job].append(time.perf_counter() - began)
    first = next(iter(jobs))
    print(f"{name}:")
    for job, seconds in took.items():
        ratios = [one / other for one, other in zip(took[first][1:], seconds[1:], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(
            f"  {job}: {number / statistics.median(seconds[1:]):,.0f} {unit}/s, as fast as the first {spread}; {told[job]}",
            flush=True,
        )


# ---- links


def as_parquet(links: Path, rows: int, folder: Path) -> None:
    """The first rows of a table of links, in `FILES` parquet files."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with links.open(encoding="utf-8") as file:
        for number in range(FILES):
            fields = [line.rstrip("\n").split("\t") for line in islice(file, rows // FILES)]
            urls = [url or f"none {number} {row}" for row, (url, _) in enumerate(fields)]  # checkpoints want each but once
            pq.write_table(pa.table({"URL": urls, "TEXT": [text for _, text in fields]}), folder / f"{number}.parquet")


def keyed(table: pa.Table) -> pa.Table:
    """What the filter's reader does to rows."""
    urls = [url.strip() for url in table["URL"].to_pylist()]
    texts = list(map(clean, table["TEXT"].to_pylist()))
    return pa.table([list(map(key_of, urls, texts)), urls, texts], schema=LINKS)


def by_ray(folder: Path, out: Path) -> str:
    import ray.data

    shutil.rmtree(out, ignore_errors=True)
    found = ray.data.read_parquet(str(folder), columns=["URL", "TEXT"])
    found.map_batches(keyed, batch_format="pyarrow", num_cpus=0.5).write_parquet(str(out))
    return f"{sum(pq.read_metadata(file).num_rows for file in out.rglob('*.parquet')):,} rows"


def by_filter(folder: Path, out: Path) -> str:
    shutil.rmtree(out, ignore_errors=True)
    parts = point_at_parts(out / "parts", parts_of(SourceConfig(path=str(folder))))
    markers = run_on_ray(SessionConfig())(partial(ReadWork, 16), parts, out / "read", fingerprint="", label="read")
    return f"{sum(marker.counts['links'] for marker in markers):,} rows, dealt out to shards"


def with_checkpoint(folder: Path, out: Path, checkpoints: Path) -> str:
    """The pipeline of `by_ray` with checkpoints by key: first all of it, then again over what is finished."""
    import ray.data
    from ray.data.checkpoint import CheckpointConfig

    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(checkpoints, ignore_errors=True)
    context = ray.data.DataContext.get_current()
    for _ in range(2):
        context.checkpoint_config = CheckpointConfig("URL", str(checkpoints), delete_checkpoint_on_success=False)
        began = time.perf_counter()
        try:
            found = ray.data.read_parquet(str(folder), columns=["URL", "TEXT"])
            found.map_batches(lambda table: table, batch_format="pyarrow", num_cpus=0.5).write_parquet(str(out))
        finally:
            context.checkpoint_config = None
        seconds = time.perf_counter() - began
    size = sum(file.stat().st_size for file in checkpoints.rglob("*") if file.is_file())
    return f"checkpoint {size / 1e6:.0f} MB; the run after it, with nothing to do, {seconds:.1f} s"


# ---- tars


def write_tars(links: Path, samples: int, folder: Path) -> None:
    """A WebDataset of captions."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with links.open(encoding="utf-8") as file:
        for number in range(samples // SAMPLES_PER_TAR):
            with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
                for row, line in enumerate(islice(file, SAMPLES_PER_TAR)):
                    for kind, data in (("jpg", IMAGE), ("txt", line.rstrip("\n").split("\t")[1].encode())):
                        member = tarfile.TarInfo(f"{number:05d}{row:05d}.{kind}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))


def captions_by_ray(folder: Path) -> str:
    import ray.data

    found = ray.data.read_webdataset(str(folder), suffixes=["txt"], decoder=None)
    return f"{sum(len(batch['txt']) for batch in found.iter_batches(batch_format='pyarrow')):,} captions"


def captions_by_filter(folder: Path) -> str:
    import ray

    read = ray.remote(num_cpus=0.5)(_captions_in)
    parts = parts_of(SourceConfig(path=str(folder)))
    return f"{sum(ray.get([read.remote(part) for part in parts])):,} captions"


def _captions_in(part: object) -> int:
    return sum(table.num_rows for table in read_part(part))  # type: ignore[arg-type]


# ---- download


def images_by_ray(urls: list[str]) -> str:
    import ray.data
    from ray.data.expressions import download

    found = ray.data.from_arrow(pa.table({"url": urls})).repartition(4).with_column("bytes", download("url"))
    sizes = pa.concat_tables(ray.get(found.map_batches(_sizes, batch_format="pyarrow", num_cpus=0.5).to_arrow_refs()))["bytes"]
    return f"{len(urls) - sizes.null_count:,} of {len(urls):,} obtained"


def _sizes(table: pa.Table) -> pa.Table:
    return pa.table({"bytes": pc.binary_length(table["bytes"].cast(pa.binary()))})


def images_by_fetcher(urls: list[str]) -> str:
    """One process, on one core."""

    async def fetch() -> int:
        config = FetchConfig(allow=("127.0.0.0/8",), per_host_rate=0.0, per_host=64, concurrency=256)

        async def one(url: str) -> int:
            async with fetcher.fetch(url) as outcome:
                return int(outcome.body is not None)

        async with Fetcher(config) as fetcher:
            return sum(await asyncio.gather(*map(one, urls)))

    return f"{asyncio.run(fetch()):,} of {len(urls):,} obtained"


def pairs(args: argparse.Namespace) -> Iterator[tuple[str, Callable[[], None]]]:
    work: Path = args.work.resolve()

    def parquet() -> None:
        as_parquet(args.links, args.rows, work / "parquet")
        jobs: dict[str, Job] = {
            "read_parquet": partial(by_ray, work / "parquet", work / "ray"),
            "the filter's reading pass": partial(by_filter, work / "parquet", work / "filter"),
        }
        compare("parquet", jobs, args.rounds, "rows", args.rows)

    def checkpoint() -> None:
        as_parquet(args.links, args.rows, work / "parquet")
        plain = partial(by_ray, work / "parquet", work / "ray")
        kept = partial(with_checkpoint, work / "parquet", work / "ray", work / "checkpoints")
        compare("checkpoint", {"without": plain, "with, twice": kept}, args.rounds, "rows", args.rows)

    def tars() -> None:
        samples = args.rows // 10 // SAMPLES_PER_TAR * SAMPLES_PER_TAR
        write_tars(args.links, samples, work / "tars")
        jobs: dict[str, Job] = {
            "read_webdataset": partial(captions_by_ray, work / "tars"),
            "the filter's reader": partial(captions_by_filter, work / "tars"),
        }
        compare("tars", jobs, args.rounds, "samples", samples)

    def images() -> None:
        with serve_images(work / "images", hosts=64) as server:
            plain = [server.image(number).partition("?")[0] for number in range(args.number)]
            asked = [server.image(number) for number in range(args.number)]
            jobs: dict[str, Job] = {
                "download": partial(images_by_ray, plain),
                "the fetcher": partial(images_by_fetcher, plain),
                "download, URLs with a query": partial(images_by_ray, asked),
                "the fetcher, URLs with a query": partial(images_by_fetcher, asked),
                "download, a third not there": partial(
                    images_by_ray,
                    [
                        *plain[: args.number * 2 // 3],
                        *[server.url("/404/1", at) for at in range(args.number - args.number * 2 // 3)],
                    ],
                ),
            }
            compare("download", jobs, args.rounds, "links", args.number)

    yield from {"parquet": parquet, "tars": tars, "download": images, "checkpoint": checkpoint}.items()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("links", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=["parquet", "tars", "download", "checkpoint"])
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--number", type=int, default=4_000, help="links of the download")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    ensure_session(SessionConfig(num_cpus=2, object_store_mb=1024))  # before Ray is imported: it sets what that reads
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    for name, pair in pairs(args):
        if name in args.only:
            pair()


if __name__ == "__main__":
    main()
