"""The shuffle between two passes: rows of any origin into a fixed number of shards, through files of one row group a shard.

    rows of any unit ──write_block──▶ blocks: row group s holds the rows of shard s ──gather──▶ shard s, sorted by key

No worker ever holds more than one block or one shard, and nothing depends on where parts and blocks begin.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from filtering.kept_columns import common_types, with_types
from filtering.schema import LINKS
from filtering.shards import Marker, write_pointer
from storage.copies import discard, names_in, opened


def point_at_shards(folder: Path, blocks: Path, markers: Sequence[Marker], shards: int) -> list[Path]:
    """One source per shard that names the blocks, in the folder `blocks`, where its rows are; digests tell when they change.

    `markers` are those of the pass that wrote the blocks; blocks of earlier passes are deleted.
    """
    digests = {file: digest for marker in markers for file, digest in sorted(marker.files.items())}
    remove_strangers(blocks, [blocks / file for file in digests])
    told = {file: pq.read_metadata(opened(blocks / file)) for file in digests}
    counts = {file: [one.row_group(group).num_rows for group in range(one.num_row_groups)] for file, one in told.items()}
    types = common_types(one.schema.to_arrow_schema() for one in told.values())
    named = json.dumps({name: str(type_) for name, type_ in sorted(types.items())})
    sources = []
    for shard in range(shards):
        rows = {file: of_shards[shard] for file, of_shards in counts.items()}
        holders = [file for file in rows if rows[file]] or list(rows)[:1]  # of an empty shard one block tells the columns
        pointers: list[dict[str, object]] = [
            {"block": file, "digest": digests[file], "shard": shard, "types": named} for file in holders
        ]
        sources.append(folder / f"{shard:05d}.parquet")
        write_pointer(sources[-1], pointers, sum(rows.values()))
    remove_strangers(folder, sources)
    return sources


def write_block(path: Path, table: pa.Table, shard_of: npt.NDArray[np.int32], shards: int) -> None:
    """Write `table` with one row group a shard; row i belongs to shard `shard_of[i]`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ordered = table.take(pa.array(np.argsort(shard_of, kind="stable"))).combine_chunks()
    counts = np.bincount(shard_of, minlength=shards)
    with pq.ParquetWriter(path, table.schema, compression="zstd", use_dictionary=False, write_statistics=False) as writer:
        start = 0
        for count in counts.tolist():
            writer.write_table(ordered.slice(start, count), row_group_size=max(1, count))
            start += count


def regroup(
    tables: Iterable[pa.Table], group_of: Callable[[pa.Table], npt.NDArray[np.int32]], groups: int, blocks: Path
) -> Iterator[pa.Table]:
    """The rows of `tables` by group: all those of group 0, then those of group 1, and so on; `group_of` tells each row's.

    In memory at once: one of the tables, or one group. The rest waits on disk in the folder `blocks`, which is deleted.
    """
    shutil.rmtree(blocks, ignore_errors=True)
    files = []
    for number, table in enumerate(tables):
        files.append(blocks / f"{number:05d}.parquet")
        write_block(files[-1], table, group_of(table), groups)
    for group in range(groups):
        yield pa.concat_tables([_row_group(file, group) for file in files])
    shutil.rmtree(blocks)


def _row_group(path: Path, group: int) -> pa.Table:
    with pq.ParquetFile(path) as file:
        return file.read_row_group(group)


def gather(blocks: Path, pointers: pa.Table) -> pa.Table:
    """All rows of a shard, sorted by key and, as a key may stand for several, by what else there is beside the link."""
    tables = []
    for row in pointers.to_pylist():
        path = blocks / row["block"]
        types = {name: pa.type_for_alias(type_) for name, type_ in json.loads(row["types"]).items()}
        with pq.ParquetFile(opened(path), metadata=_metadata(path, row["digest"])) as file:
            tables.append(with_types(file.read_row_group(row["shard"]), types))
    table = pa.concat_tables(tables)
    columns = [
        name for name in table.column_names if name == "key" or ("url" in table.column_names and name not in LINKS.names)
    ]
    return table.sort_by([(name, "ascending") for name in columns]).combine_chunks()


@lru_cache(maxsize=4096)
def _metadata(path: Path, digest: str) -> pq.FileMetaData:
    """A block's footer tells of hundreds of row groups: parsed once, not for each shard. `digest` tells old from new."""
    return pq.read_metadata(opened(path))


def remove_strangers(folder: Path, ours: Sequence[Path]) -> None:
    """Delete the numbered files in `folder` that are not `ours`: what an earlier config left behind."""
    wanted = set(ours)
    for name in names_in(folder):
        if re.match(r"\d.*\.", name) and folder / name not in wanted:
            discard(folder / name)
