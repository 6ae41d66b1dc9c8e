"""The first pass of a corpus build, a `ShardWork`: parts of the source in, blocks by the hash of the caption out."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from filtering.captions.formats.source import Part
from filtering.captions.reader import read_part
from filtering.captions.words import normalised_of
from filtering.kept_columns import concatenated
from filtering.partition import BLOCK_ROWS, remove_strangers, write_block
from filtering.secrets import masked
from filtering.shards import write_pointer

READ_UNITS = 64
FEWEST_SHARDS = 16
ROWS_PER_SHARD = 50_000
"""What a worker holds at once; its memory and the time that a kill costs grow with it, and with fewer there are more files."""


class ReadWork:
    """Reads parts of the source and puts their rows into blocks, those with the same caption in the same shard."""

    def __init__(self, shards: int, secret_paths: Mapping[str, str] | None = None) -> None:
        """`secret_paths`: of files whose URL holds secrets the URL, by what stands of it in the pointers."""
        self._shards = shards
        self._paths = dict(secret_paths or {})

    def __call__(self, table: pa.Table, scratch: Path) -> Mapping[str, int]:
        tables = chain.from_iterable(read_part(self._part(part)) for part in table.to_pylist())
        links = 0
        for number, block in enumerate(_blocks(tables)):
            texts = normalised_of(block["caption"]).to_pylist()
            shard_of = np.array([_shard(text, self._shards) for text in texts], np.int32)
            write_block(scratch / f"{scratch.name}-{number:04d}.parquet", block, shard_of, self._shards)
            links += block.num_rows
        return {"links": links}

    def _part(self, told: Mapping[str, Any]) -> Part:
        return Part(**{**told, "path": self._paths.get(told["path"], told["path"])})


def shards_for(parts: Sequence[Part]) -> int:
    """Into how many shards a source is cut of itself: enough for workers to share, and no more rows in each however many."""
    return max(FEWEST_SHARDS, -(-sum(part.rows_hint for part in parts) // ROWS_PER_SHARD))


def secret_paths(parts: Sequence[Part]) -> dict[str, str]:
    """The paths of parts that hold secrets, by what `point_at_parts` writes of them."""
    return {shown: part.path for part in parts if (shown := masked(part.path)) != part.path}


def point_at_parts(folder: Path, parts: Sequence[Part]) -> list[Path]:
    """The sources of `ReadWork`: one per part, or per group of small neighbours. Secrets in their URLs are masked."""
    sources = []
    for number, group in enumerate(_groups(parts)):
        sources.append(folder / f"{number:05d}.parquet")
        pointers = [{**asdict(part), "path": masked(part.path)} for part in group]
        write_pointer(sources[-1], pointers, sum(part.rows_hint for part in group))
    remove_strangers(folder, sources)
    return sources


def _groups(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """Parts in groups of up to a block's rows, so that thousands of small files do not become thousands of tiny blocks.

    A small source stays in `READ_UNITS` groups or more, as far as it has parts, for workers to share.
    """
    most = min(BLOCK_ROWS, sum(part.rows_hint for part in parts) // READ_UNITS)
    group: list[Part] = []
    rows = 0
    for part in parts:
        if group and rows + part.rows_hint > most:
            yield group
            group, rows = [], 0
        group.append(part)
        rows += part.rows_hint
    if group:
        yield group


def _blocks(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in blocks of about `BLOCK_ROWS`."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(one.num_rows for one in waiting) >= BLOCK_ROWS:
            yield concatenated(waiting)
            waiting = []
    if waiting:
        yield concatenated(waiting)


def _shard(text: str, shards: int) -> int:
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big") % shards
