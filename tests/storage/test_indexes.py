"""Indexes are made once and taken by all who read the tars; what does not fit is made anew, and what cannot be made is told."""

import logging
import os
from multiprocessing import get_context
from pathlib import Path

import pytest

from helpers.tar_files import samples, write
from storage import InputError, indexes
from storage.indexes import IndexFile, indexes_of, read
from storage.tar_index import build, index_path
from storage.tar_reads import LocalTars


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "owseg" / "indexes"


def tars(folder: Path, number: int = 3) -> list[Path]:
    return [write(folder / f"{tar:05}.tar", samples(4 + tar)) for tar in range(number)]


def made(found: list[Path]) -> list[Path]:
    """The tars that asking for indexes makes one of."""
    told: list[tuple[int, int, int]] = []
    before = {tar: index_path(tar).read_bytes() if index_path(tar).exists() else b"" for tar in found}
    indexes_of(found, lambda *numbers: told.append(numbers))
    after = [tar for tar in found if index_path(tar).read_bytes() != before[tar]]
    assert len(told) == len(after)
    return after


def test_they_are_made_once_beside_the_tars(tmp_path: Path) -> None:
    found = tars(tmp_path)
    told: list[tuple[int, int, int]] = []
    assert [index.header.samples for index in indexes_of(found, lambda *numbers: told.append(numbers))] == [4, 5, 6]
    assert told[-1] == (3, 3, 15)
    assert sorted(path.name for path in tmp_path.glob("*")) == sorted(
        f"0000{n}.{s}" for n in range(3) for s in ("tar", "index")
    )
    assert made(found) == []


@pytest.mark.parametrize("spoil", ["cut", "empty", "foreign", "version", "older"])
def test_one_that_does_not_fit_is_made_anew(tmp_path: Path, spoil: str, caplog: pytest.LogCaptureFixture) -> None:
    found = tars(tmp_path)
    indexes_of(found)
    file = index_path(found[1])
    content = file.read_bytes()
    if spoil == "older":
        write(found[1], samples(40))
    else:
        file.write_bytes({
            "cut": content[:-3], "empty": b"", "foreign": b"0\t12\t.jpg\n" * 40, "version": content[:8] + b"\7" + content[9:]
        }[spoil])  # fmt: skip
    with caplog.at_level(logging.WARNING):
        assert made(found) == [found[1]]
    assert f"{file}: " in caplog.text
    assert file.read_bytes() == build(found[1])


def test_a_damaged_one_is_made_anew_when_it_is_read(tmp_path: Path) -> None:
    (tar,) = tars(tmp_path, 1)
    (index,) = indexes_of([tar])
    content = index.file.read_bytes()
    index.file.write_bytes(content[:-1] + b"x")
    assert read(index).key(3) == "0003"
    assert index.file.read_bytes() == content


def test_beside_tars_that_cannot_be_written_to_a_folder_of_the_users_has_them(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tars(tmp_path / "tars")
    write_index = indexes.write_index

    def read_only(tar: Path, file: Path) -> None:
        if file.parent == tar.parent:
            raise OSError(30, "Read-only file system")
        write_index(tar, file)

    monkeypatch.setattr(indexes, "write_index", read_only)
    first = indexes_of(found)
    assert {index.file.parent for index in first} == {cache}
    assert indexes_of(found, lambda *_: pytest.fail("made again")) == first
    cache.chmod(0o500)
    monkeypatch.setattr(indexes, "write_index", lambda tar, file: read_only(tar, tar))
    with pytest.raises(InputError, match=r"00000\.index: cannot be written, nor can .*Read-only file system"):
        indexes_of([write(tmp_path / "more" / "00000.tar", samples(2))])


def test_many_processes_may_ask_at_once(tmp_path: Path) -> None:
    found = tars(tmp_path, 12)
    with get_context("fork").Pool(3) as pool:
        several = pool.map(indexes_of, [found] * 3)
    assert several[0] == several[1] == several[2] == indexes_of(found)
    assert [index.file.read_bytes() for index in several[0]] == [build(tar) for tar in found]
    assert not list(tmp_path.glob(".*"))


def opened(index: IndexFile) -> bytes:
    with LocalTars()(index) as tar:
        return tar.read(0, 4)


def test_a_tar_that_was_replaced_by_one_of_its_size_is_told(tmp_path: Path) -> None:
    (tar,) = tars(tmp_path, 1)
    (index,) = indexes_of([tar])
    assert opened(index) == b"0000"
    content = tar.read_bytes()
    tar.write_bytes(b"1" + content[1:])
    with pytest.raises(InputError, match=r"00000\.index: is the index of another tar than .*00000\.tar; delete it") as caught:
        opened(index)
    assert "\n" not in str(caught.value)
    tar.write_bytes(content + bytes(512))
    with pytest.raises(InputError, match=r"00000\.tar: has been changed"):
        opened(index)
    os.unlink(tar)
    with pytest.raises(InputError, match=r"00000\.tar: cannot be read \(No such file"):
        indexes_of([tar])
