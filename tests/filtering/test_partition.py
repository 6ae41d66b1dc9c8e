"""The shuffle in one step and in two, against sorting all rows."""

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from filtering import partition
from filtering.files import digest_of_file
from filtering.partition import gather, point_at_shards, regroup, write_block
from filtering.shards import Marker, rows_of, run_local

SHARDS = 11
EMPTY = 4
"""A shard without rows; those from 9 on make a group that has none but in the last block."""


def blocks_in(folder: Path, seed: int, blocks: int = 5) -> tuple[pa.Table, list[Marker]]:
    """Some blocks of random rows, their number among the columns as text or as numbers, and the markers of who wrote them."""
    draw = random.Random(seed)
    tables, markers = [], []
    for number in range(blocks):
        choice = [shard for shard in range(SHARDS) if shard != EMPTY and (shard < 9 or number == blocks - 1)]
        shard_of = np.array([draw.choice(choice) for _ in range(40)], np.int32)
        keys = [f"{draw.randrange(10**9):09d}" for _ in shard_of]
        block = pa.table({"key": keys, "number": pa.nulls(40) if number == 0 else [number] * 40})
        write_block(folder / f"{number:05d}.parquet", block, shard_of, SHARDS)
        digest = digest_of_file(folder / f"{number:05d}.parquet")
        markers.append(Marker(shard=f"{number:05d}", fingerprint="", counts={}, files={f"{number:05d}.parquet": digest}))
        tables.append(block.append_column("shard", pa.array(shard_of)).cast(pa.schema(SCHEMA)))
    return pa.concat_tables(tables), markers


SCHEMA = [("key", pa.string()), ("number", pa.int64()), ("shard", pa.int32())]


@pytest.mark.parametrize("fan_out", [256, 3])
def test_every_row_is_in_its_shard(fan_out: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition, "FAN_OUT", fan_out)
    monkeypatch.setattr(partition, "BLOCK_ROWS", 70)
    rows, markers = blocks_in(tmp_path / "blocks", seed=1)
    sources = point_at_shards(tmp_path / "shards", tmp_path / "blocks", markers, SHARDS, run_local)
    assert (tmp_path / "blocks" / "spread").exists() == (fan_out == 3)
    assert [source.name for source in sources] == [f"{shard:05d}.parquet" for shard in range(SHARDS)]
    for shard, source in enumerate(sources):
        wanted = rows.filter(pc.equal(rows["shard"], shard)).drop_columns(["shard"]).sort_by("key")
        found = gather(tmp_path / "blocks", pq.read_table(source))
        assert found.to_pylist() == wanted.to_pylist()
        assert found.column_names == wanted.column_names
        assert rows_of(source) == wanted.num_rows
    assert (rows["shard"].to_numpy() != EMPTY).all()


def test_a_shard_is_gathered_from_few_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition, "FAN_OUT", 3)
    monkeypatch.setattr(partition, "BLOCK_ROWS", 10**6)
    _, markers = blocks_in(tmp_path / "blocks", seed=2, blocks=20)
    sources = point_at_shards(tmp_path / "shards", tmp_path / "blocks", markers, SHARDS, run_local)
    assert max(pq.read_table(source).num_rows for source in sources) == 1
    again = point_at_shards(tmp_path / "shards", tmp_path / "blocks", markers[:1], SHARDS, run_local)
    assert [path.name for path in (tmp_path / "blocks").glob("0*")] == ["00000.parquet"]
    assert sum(map(rows_of, again)) == 40


@pytest.mark.parametrize("fan_out", [256, 2, 3])
def test_rows_by_group_in_any_number_of_steps(fan_out: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition, "FAN_OUT", fan_out)
    monkeypatch.setattr(partition, "BLOCK_ROWS", 20)
    draw = random.Random(5)
    rows = [{"group": draw.choice([0, 1, 3, 4, 5, 9]), "number": number} for number in range(200)]
    tables = [pa.Table.from_pylist(rows[start : start + 30]) for start in range(0, 200, 30)]
    groups = 11
    found = list(regroup(iter(tables), lambda table: table["group"].to_numpy().astype(np.int32), groups, tmp_path / "blocks"))
    assert [table.to_pylist() for table in found] == [[row for row in rows if row["group"] == group] for group in range(groups)]
    assert not (tmp_path / "blocks").exists()
