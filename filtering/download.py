"""Links to image shards: fetch, check, resize, and write WebDataset tars as img2dataset lays them out.

Beside `00000.tar` (key.jpg, key.json, key.txt per image) lie `00000.parquet`, with the status of every link, and
`00000_stats.json`; `sizes.json` tells open_clip's loader how many samples each tar holds.
"""

import asyncio
import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from filtering.fetch import FetchConfig, Fetcher, Outcome
from filtering.image import ImageConfig, Resize, Resized
from filtering.journal import Journal
from filtering.schema import CORPUS, STATUS
from filtering.stage import (
    InputError,
    MakeWork,
    Runner,
    digest_of,
    digest_of_markers,
    run_local,
    sum_counts,
    write_json,
    write_table,
)
from filtering.tar import write_tar

Row = Mapping[str, Any]
"""A kept row: a value per column."""
Obtain = Callable[[Sequence[Row], Journal], None]
"""Puts what became of each row into the journal: the record and the JPEG that `finish` makes."""

_FORMAT = 1  # raise it when the same links and config give other files than before


@dataclass(frozen=True, kw_only=True)
class DownloadConfig:
    """Links to image shards."""

    fetch: FetchConfig = field(default_factory=FetchConfig)
    """How links are asked for."""
    image: ImageConfig = field(default_factory=ImageConfig)
    """Which images are kept, and at what size."""
    shard_size: int = 1000
    """Links per shard; a tar holds those of them that could be had."""

    def __post_init__(self) -> None:
        if self.shard_size < 1:
            raise InputError(f"shard_size: {self.shard_size} is below 1")


def content_digest(config: DownloadConfig) -> str:
    """The digest of what decides for good about a link. How patiently and by which route it is asked for does not."""
    fetch = config.fetch
    return digest_of([_FORMAT, asdict(config.image), fetch.respect_opt_out, fetch.max_bytes, fetch.max_redirects])


class DownloadShard:
    """The `ShardWork` of the download: rows of schema CORPUS in; tar, statuses and stats named after the scratch folder out.

    Each finished link goes to a private journal first, so that after a kill no image is fetched again. A link whose failure may
    pass is asked again.
    """

    def __init__(self, config: DownloadConfig) -> None:
        self._config = config
        self._resize = Resize(config.image)

    def __call__(self, table: pa.Table, scratch: Path) -> Mapping[str, int]:
        return write_shard(table, scratch, content_digest(self._config), self._obtain)

    def _obtain(self, rows: Sequence[Row], journal: Journal) -> None:
        asyncio.run(self._fetch({row["key"]: row["url"] or "" for row in rows}, journal))

    async def _fetch(self, links: Mapping[str, str], journal: Journal) -> None:
        """Fetch all links at once, as far as the fetcher lets them; resize in one thread meanwhile."""
        with ThreadPoolExecutor(1, "resize") as thread:
            async with Fetcher(self._config.fetch) as fetcher, asyncio.TaskGroup() as tasks:

                async def obtain(key: str, url: str) -> None:
                    async with fetcher.fetch(url) as outcome:
                        loop = asyncio.get_running_loop()
                        record, jpeg = await loop.run_in_executor(thread, finish, outcome, self._resize)
                        journal.append(key, record, jpeg)

                for key, url in links.items():
                    tasks.create_task(obtain(key, url))


def write_shard(table: pa.Table, scratch: Path, digest: str, obtain: Obtain) -> Mapping[str, int]:
    """Write tar, statuses and stats of the rows of `table` into `scratch`, named after it; returns the shard's counts.

    `obtain` puts the images of rows into the journal. It is asked for those that an interrupted run of the same `digest` did
    not finish; a failure that may pass counts as unfinished.
    """
    with Journal(scratch / f".journal-{digest[:16]}") as journal:
        rows = table.sort_by("key").to_pylist()
        finished = {key for key, record in journal.records.items() if not record["retryable"]}
        obtain([row for row in rows if row["key"] not in finished], journal)
        rows = [{**row, **journal.records[row["key"]]} for row in rows]
        write_tar(scratch / f"{scratch.name}.tar", _samples(rows, journal))
    write_table(scratch / f"{scratch.name}.parquet", pa.Table.from_pylist(rows, schema=STATUS))
    write_json(scratch / f"{scratch.name}_stats.json", _stats(rows))
    return {
        "links": len(rows),
        "bytes": sum(row["bytes"] for row in rows),
        "retryable": sum(row["retryable"] for row in rows),
        **{f"status/{status}": count for status, count in Counter(row["status"] for row in rows).items()},
    }


def finish(outcome: Outcome, resize: Resize) -> tuple[dict[str, Any], bytes]:
    """The columns that STATUS adds to CORPUS, and the JPEG to keep."""
    obtained = outcome.status == "success"
    resized = resize(outcome.body) if obtained else Resized(status=outcome.status)
    record = {
        "status": resized.status,
        "retryable": outcome.retryable,
        "http_status": outcome.http_status,
        "attempts": outcome.attempts,
        "bytes": len(outcome.body),
        "sha256": hashlib.sha256(outcome.body).hexdigest() if obtained else None,
        "original_width": resized.original_width,
        "original_height": resized.original_height,
        "width": resized.width,
        "height": resized.height,
    }
    return record, resized.jpeg


def download_corpus(config: DownloadConfig, corpus: Path, out: Path, *, run: Runner = run_local) -> dict[str, Any]:
    """Download the links of `corpus/kept/*.parquet` into shards in `out`, and write `sizes.json` when all are complete.

    Returns {"links", "success", "retryable", "bytes" (of the originals), "shards", "by_status": {status: links}, "digest"}. The
    digest is that of the tars: the statuses beside them also tell how many attempts a link took, which is the web's mood.

    Raises InputError if there are no links, or if not one image was obtained. In that case no shard counts as done, so that the
    next run asks for every link again.
    """
    sources = _cut(corpus, out, config.shard_size)
    make_work = partial(DownloadShard, config)
    fingerprint = f"download {content_digest(config)}"
    return write_shards(make_work, sources, out, run=run, fingerprint=fingerprint, label="download", nothing=_nothing_obtained)


def write_shards(
    make_work: MakeWork,
    sources: Sequence[Path],
    out: Path,
    *,
    run: Runner,
    fingerprint: str,
    label: str,
    nothing: Callable[[Mapping[str, int]], str],
) -> dict[str, Any]:
    """Run the work over all shards and write `sizes.json`; returns and raises what `download_corpus` does.

    `nothing` words the mistake if there is no image: statuses and their counts in, message out.
    """
    _remove_stale(out, {source.stem for source in sources})
    markers = run(make_work, sources, out, fingerprint=fingerprint, label=label)
    counts = sum_counts(markers)
    by_status = {name.removeprefix("status/"): n for name, n in counts.items() if name.startswith("status/")}
    if not by_status.get("success"):
        shutil.rmtree(out / "_done", ignore_errors=True)
        raise InputError(nothing(by_status))
    write_json(out / "sizes.json", {f"{marker.shard}.tar": marker.counts.get("status/success", 0) for marker in markers})
    tars = [replace(marker, files={f: d for f, d in marker.files.items() if f.endswith(".tar")}) for marker in markers]
    return {
        "links": counts["links"],
        "success": by_status["success"],
        "retryable": counts["retryable"],
        "bytes": counts["bytes"],
        "shards": len(markers),
        "by_status": by_status,
        "digest": digest_of_markers(tars),
    }


_SAMPLE_COLUMNS = (
    *("key", "url", "caption", "entities", "status", "sha256"),
    *("width", "height", "original_width", "original_height"),
)


def _samples(rows: Sequence[Row], journal: Journal) -> Iterator[tuple[str, bytes]]:
    """The files of a tar in order: key.jpg, key.json, key.txt of every image obtained, one image in memory at a time."""
    for row in rows:
        if row["status"] == "success":
            key = row["key"]
            yield f"{key}.jpg", journal.body(key)
            yield f"{key}.json", json.dumps({name: row[name] for name in _SAMPLE_COLUMNS}, indent=4).encode()
            yield f"{key}.txt", (row["caption"] or "").encode()


def _stats(rows: Sequence[Row]) -> dict[str, Any]:
    """img2dataset's counts of a shard, without its clock times: they would differ from run to run."""
    successes = sum(row["status"] == "success" for row in rows)
    bodies = sum(row["sha256"] is not None for row in rows)
    return {
        "count": len(rows),
        "successes": successes,
        "failed_to_download": len(rows) - bodies,
        "failed_to_resize": bodies - successes,
        "status_dict": dict(Counter(row["status"] for row in rows).most_common()),
    }


def corpus_files(corpus: Path, columns: Sequence[str]) -> list[Path]:
    """The files of the corpus' kept rows. InputError if there are none, or if one lacks a column."""
    files = sorted((corpus / "kept").glob("*.parquet"))
    if not files:
        raise InputError(f"{corpus / 'kept'}: no parquet files there; run the filter first")
    for file in files:
        if missing := [name for name in columns if name not in pq.read_schema(file).names]:
            raise InputError(f"{file}: column {missing[0]!r} is missing; it is not a corpus that the filter wrote")
    if not sum(pq.read_metadata(file).num_rows for file in files):
        raise InputError(f"{corpus / 'kept'}: the corpus holds no links; loosen the filter's rules")
    return files


def without_repeats(table: pa.Table) -> pa.Table:
    """The first row of every key of a table sorted by key.

    A key is the name of an image. Rows that share one have the same URL and caption; a filter without rules keeps them all.
    """
    keys = table["key"].combine_chunks()
    first = np.ones(len(keys), bool)
    first[1:] = pc.not_equal(keys[1:], keys[:-1]).to_numpy(zero_copy_only=False)
    return table if first.all() else table.filter(pa.array(first))


def _cut(corpus: Path, out: Path, shard_size: int) -> list[Path]:
    """Write the links of the corpus, sorted by key, as shards of `shard_size` rows: however many files it came in."""
    files = corpus_files(corpus, CORPUS.names)
    tables = [pq.read_table(file, columns=CORPUS.names).select(CORPUS.names).cast(CORPUS) for file in files]
    links = without_repeats(pa.concat_tables(tables).sort_by("key"))
    folder = out / "_links"
    shutil.rmtree(folder, ignore_errors=True)
    shards = [folder / f"{i:05d}.parquet" for i in range(-(-links.num_rows // shard_size))]
    for i, shard in enumerate(shards):
        write_table(shard, links.slice(i * shard_size, shard_size))
    return shards


def _remove_stale(out: Path, shards: set[str]) -> None:
    """Remove `sizes.json`, which says "complete", and what a larger corpus left behind, lest it be read along with ours."""
    (out / "sizes.json").unlink(missing_ok=True)
    for path in [*out.glob("[0-9]*"), *out.glob("_done/[0-9]*"), *out.glob("_work/[0-9]*")]:
        if (shard := re.match(r"\d+", path.name)) and shard[0] not in shards:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


_HINTS = {
    "dns": "no name could be looked up: is there a network?",
    "connect": "no server could be reached: is there a network, and does connect_to point at a server that runs?",
    "timeout": "no server answered in time: is there a network? Otherwise raise timeout",
    "opt_out": "every server asks not to use its images for training",
}


def _nothing_obtained(by_status: Mapping[str, int]) -> str:
    links = sum(by_status.values())
    reason, count = max(by_status.items(), key=lambda item: item[1])
    hint = _HINTS.get(reason, "open one of the links in a browser to see why")
    return f"nothing could be fetched: {count} of {links} links failed with {reason!r} ({hint}); a new run asks again for all"
