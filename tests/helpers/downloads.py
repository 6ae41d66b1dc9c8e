"""What the download's tests share: corpora of links to the test server, and what a download left behind."""

import asyncio
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from filtering.files import digest_of_file
from filtering.images.download import DownloadConfig
from filtering.images.fetch import Fetcher, Outcome
from filtering.images.fetch_config import FetchConfig
from filtering.images.image_config import ImageConfig
from filtering.schema import CORPUS, key_of
from helpers.download_web import HOST, Web


def config_for(web: Web, *, shard_size: int = 10, **settings: Any) -> DownloadConfig:
    """Quick to give up, small images, 10 links a shard at most."""
    settings = {
        "timeout": 3.0,
        "backoff": 0.01,
        "per_host_rate": 0.0,
        "max_bytes": 10**6,
        "connect_to": web.connect_to,
        **settings,
    }
    return DownloadConfig(fetch=FetchConfig(**settings), image=ImageConfig(image_size=48), shard_size=shard_size)


def images(count: int, query: str = "") -> list[str]:
    return [f"http://{HOST}/image?seed={seed}{query}" for seed in range(count)]


def pages(*paths: str) -> list[str]:
    return [f"http://{HOST}{path}" for path in paths]


def table_of(urls: list[str]) -> pa.Table:
    rows = [
        {"key": key_of(url, f"a cat at {url}"), "url": url, "caption": f"a cat at {url}", "entities": ["cat"]} for url in urls
    ]
    return pa.Table.from_pylist(rows, schema=CORPUS)


def write_corpus(folder: Path, links: list[str] | pa.Table, files: int = 2) -> Path:
    """Links, or rows, as the filter leaves them, in so many files; replaces those that are there."""
    rows = links if isinstance(links, pa.Table) else table_of(links)
    (folder / "kept").mkdir(parents=True, exist_ok=True)
    for old in (folder / "kept").iterdir():
        old.unlink()
    for i in range(files):
        pq.write_table(rows.take(pa.array(range(i, len(rows), files), pa.int64())), folder / "kept" / f"{i:05d}.parquet")
    return folder


def contents(folder: Path, suffix: str = "") -> dict[str, str]:
    """The digest of every file of a shard, by name."""
    return {path.name: digest_of_file(path) for path in sorted(folder.glob(f"[0-9]*{suffix}"))}


def statuses(out: Path) -> list[dict[str, Any]]:
    """The rows of all shards, in order."""
    return [row for path in sorted(out.glob("[0-9]*.parquet")) for row in pq.read_table(path).to_pylist()]


def by_path(out: Path) -> dict[str, dict[str, Any]]:
    """The rows of all shards by the path of their link."""
    return {row["url"].removeprefix(f"http://{HOST}"): row for row in statuses(out)}


def fetch_all(*urls: str, **settings: Any) -> list[Outcome]:
    """The outcomes of all URLs, asked for together."""

    async def one(fetcher: Fetcher, url: str) -> Outcome:
        async with fetcher.fetch(url) as outcome:
            return outcome

    async def all_of_them() -> list[Outcome]:
        async with Fetcher(FetchConfig(**settings)) as fetcher:
            return await asyncio.gather(*(one(fetcher, url) for url in urls))

    return asyncio.run(all_of_them())


def fetch_once(*urls: str, **settings: object) -> list[Outcome]:
    settings = {"timeout": 20.0, "backoff": 0.01, "attempts": 1, "per_host_rate": 0.0, **settings}
    return fetch_all(*urls, **settings)
