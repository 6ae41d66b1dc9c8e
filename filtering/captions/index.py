"""The index of a corpus: entity → keys of the rows that mention it, one parquet file sorted by entity and key."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from filtering.files import replacing
from filtering.schema import INDEX

GROUP_ROWS = 1 << 18
"""Rows of a row group: what merging holds in memory, and what a reader of one entity has to read at least."""


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


def merge_index(parts: Path, path: Path) -> None:
    """Merge the parts in a folder into one sorted file; memory is bounded by a row group, whatever the corpus's size."""
    files = {file: pq.read_metadata(file) for file in sorted(parts.glob("*.parquet"))}
    groups: dict[str, list[tuple[Path, int, int]]] = {}
    for file, metadata in files.items():
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            if group.num_rows:
                groups.setdefault(group.column(0).statistics.min, []).append((file, number, group.num_rows))
    with replacing(path) as temporary, pq.ParquetWriter(temporary, INDEX, compression="zstd") as writer:
        for entity in sorted(groups):
            for table in _in_order(groups[entity], files):
                writer.write_table(table, row_group_size=max(1, table.num_rows))


def read_keys(index: Path, entity: str) -> pa.Array:
    """The keys of the rows that mention `entity`, in order; none where nothing does."""
    return pq.read_table(index, filters=[("entity", "=", entity)])["key"].combine_chunks()


def _in_order(groups: list[tuple[Path, int, int]], files: dict[Path, pq.FileMetaData]) -> Iterator[pa.Table]:
    """The rows of one entity in tables sorted by key. Keys are hashes: a slice of their range holds about its share of rows."""
    slices = -(-sum(rows for _, _, rows in groups) // GROUP_ROWS)
    bounds = ["", *(f"{number * 16**8 // slices:08x}" for number in range(1, slices)), "g"]
    for low, high in pairwise(bounds):
        found = []
        for path, number, _ in groups:
            with pq.ParquetFile(path, metadata=files[path]) as file:
                table = file.read_row_group(number)
            found.append(table.filter(pc.and_(pc.greater_equal(table["key"], low), pc.less(table["key"], high))))
        yield pa.concat_tables(found).sort_by("key").combine_chunks()


def _runs(column: pa.ChunkedArray) -> Iterator[tuple[int, int]]:
    """(start, length) of the runs of equal values in a sorted column."""
    codes = column.combine_chunks().dictionary_encode().indices.to_numpy()
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    yield from zip(starts.tolist(), np.diff(starts, append=len(codes)).tolist(), strict=True)
