"""A store as an fsspec file system, as pyarrow and Ray Train use one."""

import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import FileSelector, FileType, FSSpecHandler, PyFileSystem, copy_files

from helpers.s3 import S3, Fault
from storage.client import Store
from storage.filesystem import StoreFileSystem, filesystem_of


@pytest.fixture
def store(s3: S3) -> Store:
    return Store(f"{s3.make_bucket(f'b-{uuid.uuid4().hex}')}/run")


def test_folders_go_there_and_back(store: Store, s3: S3, tmp_path: Path) -> None:
    source, back = tmp_path / "checkpoint", tmp_path / "back"
    (source / "deeper").mkdir(parents=True)
    (source / "weights").write_bytes(b"w" * 100_000)
    (source / "empty.txt").touch()
    (source / "deeper" / "list").write_text("a")
    files = PyFileSystem(FSSpecHandler(StoreFileSystem(store)))
    before = len(s3.requests)
    s3.faults = lambda method, path, number: Fault(status=503, code="SlowDown") if number in (before, before + 3) else None
    copy_files(str(source), "train/checkpoint", destination_filesystem=files)
    copy_files("train/checkpoint", str(back), source_filesystem=files)
    assert {path.relative_to(back).as_posix() for path in back.rglob("*")} == {"weights", "empty.txt", "deeper", "deeper/list"}
    assert (back / "weights").read_bytes() == b"w" * 100_000
    found = files.get_file_info(FileSelector("train", recursive=False))
    assert [(info.base_name, info.type) for info in found] == [("checkpoint", FileType.Directory)]
    files.delete_dir("train/checkpoint")
    assert files.get_file_info("train/checkpoint").type == FileType.NotFound
    assert list(store.entries()) == []


def test_a_row_group_is_read_without_the_rest(store: Store, s3: S3) -> None:
    files = PyFileSystem(FSSpecHandler(StoreFileSystem(store)))
    table = pa.table({"text": [f"{number:0100d}" for number in range(100_000)]})
    pq.write_table(table, "t.parquet", filesystem=files, row_group_size=1000, compression="none", use_dictionary=False)
    assert pq.ParquetFile("t.parquet", filesystem=files).read_row_group(7)["text"][0].as_py() == f"{7000:0100d}"


def test_a_file_whose_writing_failed_is_not_there(store: Store) -> None:
    files = StoreFileSystem(store)
    file = files.open("half", "wb")
    file.write(b"some")
    file.__exit__(RuntimeError, RuntimeError(), None)
    assert not files.exists("half")


def test_links_are_found_by_folder_pattern_and_name(store: Store) -> None:
    for name in ("a.tsv", "b.tsv", "deeper/c.tsv"):
        store.put(f"links/{name}", b"x")
    files, name = filesystem_of(f"{store.url}/links")
    assert sorted(files.find(name)) == ["run/links/a.tsv", "run/links/b.tsv", "run/links/deeper/c.tsv"]
    assert sorted(files.glob(f"{name}/*.tsv")) == ["run/links/a.tsv", "run/links/b.tsv"]
    assert files.isdir(name)
    assert files.isfile(f"{name}/a.tsv")
    assert files.unstrip_protocol("run/links/a.tsv") == f"{store.url}/links/a.tsv"
    before = files.ukey("run/links/a.tsv")
    store.put("links/a.tsv", b"y")
    assert files.ukey("run/links/a.tsv") != before
