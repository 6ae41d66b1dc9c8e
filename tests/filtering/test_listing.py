"""Which files of a folder or a pattern are links, and which are what systems, editors and jobs leave there."""

import gzip
from pathlib import Path

import fsspec
import pytest

from filtering import InputError
from filtering.sources import find_files
from helpers.leftovers import LEFTOVER_FOLDERS, LEFTOVERS

LINK = "http://a.example/1\ta dog\n"


def put(path: Path, text: str = LINK) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def names_at(folder: Path, pattern: str = "", format: str = "auto") -> list[str]:
    """The files found, by their way from the folder."""
    return [Path(path).relative_to(folder).as_posix() for path in find_files([f"{folder}/{pattern}"], format)]


@pytest.mark.parametrize("name", [name.replace("cat.png", "links.tsv") for name in LEFTOVERS] + ["._links.tsv", ".links.tsv"])
def test_left_files_are_passed_over_in_folders_and_patterns(tmp_path: Path, name: str) -> None:
    put(tmp_path / "links.tsv")
    put(tmp_path / "_links.tsv")  # a name like others
    put(tmp_path / name, "half")
    assert names_at(tmp_path) == names_at(tmp_path, "*") == ["_links.tsv", "links.tsv"]
    assert names_at(tmp_path, name) == [name]  # asked for by its name


@pytest.mark.parametrize("folder", [*LEFTOVER_FOLDERS, "_temporary", ".hidden/deep"])
def test_left_folders_are_not_looked_into(tmp_path: Path, folder: str) -> None:
    put(tmp_path / "sets" / "links.tsv")
    put(tmp_path / "sets" / folder / "links.tsv")
    assert names_at(tmp_path, "sets") == names_at(tmp_path, "sets/**/*.tsv") == ["sets/links.tsv"]
    assert names_at(tmp_path, f"sets/{folder}/*.tsv") == [f"sets/{folder}/links.tsv"]


def test_left_files_of_tars_and_of_remote_stores(tmp_path: Path) -> None:
    put(tmp_path / "00000.tar")
    put(tmp_path / "._00000.tar", "mac")
    put(tmp_path / "00001.tar", "")
    assert names_at(tmp_path) == names_at(tmp_path, "", "webdataset") == names_at(tmp_path, "*.tar") == ["00000.tar"]
    memory = fsspec.filesystem("memory")
    try:
        for name in ("a.tsv", "._a.tsv", "__MACOSX/a.tsv", "_SUCCESS/a.tsv"):
            memory.pipe(f"/left/{name}", LINK.encode())
        memory.pipe("/left/b.tsv", b"")
        for path in ("memory://left", "memory://left/*", "memory://left/**"):
            assert find_files([path], "auto") == ["memory:///left/a.tsv"]
    finally:
        memory.store.clear()


def test_empty_files_are_passed_over_unless_named(tmp_path: Path) -> None:
    put(tmp_path / "full.tsv")
    for name in ("empty.tsv", "empty.parquet", "empty.jsonl.gz"):
        put(tmp_path / name, "")
    assert names_at(tmp_path) == names_at(tmp_path, "*") == ["full.tsv"]
    assert names_at(tmp_path, "empty.tsv") == ["empty.tsv"]
    (tmp_path / "packed.tsv.gz").write_bytes(gzip.compress(b""))  # which is not empty
    assert names_at(tmp_path, "*.gz") == ["packed.tsv.gz"]
    with pytest.raises(
        InputError, match=r"^filter.source.path: every file of .*/empty\.\* is empty, such as .*/empty.jsonl.gz$"
    ):
        names_at(tmp_path, "empty.*")
    put(tmp_path / "only" / "nothing.tsv", "")
    with pytest.raises(InputError, match=r"^filter.source.path: every file of .*only is empty, such as .*/nothing.tsv$"):
        names_at(tmp_path, "only")


def test_a_pattern_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^filter.source.path: .*/\*\*.tsv is no pattern: .*entire path component.*$"):
        names_at(tmp_path, "**.tsv")


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    put(tmp_path / "sets" / "links.tsv")
    put(tmp_path / "elsewhere" / "more.tsv")
    (tmp_path / "sets" / "up").symlink_to(tmp_path / "sets")
    for name in ("a", "b"):
        (tmp_path / "sets" / name).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "sets" / "gone.tsv").symlink_to(tmp_path / "nothing.tsv")  # to be missed by whoever reads it
    assert names_at(tmp_path, "sets") == ["sets/a/more.tsv", "sets/gone.tsv", "sets/links.tsv"]
