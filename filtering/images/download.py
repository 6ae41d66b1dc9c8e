"""Links to image shards: fetch, check, resize, and write WebDataset tars as img2dataset lays them out.

The rows of one URL are one image with several captions: it is asked for once. The next run asks only for links that are new,
and for those that failed for a transient reason; everything else it takes from the shards that are there.
"""

import asyncio
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import pyarrow as pa

from filtering import InputError
from filtering.files import digest_of
from filtering.images.captioned import CaptionedImage, Row, by_url, carried
from filtering.images.fetch import MAX_PROBED, Fetcher
from filtering.images.fetch_config import FetchConfig
from filtering.images.guard import GuardedResize
from filtering.images.image_config import ImageConfig
from filtering.images.image_shards import finish, write_shard, write_shards
from filtering.images.layout import PREVIOUS, cut_corpus, known_of
from filtering.images.progress import describe, failed
from filtering.images.results import Results, Retry, Validity
from filtering.shards import Runner, run_local
from storage.copies import remove_folder

CORES = {"fast": 1, "img2dataset": 2}
"""Images that a worker resizes at the same time, in as many processes, by how their pixels are made. To fetch, check and write
one takes a third of the time that resizing takes at a reduced scale, and a sixth of the time at full scale."""
SHARDS_AT_ONCE = 3
"""Shards that a worker has in work: while one waits for its last slow servers, or is written, the next has begun."""

_FORMAT = 2  # raise it when the same links and config give other files than before
_TASKS_AT_ONCE = 100


@dataclass(frozen=True, kw_only=True)
class DownloadConfig:
    """Links to image shards."""

    fetch: FetchConfig = field(default_factory=FetchConfig)
    """How links are asked for."""
    image: ImageConfig = field(default_factory=ImageConfig)
    """Which images are kept, and at what size."""
    shard_size: int = 1000
    """Captions per shard, about and at most: links are spread over a power of two of shards, by a hash of their URLs."""
    target: str = ""
    """Where complete shards are copied as well: an object store, such as "s3://bucket/shards", or another URL that fsspec
    writes to; "" = nowhere."""

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

    Links that an earlier run settled are not asked for again; of the failures those that `retry` names are. Returns {"links"
    (different URLs), "captions" (rows of the corpus), "repeated" (rows that repeat another's URL and caption, left out),
    "success", "retryable", "asked" (links asked for in this run), "bytes" (of the originals), "shards", "by_failure":
    {class: links}, "by_status": {status: links}, "digest"}. The digest is that of the tars: the statuses beside them also tell
    how many attempts a link took, which is the web's mood.

    Raises InputError if there are no links, if not one image was obtained, or if the network is dead. If there was
    not even an HTTP error, nothing is remembered, so that the next run asks for every link again.
    """
    _take_little_memory()
    out = out.resolve()
    cut = cut_corpus(corpus, out, config.shard_size)
    result = write_shards(
        partial(DownloadShard, config, out, retry),
        cut,
        out,
        run=run,
        fingerprint=f"download {content_digest(config)}",
        label="download",
        retry=retry,
        at_once=SHARDS_AT_ONCE,
        cores=CORES[config.image.pixels],
        describe=describe,
        target=config.target,
        nothing=_nothing_obtained,
    )
    remove_folder(out / PREVIOUS)
    return result


class DownloadShard:
    """The `ShardWork` of the download: rows of schema CORPUS in; tar, statuses and stats named after the scratch folder out.

    Each finished link goes to a private journal first, so that after a kill no image is fetched again. Several shards may be in
    work at the same time, from as many threads; they share one fetcher.
    """

    def __init__(self, config: DownloadConfig, out: Path, retry: Retry = "transient") -> None:
        _take_little_memory()
        self._out, self._retry = out, retry
        self._validity = validity_of(config)
        self._client = _Client(config)

    def share(self, workers: int) -> None:
        self._client.workers = workers

    def __call__(self, table: pa.Table, scratch: Path) -> Mapping[str, int]:
        images = by_url(table.sort_by("key").to_pylist())
        known = known_of(self._out, scratch.name, images, self._validity)
        alive = [image.url for image in images if known.has_image(image.id)]
        with Results(scratch, known, self._validity, self._retry) as results:
            self._client.obtain(alive[:MAX_PROBED], results.unsettled(images), results)
            counts = write_shard(images, carried(table.schema), scratch, self._validity, results)
        old = self._out / f"{scratch.name}.tar"
        if not known.uses(old):
            old.unlink(missing_ok=True)  # of other settings: a kill between the moves must not leave it beside our statuses
        return counts


def _take_little_memory() -> None:
    """Arrow's own pool takes 13 MB for the first row, which is more than the tables of a shard need."""
    pa.set_memory_pool(pa.system_memory_pool())


class _Client:
    """The fetcher on an event loop in a thread of its own, and the threads that resize: open while a shard is in work."""

    def __init__(self, config: DownloadConfig) -> None:
        self.workers = 1
        self._config = config
        self._resize = GuardedResize(config.image)
        self._lock = Lock()
        self._users = 0

    def obtain(self, alive: Sequence[str], images: Sequence[CaptionedImage], results: Results) -> None:
        """Ask for images at once, as far as the fetcher lets them, and add what became of them to the results.

        `alive` are links that gave images in earlier runs.
        """
        if images:
            with self._opened():
                self._wait(self._obtain(alive, images, results))

    async def _obtain(self, alive: Sequence[str], images: Sequence[CaptionedImage], results: Results) -> None:
        loop = asyncio.get_running_loop()
        for url in alive:
            self._fetcher.vouch(url)

        async def one(image: CaptionedImage) -> None:
            async with self._fetcher.fetch(image.url) as outcome:
                if outcome.status == "success":
                    record, file = await loop.run_in_executor(self._thread, finish, outcome, self._resize)
                else:
                    record, file = finish(outcome, self._resize)
                results.add(image, record, file)

        try:
            async with asyncio.TaskGroup() as tasks:
                for number, image in enumerate(images):
                    tasks.create_task(one(image))
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
            self._thread = parts.enter_context(ThreadPoolExecutor(CORES[self._config.image.pixels], "resize"))
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


_HINTS = {
    "dns": "no name server answers: is there a network?",
    "dns_unknown": "no name could be looked up: is there a network?",
    "connect": "no server could be reached: is there a network, and does download.fetch.connect_to name a server that runs?",
    "timeout": "no server answered in time: is there a network? Otherwise raise download.fetch.timeout",
    "opt_out": "every server asks not to use its images for training",
    "forbidden_address": "the addresses are not public; allow those that may be reached: download.fetch.allow=[127.0.0.1/32]",
}


def _nothing_obtained(by_status: Mapping[str, int], example: Row) -> str:
    hint = _HINTS.get(example["status"], "open one of the links in a browser to see why")
    return f"nothing could be fetched: {failed(by_status, example, 'links')} ({hint})"
