"""Links to image shards: fetch, check, resize, and write WebDataset tars as img2dataset lays them out.

A link is in the shard that its key, a hash, falls into. The next run asks only for links that are new, and for those that
failed for a transient reason; everything else it takes from the shards that are there.
"""

import asyncio
import json
import os
import shutil
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from filtering import InputError
from filtering.files import digest_of, write_json, write_table
from filtering.images.fetch import MAX_PROBED, Fetcher
from filtering.images.fetch_config import FetchConfig
from filtering.images.guard import GuardedResize
from filtering.images.image_shards import (
    check_keys,
    corpus_files,
    finish,
    shard_files,
    without_repeats,
    write_shard,
    write_shards,
)
from filtering.images.progress import describe
from filtering.images.resize import ImageConfig
from filtering.images.results import Known, Results, Retry, Row, Validity
from filtering.partition import regroup
from filtering.schema import CORPUS
from filtering.shards import Runner, run_local

SHARDS_AT_ONCE = 2
"""Shards that a worker has in work: while one waits for its last slow servers, the next has begun."""

_FORMAT = 2  # raise it when the same links and config give other files than before
_BATCH_ROWS = 1 << 16
_TASKS_AT_ONCE = 100
_LAYOUT = "_layout.json"
_PREVIOUS = "_previous"


@dataclass(frozen=True, kw_only=True)
class DownloadConfig:
    """Links to image shards."""

    fetch: FetchConfig = field(default_factory=FetchConfig)
    """How links are asked for."""
    image: ImageConfig = field(default_factory=ImageConfig)
    """Which images are kept, and at what size."""
    shard_size: int = 1000
    """Links per shard, about and at most: links are spread over a power of two of shards, by their keys."""
    target: str = ""
    """Where complete shards are copied as well: a URL that fsspec can write to, such as "s3://bucket/shards"; "" = nowhere."""

    def __post_init__(self) -> None:
        if self.shard_size < 1:
            raise InputError(f"shard_size: {self.shard_size} is below 1")


def validity_of(config: DownloadConfig) -> Validity:
    """What results depend on. Patience and routes are not among it: they never make a result permanent."""
    fetch = config.fetch
    images = [_FORMAT, config.image.content, fetch.respect_opt_out]
    limits = [fetch.max_bytes, fetch.max_redirects, sorted(fetch.allow), config.image.max_seconds]
    return Validity(images=digest_of(images), rules=digest_of([*images, *limits]))


def content_digest(config: DownloadConfig) -> str:
    """The digest of the settings that the shards depend on."""
    return digest_of(asdict(validity_of(config)))


def download_corpus(
    config: DownloadConfig, corpus: Path, out: Path, *, run: Runner = run_local, retry: Retry = "transient"
) -> dict[str, Any]:
    """Download the links of `corpus/kept/*.parquet` into shards in `out`, and write `sizes.json` when all are complete.

    Links that an earlier run settled are not asked for again; of the failures those that `retry` names are. Returns {"links",
    "success", "retryable", "asked" (links asked for in this run), "bytes" (of the originals), "shards", "by_failure":
    {class: links}, "by_status": {status: links}, "digest"}. The digest is that of the tars: the statuses beside them also tell
    how many attempts a link took, which is the web's mood.

    Raises InputError if there are no links, if not one image was obtained, or if the network is dead. If there was
    not even an HTTP error, nothing is remembered, so that the next run asks for every link again.
    """
    out = out.resolve()
    sources = _cut(corpus, out, config.shard_size)
    result = write_shards(
        partial(DownloadShard, config, out, retry),
        sources,
        out,
        run=run,
        fingerprint=f"download {content_digest(config)}",
        label="download",
        retry=retry,
        at_once=SHARDS_AT_ONCE,
        describe=describe,
        target=config.target,
        nothing=_nothing_obtained,
    )
    shutil.rmtree(out / _PREVIOUS, ignore_errors=True)
    return result


class DownloadShard:
    """The `ShardWork` of the download: rows of schema CORPUS in; tar, statuses and stats named after the scratch folder out.

    Each finished link goes to a private journal first, so that after a kill no image is fetched again. Several shards may be in
    work at the same time, from as many threads; they share one fetcher.
    """

    def __init__(self, config: DownloadConfig, out: Path, retry: Retry = "transient") -> None:
        self._out, self._retry = out, retry
        self._shards = _layout(out) or 1
        self._validity = validity_of(config)
        self._client = _Client(config)

    def share(self, workers: int) -> None:
        self._client.workers = workers

    def __call__(self, table: pa.Table, scratch: Path) -> Mapping[str, int]:
        rows = table.sort_by("key").to_pylist()
        known = self._known(scratch.name, [row["key"] for row in rows])
        alive = [row["url"] for row in rows if known.has_image(row["key"])]
        with Results(scratch, known, self._validity, self._retry) as results:
            counts = write_shard(rows, scratch, self._validity, results, partial(self._client.obtain, alive[:MAX_PROBED]))
        old = self._out / f"{scratch.name}.tar"
        if not known.uses(old):
            old.unlink(missing_ok=True)  # of other settings: a kill between the moves must not leave it beside our statuses
        return counts

    def _known(self, shard: str, keys: Sequence[str]) -> Known:
        """What shards of this key range know: the one of this name, and those of another layout."""
        known = Known(keys, self._validity)
        for folder in sorted((self._out / _PREVIOUS).glob("[0-9]*")):
            for name in _overlapping(int(shard), self._shards, int(folder.name.rpartition("-")[2])):
                known.add_shard(folder / f"{name}.parquet")
                for journal in folder.glob(f"{name}{self._validity.journal}"):
                    known.add_journal(journal)
        known.add_shard(self._out / f"{shard}.parquet")
        return known


class _Client:
    """The fetcher on an event loop in a thread of its own, and the thread that resizes: open while a shard is in work."""

    def __init__(self, config: DownloadConfig) -> None:
        self.workers = 1
        self._config = config
        self._resize = GuardedResize(config.image)
        self._lock = Lock()
        self._users = 0

    def obtain(self, alive: Sequence[str], rows: Sequence[Row], results: Results) -> None:
        """Ask for the links of rows at once, as far as the fetcher lets them, and add what became of them to the results.

        `alive` are links that gave images in earlier runs.
        """
        if rows:
            with self._opened():
                self._wait(self._obtain(alive, rows, results))

    async def _obtain(self, alive: Sequence[str], rows: Sequence[Row], results: Results) -> None:
        loop = asyncio.get_running_loop()
        for url in alive:
            self._fetcher.vouch(url)

        async def one(row: Row) -> None:
            async with self._fetcher.fetch(row["url"] or "") as outcome:
                if outcome.status == "success":
                    record, image = await loop.run_in_executor(self._thread, finish, outcome, self._resize)
                else:
                    record, image = finish(outcome, self._resize)
                results.add(row["key"], record, image)

        try:
            async with asyncio.TaskGroup() as tasks:
                for number, row in enumerate(rows):
                    tasks.create_task(one(row))
                    if number % _TASKS_AT_ONCE == 0:
                        await asyncio.sleep(0)  # thousands at once would keep those under way waiting
        except ExceptionGroup as group:
            raise group.exceptions[0] from None  # one reason to stop is enough: they are all cancelled then

    @contextmanager
    def _opened(self) -> Iterator[None]:
        with self._lock:
            if not self._users:
                self._open()
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._close()

    def _open(self) -> None:
        with ExitStack() as parts:
            self._thread = parts.enter_context(ThreadPoolExecutor(1, "resize"))
            self._loop = asyncio.new_event_loop()
            parts.callback(self._loop.close)
            thread = Thread(target=self._loop.run_forever, name="fetch", daemon=True)
            thread.start()
            parts.callback(thread.join)
            parts.callback(self._loop.call_soon_threadsafe, self._loop.stop)
            self._fetcher = Fetcher(self._config.fetch, self.workers)
            self._wait(self._fetcher.__aenter__())
            parts.callback(lambda: self._wait(self._fetcher.__aexit__(None, None, None)))
            self._close = parts.pop_all().close

    def _wait(self, work: Coroutine[Any, Any, Any]) -> None:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            future.result()
        except BaseException:
            future.cancel()  # an interrupt from the keyboard reaches this thread alone
            raise


def _cut(corpus: Path, out: Path, shard_size: int) -> list[Path]:
    """Write the links of the corpus, sorted by key, as shards. In memory at once: a batch, or some neighbouring shards."""
    files = corpus_files(corpus, CORPUS.names)
    links = sum(pq.read_metadata(file).num_rows for file in files)
    shards = 1 << (-(-links // shard_size) - 1).bit_length()
    groups = 1 << (-(-links // _BATCH_ROWS) - 1).bit_length()
    _lay_out(out, shards)

    def batches() -> Iterator[pa.Table]:
        for path in files:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(_BATCH_ROWS, columns=CORPUS.names):
                    table = pa.Table.from_batches([batch]).select(CORPUS.names).cast(CORPUS)
                    check_keys(table["key"], path)
                    yield table

    folder = out / "_links"
    shutil.rmtree(folder, ignore_errors=True)
    sources = [folder / f"{shard:05d}.parquet" for shard in range(shards)]
    at_once = min(groups, shards)
    for group, rows in enumerate(regroup(batches(), lambda table: _range_of(table, at_once), at_once, out / "_blocks")):
        table = without_repeats(rows.sort_by("key")).combine_chunks()
        shard_of = _range_of(table, shards)
        for shard in range(group * shards // at_once, (group + 1) * shards // at_once):
            start, stop = np.searchsorted(shard_of, [shard, shard + 1])
            write_table(sources[shard], table.slice(start, stop - start))
    return sources


def _range_of(table: pa.Table, ranges: int) -> npt.NDArray[np.int32]:
    """Which of so many equal ranges of all keys each row's key falls into."""
    heads = np.array([int(key[:8], 16) for key in table["key"].to_pylist()], np.int64)
    return (heads * ranges >> 32).astype(np.int32)


def _overlapping(shard: int, shards: int, others: int) -> list[str]:
    """The names of those of `others` shards whose keys range over those of one of `shards`."""
    return [f"{other:05d}" for other in range(shard * others // shards, -(-(shard + 1) * others // shards))]


def _layout(out: Path) -> int | None:
    """The number of shards that the files in `out` are cut for; None if there are none."""
    try:
        return int(json.loads((out / _LAYOUT).read_text())["shards"])
    except (FileNotFoundError, ValueError, KeyError):
        return None


def _is_moving(out: Path) -> bool:
    """Whether a kill fell between the files that were being put aside."""
    return bool(json.loads((out / _LAYOUT).read_text()).get("moving"))


def _aside(out: Path, shards: int) -> Path:
    """The folder for the files of so many shards, the last by name; a new one, lest they mix with what is there already."""
    folders = sorted((out / _PREVIOUS).glob("[0-9]*"))
    if folders and _is_moving(out):
        return folders[-1]
    number = int(folders[-1].name.partition("-")[0]) + 1 if folders else 0
    return out / _PREVIOUS / f"{number:05d}-{shards:05d}"


def _lay_out(out: Path, shards: int) -> None:
    """Make room for another number of shards: the old ones are put aside, for the new ones to take their images from."""
    before = _layout(out)
    if before is not None and (before != shards or _is_moving(out)):
        aside = _aside(out, before)
        aside.mkdir(parents=True, exist_ok=True)
        write_json(out / _LAYOUT, {"shards": before, "moving": True})  # a kill must not part a tar from its statuses
        for name, path in list(shard_files(out)):
            if path.parent == out:
                os.replace(path, aside / path.name)
            else:
                for journal in path.glob(".journal-*"):
                    os.replace(journal, aside / f"{name}{journal.name}")
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_json(out / _LAYOUT, {"shards": shards})


_HINTS = {
    "dns": "no name server answers: is there a network?",
    "dns_unknown": "no name could be looked up: is there a network?",
    "connect": "no server could be reached: is there a network, and does connect_to point at a server that runs?",
    "timeout": "no server answered in time: is there a network? Otherwise raise timeout",
    "opt_out": "every server asks not to use its images for training",
    "forbidden_address": "the addresses are not public; list those that may be reached in fetch.allow",
}


def _nothing_obtained(by_status: Mapping[str, int]) -> str:
    links = sum(by_status.values())
    reason, count = max(by_status.items(), key=lambda item: item[1])
    hint = _HINTS.get(reason, "open one of the links in a browser to see why")
    return f"nothing could be fetched: {count} of {links} links failed with {reason!r} ({hint})"
