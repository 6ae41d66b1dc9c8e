"""The shuffle between two passes: rows of any origin into shards, through files of one row group a shard.

    rows of any unit ──write_block──▶ blocks: row group s holds the rows of shard s ──gather──▶ shard s, sorted by key

Of more than `FAN_OUT` shards, row groups would be tiny and footers larger than the rows. Then a block's row groups hold groups
of `FAN_OUT` shards, and a pass of its own (`SpreadWork`) makes of each group's row groups blocks as above: however many rows
there are, a shard is gathered from the blocks of its group, some fifty.

No worker ever holds more than one block or one shard, and nothing depends on where parts and blocks begin.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from filtering.files import digest_of
from filtering.kept_columns import common_types, with_types
from filtering.schema import LINKS, SHARD
from filtering.shards import Marker, Runner, write_pointer
from storage.copies import discard, names_in, opened, remove_folder

BLOCK_ROWS = 1 << 18
"""About how many rows a block holds."""
FAN_OUT = 256
"""Most row groups that a block has: into so many shards, or groups of so many shards, rows are dealt out at once."""

_SPREAD = "spread"


class _Block(NamedTuple):
    """A file of row groups, by its name in the folder of blocks."""

    name: str
    digest: str
    rows: npt.NDArray[np.int64]
    """Rows of each row group."""


def point_at_shards(
    folder: Path, blocks: Path, markers: Sequence[Marker], shards: int, run: Runner, label: str = _SPREAD
) -> list[Path]:
    """One source per shard that names the blocks, in the folder `blocks`, where its rows are; digests tell when they change.

    `markers` are those of the pass that wrote the blocks; blocks of earlier passes are deleted. Of more than `FAN_OUT` shards
    `run` spreads the rows once more first, as the pass `label`.
    """
    found, types = _blocks_of(blocks, markers)
    remove_strangers(blocks, [blocks / block.name for block in found])
    groups = [found]
    if shards > FAN_OUT:
        groups = _spread(folder, blocks, found, types, run, label)
    else:
        remove_folder(blocks / _SPREAD)
    sources = []
    for shard in range(shards):
        group, row_group = divmod(shard, FAN_OUT)
        sources.append(folder / f"{shard:05d}.parquet")
        _point(sources[-1], [(block, row_group) for block in groups[group]], types)
    remove_strangers(folder, sources)
    return sources


def _blocks_of(blocks: Path, markers: Iterable[Marker]) -> tuple[list[_Block], str]:
    """The blocks that a pass wrote, and the types of columns that differ between them, as pointers tell them."""
    found, schemas = [], set()
    for marker in markers:
        for file, digest in sorted(marker.files.items()):
            told = pq.read_metadata(opened(blocks / file))
            rows = np.array([told.row_group(number).num_rows for number in range(told.num_row_groups)], np.int64)
            found.append(_Block(file, digest, rows))
            schemas.add(told.schema.to_arrow_schema())
    types = {name: str(type_) for name, type_ in sorted(common_types(schemas).items())}
    return found, json.dumps(types)


def _point(source: Path, pieces: Sequence[tuple[_Block, int]], types: str) -> None:
    """A source that stands for row groups (block, number). Of one without rows a block tells the columns."""
    holders = [(block, number) for block, number in pieces if block.rows[number]] or list(pieces[:1])
    pointers: list[dict[str, object]] = [
        {"block": block.name, "digest": block.digest, "shard": number, "types": types} for block, number in holders
    ]
    write_pointer(source, pointers, int(sum(block.rows[number] for block, number in pieces)))


def _spread(folder: Path, blocks: Path, found: Sequence[_Block], types: str, run: Runner, label: str) -> list[list[_Block]]:
    """For each group of shards the blocks that `SpreadWork` makes of its row groups, about a block's rows at a time."""
    sources: list[Path] = []
    first = [0]
    for group in range(len(found[0].rows)):
        for pieces in _pieces(found, group):
            sources.append(folder / _SPREAD / f"{len(sources):05d}.parquet")
            _point(sources[-1], pieces, types)
        first.append(len(sources))
    remove_strangers(folder / _SPREAD, sources)
    out = blocks / _SPREAD
    markers = run(partial(SpreadWork, blocks), sources, out, fingerprint=digest_of([_SPREAD, FAN_OUT]), label=label)
    spread, _ = _blocks_of(out, markers)
    remove_strangers(out, [out / block.name for block in spread])
    named = [block._replace(name=f"{_SPREAD}/{block.name}") for block in spread]
    return [named[start:stop] for start, stop in pairwise(first)]


def _pieces(found: Sequence[_Block], group: int) -> Iterator[list[tuple[_Block, int]]]:
    """The row groups of a group of shards in lots of about a block's rows; at least one lot, perhaps without rows."""
    lot: list[tuple[_Block, int]] = []
    rows = 0
    for block in found:
        lot.append((block, group))
        rows += int(block.rows[group])
        if rows >= BLOCK_ROWS:
            yield lot
            lot, rows = [], 0
    if lot and (rows or not any(block.rows[group] for block in found)):
        yield lot


class SpreadWork:
    """Parts rows of a group of shards by shard: a `ShardWork` from row groups of blocks to one block."""

    def __init__(self, blocks: Path) -> None:
        self._blocks = blocks

    def __call__(self, pointers: pa.Table, scratch: Path) -> Mapping[str, int]:
        table = _rows_at(self._blocks, pointers)
        shard_of = table[SHARD.name].to_numpy() % FAN_OUT
        write_block(scratch / f"{scratch.name}.parquet", table.drop_columns([SHARD.name]), shard_of, FAN_OUT)
        return {}


def write_block(path: Path, table: pa.Table, shard_of: npt.NDArray[np.int32], shards: int) -> None:
    """Write `table` with one row group a shard, or a group of `FAN_OUT` shards; row i belongs to shard `shard_of[i]`."""
    if shards > FAN_OUT:
        table = table.append_column(SHARD, pa.array(shard_of, SHARD.type))
        shard_of, shards = shard_of // FAN_OUT, -(-shards // FAN_OUT)
    _write_groups(path, table, shard_of, shards)


def _write_groups(path: Path, table: pa.Table, group_of: npt.NDArray[np.int32], groups: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ordered = table.take(pa.array(np.argsort(group_of, kind="stable"))).combine_chunks()
    counts = np.bincount(group_of, minlength=groups)
    with pq.ParquetWriter(path, table.schema, compression="zstd", use_dictionary=False, write_statistics=False) as writer:
        start = 0
        for count in counts.tolist():
            writer.write_table(ordered.slice(start, count), row_group_size=max(1, count))
            start += count


def regroup(
    tables: Iterable[pa.Table], group_of: Callable[[pa.Table], npt.NDArray[np.int32]], groups: int, blocks: Path
) -> Iterator[pa.Table]:
    """The rows of `tables` by group: all those of group 0, then those of group 1, and so on; `group_of` tells each row's.

    In memory at once: one of the tables, or about a block, or one group. The rest waits on disk in the folder `blocks`, which
    is deleted. More than `FAN_OUT` groups are made in several steps.
    """
    shutil.rmtree(blocks, ignore_errors=True)
    size = FAN_OUT ** max(0, _steps(groups) - 1)
    """Groups that go together in this step."""
    files: list[Path] = []
    for table in tables:
        files.append(blocks / f"{len(files):05d}.parquet")
        _write_groups(files[-1], table, group_of(table) // size, -(-groups // size))
    for first in range(0, groups, size):
        found = (_row_group(file, first // size) for file in files)
        if size == 1:
            yield pa.concat_tables(found)
        else:
            of_some = partial(_within, group_of, first)
            yield from regroup(_joined(found), of_some, min(size, groups - first), blocks / f"{first:05d}")
    shutil.rmtree(blocks, ignore_errors=True)


def _steps(groups: int) -> int:
    steps = 1
    while groups > FAN_OUT**steps:
        steps += 1
    return steps


def _within(group_of: Callable[[pa.Table], npt.NDArray[np.int32]], first: int, table: pa.Table) -> npt.NDArray[np.int32]:
    return group_of(table) - np.int32(first)


def _joined(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Neighbouring tables together, about a block's rows at a time; at least one table, perhaps without rows."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) >= BLOCK_ROWS:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _row_group(path: Path, group: int) -> pa.Table:
    with pq.ParquetFile(opened(path)) as file:
        return file.read_row_group(group)


def gather(blocks: Path, pointers: pa.Table) -> pa.Table:
    """All rows of a shard, sorted by key and, as a key may stand for several, by what else there is beside the link."""
    table = _rows_at(blocks, pointers)
    columns = [
        name for name in table.column_names if name == "key" or ("url" in table.column_names and name not in LINKS.names)
    ]
    return table.sort_by([(name, "ascending") for name in columns]).combine_chunks()


def _rows_at(blocks: Path, pointers: pa.Table) -> pa.Table:
    """The row groups that pointers name. Footers are parsed each time (0.6 ms): kept, they would grow with the source."""
    tables = []
    for row in pointers.to_pylist():
        types = {name: pa.type_for_alias(type_) for name, type_ in json.loads(row["types"]).items()}
        tables.append(with_types(_row_group(blocks / row["block"], row["shard"]), types))
    return pa.concat_tables(tables)


def remove_strangers(folder: Path, ours: Sequence[Path]) -> None:
    """Delete the numbered files in `folder` that are not `ours`: what an earlier config left behind."""
    wanted = set(ours)
    for name in names_in(folder):
        if re.match(r"\d.*\.", name) and folder / name not in wanted:
            discard(folder / name)
