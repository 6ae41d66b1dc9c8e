"""Tars are read strictly: what `tarfile` reads, at the same places, and nothing of what is cut or damaged in silence."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from helpers.tar_files import write
from owseg.shards import ShardReader
from storage import InputError
from storage.tars import BLOCK, DamagedTarError, members

LONG = "folder/" + "n" * 140 + ".jpg"
FILES = [("a.jpg", b"x" * 700), ("b/c d.txt", b""), (LONG, b"y" * 1024), ("ключ.txt", b"z")]
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def files_of(format: str) -> list[tuple[str, bytes]]:
    return [(name.replace("n" * 140, "n" * 60 + "/" + "n" * 60) if format == "ustar" else name, data) for name, data in FILES]


@pytest.mark.parametrize("format", FORMATS)
def test_members_lie_where_tarfile_finds_them(tmp_path: Path, format: str) -> None:
    path = write(tmp_path / "a.tar", files_of(format), format=FORMATS[format])
    with tarfile.open(path) as tar:
        expected = [(member.name, member.offset_data, member.size) for member in tar]
    assert [tuple(member) for member in members(path)] == expected
    assert [name for name, _, _ in expected] == [name for name, _ in files_of(format)]


def test_headers_of_other_kinds_are_passed_over(tmp_path: Path) -> None:
    """Folders, links, and pax records of times, as webdataset's writer makes for each file."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", pax_headers={"comment": "for all"}) as tar:
        for name, kind in (("folder", tarfile.DIRTYPE), ("link", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, "y" * 200, 5 * (kind == tarfile.LNKTYPE)
            tar.addfile(member)
        member = tarfile.TarInfo("a.txt")
        member.size, member.mtime = 3, 1.25
        tar.addfile(member, io.BytesIO(b"abc"))
        expected = [("a.txt", member.size)]
    assert [(name, size) for name, _, size in members(path)] == expected
    assert path.read_bytes()[next(members(path)).offset :][:3] == b"abc"


def test_a_tar_cut_at_any_byte_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", FILES, format=tarfile.GNU_FORMAT)
    whole = path.read_bytes()
    ends = [member.offset - BLOCK for member in members(path)]
    last = list(members(path))[-1]
    for cut in (0, 1, 511, 512, *ends, *(end + 100 for end in ends), last.offset, last.offset + BLOCK, len(whole) // 2 + 7):
        path.write_bytes(whole[: min(cut, last.offset + BLOCK)])
        with pytest.raises(DamagedTarError, match="cut at byte"):
            list(members(path))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda tar: tar[:1536] + bytes(BLOCK) + tar[2048:], "goes on behind its end"),  # a header lost to zeros
        (lambda tar: tar[:1536] + b"\xff" * BLOCK + tar[2048:], "damaged at byte 1536"),
        (lambda tar: tar[:1540] + b"?" + tar[1541:], "damaged at byte 1536"),  # one character of a name
        (lambda tar: tar + tar, "one tar was put behind another"),
        (lambda tar: b"not a tar at all" * 100, "damaged at byte 0"),
        (lambda tar: b"\x1f\x8b" + tar, "damaged at byte 0"),
    ],
)
def test_a_damaged_tar_is_refused(tmp_path: Path, spoil, message: str) -> None:  # type: ignore[no-untyped-def]
    path = write(tmp_path / "a.tar", FILES[:2] + FILES[3:], format=tarfile.GNU_FORMAT)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DamagedTarError, match=message):
        list(members(path))


def test_an_empty_archive_is_whole(tmp_path: Path) -> None:
    assert list(members(write(tmp_path / "a.tar", []))) == []


def test_a_pipe_is_no_tar_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.tar")
    with pytest.raises(InputError, match=r"x\.tar: cannot be read \(not a regular file\)$"):
        ShardReader([tmp_path / "x.tar"])
