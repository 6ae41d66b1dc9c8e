"""One run of a downloader, ours or img2dataset's, in processes of its own: how it is called, measured, and what it obtained."""

import json
import os
import resource
import secrets
import shlex
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
from memory import ProcessTree

from filtering.files import digest_of
from filtering.schema import CORPUS, key_of

ROOT = Path(__file__).resolve().parents[1]
MARK = "DOWNLOAD_BENCHMARK"
SECONDS_BETWEEN_SAMPLES = 1.0
LINKS_PER_FILE = 100_000

ALLOW = ["127.0.0.0/8"]
"""Ours refuses loopback addresses unless they are allowed; img2dataset asks whatever a link names."""
UNLIMITED = {"allow": ALLOW, "per_host": 256, "per_host_rate": 0.0}
"""No limit per host worth the name, since img2dataset has none."""
BORDER_256 = {"image_size": 256, "resize_mode": "border", "resize_only_if_bigger": False, "quality": 95}
BORDER_256_THERE = {
    "image_size": 256,
    "resize_mode": "border",
    "resize_only_if_bigger": False,
    "encode_quality": 95,
    "compute_hash": "sha256",
    "extract_exif": False,  # ours does not keep EXIF data
    "output_format": "webdataset",
    "input_format": "tsv",
    "url_col": "url",
    "caption_col": "caption",
}


@dataclass(frozen=True)
class Run:
    """A command as measured from outside. Bytes are proportional set sizes of the whole tree of processes."""

    seconds: float
    cpu_seconds: float
    peak_pss: int
    peak_by_name: dict[str, int]
    """The peak of each name of process; they need not fall into the same moment."""
    code: int | None
    """The exit code; None: it was still running at the limit and was killed."""
    output: str
    """Its last words."""


def run(command: Sequence[str], *, limit: float = 3600.0) -> Run:
    """Run a command and measure it. Ray's temporary files lie in a folder of the run's own."""
    mark, used = secrets.token_hex(8), _cpu_of_children()
    with tempfile.TemporaryDirectory(prefix="ray-") as ray_dir, tempfile.TemporaryFile("w+") as log:
        environment = {**plain_environment(), MARK: mark, "RAY_TMPDIR": ray_dir}
        began = time.monotonic()
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        tree, samples = ProcessTree(process.pid, f"{MARK}={mark}"), []
        peaks = Counter[str]()
        try:
            while process.poll() is None and time.monotonic() - began < limit:
                samples.append(tree.usage())
                peaks |= Counter(samples[-1].by_name)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(SECONDS_BETWEEN_SAMPLES)
            seconds, code = time.monotonic() - began, process.poll()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what it left behind, or itself
            process.wait()
        log.seek(0)
        return Run(
            seconds=seconds,
            # The samples miss the last moments; the kernel's sum misses processes that nobody waited for.
            cpu_seconds=max(samples[-1].cpu_seconds, _cpu_of_children() - used),
            peak_pss=max(sample.pss for sample in samples),
            peak_by_name=dict(peaks.most_common()),
            code=code,
            output=log.read()[-4000:],
        )


def run_well(command: Sequence[str], **options: Any) -> Run:
    """The same for a command that must end well."""
    done = run(command, **options)
    if done.code != 0:
        told = "did not end in time" if done.code is None else f"ended with code {done.code}"
        sys.exit(f"{told}: {shlex.join(command)}\n{done.output}")
    return done


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def plain_environment() -> dict[str, str]:
    """A plain shell's: no cluster and no Ray settings of somebody's own; and img2dataset's albumentations asks no network."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    return plain | {"NO_ALBUMENTATIONS_UPDATE": "1", "PYTHONUNBUFFERED": "1"}


def ours(corpus: Path, out: Path, settings: Mapping[str, Any], *, cpus: int) -> list[str]:
    """The command of our stage; `settings` are those of `DownloadConfig`. On Ray, or in one process where `cpus` is 0."""
    spec = out.with_suffix(".spec.json")
    spec.write_text(json.dumps({"corpus": str(corpus), "out": str(out), "settings": settings, "cpus": cpus}), encoding="utf-8")
    return [sys.executable, str(ROOT / "benchmarks" / "download_ours.py"), str(spec)]


def result_of(done: Run) -> dict[str, Any]:
    """What our stage printed last."""
    result: dict[str, Any] = json.loads(done.output.splitlines()[-1])
    return result


def theirs(links: Path, out: Path, options: Mapping[str, Any], *, python: str = sys.executable) -> list[str]:
    """img2dataset's own command line."""
    arguments = {"url_list": str(links), "output_folder": str(out), **BORDER_256_THERE, **options}
    return [python, "-m", "img2dataset.main", *(f"--{name}={value}" for name, value in arguments.items())]


_ON_RAY = """
import json, sys, ray
from img2dataset import download
arguments = json.loads(sys.argv[1])
ray.init(num_cpus=int(sys.argv[2]), include_dashboard=False, object_store_memory=256 * 2**20)
download(**arguments, distributor="ray")
"""


def theirs_on_ray(links: Path, out: Path, options: Mapping[str, Any], *, python: str, cpus: int) -> list[str]:
    """img2dataset with its Ray distributor, in a Ray of the same size as ours."""
    arguments = {"url_list": str(links), "output_folder": str(out), **BORDER_256_THERE, **options}
    return [python, "-c", _ON_RAY, json.dumps(arguments), str(cpus)]


def write_links(work: Path, urls: Iterable[str]) -> tuple[Path, Path]:
    """The same links for both: a corpus as the filter leaves it, and a table of links."""
    corpus, table = work / "corpus", work / "links.tsv"
    (corpus / "kept").mkdir(parents=True, exist_ok=True)
    for old in (corpus / "kept").iterdir():
        old.unlink()
    rows = ((url, f"a photo of a cat, number {number}") for number, url in enumerate(urls))
    with table.open("w", encoding="utf-8") as file:
        file.write("url\tcaption\n")
        for part, block in enumerate(iter(lambda: list(islice(rows, LINKS_PER_FILE)), [])):
            file.writelines(f"{url}\t{caption}\n" for url, caption in block)
            columns: list[Sequence[Any]] = [[key_of(*row) for row in block], *zip(*block, strict=True), [["cat"]] * len(block)]
            pq.write_table(pa.table(columns, schema=CORPUS), corpus / "kept" / f"{part:05d}.parquet")
    return corpus, table


def obtained(out: Path) -> dict[str, tuple[Any, ...]]:
    """By URL what a run keeps of the images that it obtained: original and final size, and hash of the original."""
    names = ["url", "status", "original_width", "original_height", "width", "height", "sha256"]
    tables = [pq.read_table(path, columns=names) for path in sorted(out.glob("[0-9]*.parquet"))]
    rows = (row for table in tables for row in zip(*(table[name].to_pylist() for name in names), strict=True))
    return {url: tuple(kept) for url, status, *kept in rows if status == "success"}


def digest_of_images(kept: Mapping[str, tuple[Any, ...]]) -> str:
    """A digest of what `obtained` tells; the port of a server does not count."""
    return digest_of(sorted((urlsplit(url).path, urlsplit(url).query, *rest) for url, rest in kept.items()))


def images_in_tars(out: Path) -> Iterator[tuple[str, str]]:
    """The tar and the name of every image in a folder of shards. Raises tarfile.ReadError where a tar is cut short."""
    for path in sorted(out.glob("[0-9]*.tar")):
        with tarfile.open(path) as tar:
            yield from ((path.name, name) for name in tar.getnames() if name.endswith(".jpg"))


def last_written(out: Path) -> float:
    """When the last file of a shard was written."""
    return max(path.stat().st_mtime for path in out.glob("[0-9]*"))


def spread(values: Sequence[float]) -> str:
    """Median, and range over the rounds."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Aligned lines: the first column to the left, the others to the right."""
    lines = [titles, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    for line in lines:
        first, *others = (
            f"{cell:<{width}}" if not i else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        yield "  ".join([first, *others]).rstrip()


def met(yes: bool) -> str:
    return "met" if yes else "NOT MET"


def write_results(path: Path, **results: object) -> None:
    """Write JSON next to the printed table."""
    path.write_text(json.dumps(results, indent=1, default=asdict) + "\n", encoding="utf-8")
