"""The index of a corpus: entity → keys of the rows that mention it, one parquet file sorted by entity and key."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from filtering.files import digest_of, digest_of_file, replacing
from filtering.partition import remove_strangers
from filtering.schema import INDEX
from filtering.shards import Runner, write_pointer
from storage.copies import fetched

GROUP_ROWS = 1 << 18
"""Rows of a row group: what merging holds in memory, and what a reader of one entity has to read at least."""
MERGED_AT_ONCE = 32
"""Parts that are merged at once: all their footers are in memory, and every row group that holds keys of a slice is read."""
RUN_ROWS = GROUP_ROWS // MERGED_AT_ONCE
"""Rows of a row group of what is merged again: a slice then needs about one of each part."""


def write_index_part(path: Path, kept: pa.Table) -> None:
    """The (entity, key) pairs of one shard (columns of `CORPUS`), sorted, a row group for each entity."""
    entities = kept["entities"].combine_chunks()
    parents = pc.list_parent_indices(entities)
    pairs = pa.table({"entity": pc.list_flatten(entities), "key": kept["key"].combine_chunks().take(parents)}, schema=INDEX)
    pairs = pairs.sort_by([("entity", "ascending"), ("key", "ascending")]).combine_chunks()
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, INDEX, compression="zstd") as writer:
        for start, length in _runs(pairs["entity"]):
            writer.write_table(pairs.slice(start, length), row_group_size=max(1, length))


def merge_parts(parts: Sequence[Path], build: Path, run: Runner) -> list[Path]:
    """Parts merged until there are at most `MERGED_AT_ONCE`, pass by pass, in the folder `build`: what `merge_index` takes.

    `parts` are those of `write_index_part`, in one folder. Without as many nothing runs.
    """
    level = 0
    while len(parts) > MERGED_AT_ONCE:
        sources, out = [], build / f"{level}"
        for number, start in enumerate(range(0, len(parts), MERGED_AT_ONCE)):
            several = parts[start : start + MERGED_AT_ONCE]
            pointers: list[dict[str, object]] = [{"part": part.name, "digest": digest_of_file(part)} for part in several]
            sources.append(out / "parts" / f"{number:05d}.parquet")
            write_pointer(sources[-1], pointers, sum(pq.read_metadata(part).num_rows for part in several))
        remove_strangers(out / "parts", sources)
        work = partial(MergeWork, parts[0].parent)
        markers = run(work, sources, out, fingerprint=digest_of([MERGED_AT_ONCE, RUN_ROWS]), label="index", unit="mentions")
        remove_strangers(out, [out / file for marker in markers for file in marker.files])
        parts = [out / file for marker in markers for file in marker.files]
        level += 1
    return list(parts)


class MergeWork:
    """Merges some parts of the index into one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, pointers: pa.Table, scratch: Path) -> Mapping[str, int]:
        merge_index(
            [fetched(self._folder / name) for name in pointers["part"].to_pylist()],
            scratch / f"{scratch.name}.parquet",
            RUN_ROWS,
        )
        return {}


class _Group(NamedTuple):
    """A row group of a part: rows of one entity, sorted by key, from `first` to `last`."""

    path: Path
    number: int
    rows: int
    first: str
    last: str


def merge_index(parts: Sequence[Path], path: Path, group_rows: int | None = None) -> None:
    """Merge sorted parts into one sorted file. A row group has one entity and some `GROUP_ROWS` rows, or those given.

    In memory at once: some `GROUP_ROWS` rows, a row group, and the footers of the parts.
    """
    files = {file: pq.read_metadata(file) for file in parts}
    groups: dict[str, list[_Group]] = {}
    for file, metadata in files.items():
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            if group.num_rows:
                entity, key = (group.column(column).statistics for column in (0, 1))
                groups.setdefault(entity.min, []).append(_Group(file, number, group.num_rows, key.min, key.max))
    with replacing(path) as temporary, pq.ParquetWriter(temporary, INDEX, compression="zstd") as writer:
        for entity in sorted(groups):
            for table in _in_order(groups[entity], files):
                writer.write_table(table, row_group_size=group_rows or max(1, table.num_rows))


def read_keys(index: Path, entity: str) -> pa.Array:
    """The keys of the rows that mention `entity`, in order; none where nothing does."""
    return pq.read_table(index, filters=[("entity", "=", entity)])["key"].combine_chunks()


def _in_order(groups: list[_Group], files: Mapping[Path, pq.FileMetaData]) -> Iterator[pa.Table]:
    """The rows of one entity in tables sorted by key. Keys are hashes: a slice of their range holds about its share of rows."""
    slices = -(-sum(group.rows for group in groups) // GROUP_ROWS)
    bounds = ["", *(f"{number * 16**8 // slices:08x}" for number in range(1, slices)), "g"]
    for low, high in pairwise(bounds):
        found = [INDEX.empty_table()]
        for group in groups:
            if group.first < high and group.last >= low:
                with pq.ParquetFile(group.path, metadata=files[group.path]) as file:
                    table = file.read_row_group(group.number)
                found.append(table.filter(pc.and_(pc.greater_equal(table["key"], low), pc.less(table["key"], high))))
        yield pa.concat_tables(found).sort_by("key").combine_chunks()


def _runs(column: pa.ChunkedArray) -> Iterator[tuple[int, int]]:
    """(start, length) of the runs of equal values in a sorted column."""
    codes = column.combine_chunks().dictionary_encode().indices.to_numpy()
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    yield from zip(starts.tolist(), np.diff(starts, append=len(codes)).tolist(), strict=True)
