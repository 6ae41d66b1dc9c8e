"""The index beside a tar: what it holds, that it depends on the tar alone, and that a wrong one is told from a right one."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from helpers.tar_files import picture, sample, samples, write
from storage import tar_index
from storage.tar_index import LISTED, SEVERAL, SEVERAL_LISTED, UnfitIndexError, build, fingerprint, parse
from storage.tars import BLOCK, members

TWO = {"captions": ["a dog", "a cat"], "caption_entities": [["dog"], ["cat", "dog"]]}
FILES = [
    *sample("a", "a dog", entities=["dog", "lawn"]),
    *sample("b/ключ 2.0", "a dog", entities=["cat"], **TWO),
    *sample("c", "a dog", captions=["a dog", "a cat"]),
    ("d.png", picture(kind="PNG")),
    ("e.txt", b""),
]


def test_what_an_index_holds(tmp_path: Path) -> None:
    tar = write(tmp_path / "a.tar", FILES)
    index = parse(build(tar))
    assert [index.key(number) for number in range(5)] == ["a", "b/ключ 2.0", "c", "d", "e"]
    assert index.names() == ["dog", "lawn", "cat"]
    assert index.entities.tolist() == [0, 1, 0, 2]
    assert index.records["entity_end"].tolist() == [2, 4, 4, 4, 4]
    assert index.records["flags"].tolist() == [LISTED, SEVERAL | SEVERAL_LISTED | LISTED, SEVERAL, 0, 0]
    at = {name: (offset // BLOCK, size) for name, offset, size in members(tar)}
    places = [(int(row["image"]), int(row["image_bytes"])) for row in index.records]
    assert places == [*(at[name] for name in ("a.jpg", "b/ключ 2.0.jpg", "c.jpg", "d.png")), (0, 0)]
    captions = [(int(row["caption"]), int(row["caption_bytes"])) for row in index.records]
    assert captions == [*(at[name] for name in ("a.txt", "b/ключ 2.0.txt", "c.txt")), (0, 0), at["e.txt"]]
    assert index.header.tar_bytes == tar.stat().st_size


def test_the_same_tar_has_the_same_index_wherever_it_lies(tmp_path: Path) -> None:
    tar, other = write(tmp_path / "a.tar", FILES), tmp_path / "there" / "b.tar"
    other.parent.mkdir()
    other.write_bytes(tar.read_bytes())
    os.utime(other, (0, 0))
    assert build(tar) == build(other)


def test_names_that_are_no_text_are_kept(tmp_path: Path) -> None:
    """Bytes of a file's name, and half a character that JSON may hold."""
    files = [("\udcff.jpg", b"x"), ("\udcff.json", json.dumps({"entities": ["\ud800"]}).encode()), ("\udcff.txt", b"a")]
    index = parse(build(write(tmp_path / "a.tar", files)))
    assert (index.key(0), index.names()) == ("\udcff", ["\ud800"])


def test_any_damage_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = build(write(tmp_path / "a.tar", FILES))
    for at in (*range(0, len(whole), 7), len(whole) - 1):
        with pytest.raises(UnfitIndexError):
            parse(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(UnfitIndexError, match=r"is empty|no index of a tar|not whole"):
            parse(whole[:at])
    with pytest.raises(UnfitIndexError, match="not whole"):
        parse(whole + b"x")
    monkeypatch.setattr(tar_index, "VERSION", 2)
    with pytest.raises(UnfitIndexError, match="is an index of version 1, not 2"):
        parse(whole)


def test_another_tar_of_the_same_size_has_another_fingerprint(tmp_path: Path) -> None:
    one = write(tmp_path / "a.tar", samples(20))
    other = write(tmp_path / "b.tar", samples(20, dict.fromkeys(range(20), (".jpg", picture("blue")))))
    assert one.stat().st_size == other.stat().st_size
    found = []
    for tar in (one, other):
        with tar.open("rb") as file:
            found.append(fingerprint(file.fileno(), tar.stat().st_size))
    assert found[0] != found[1]


def test_a_file_that_is_too_large_for_a_record_is_told(tmp_path: Path) -> None:
    """Of 5 GiB, in a sparse file: its size and all that lies behind it are right."""
    tar = write(tmp_path / "a.tar", [("a.jpg", b"x"), ("a.txt", b"x")])
    head, rest = tar.read_bytes()[:BLOCK], tar.read_bytes()[BLOCK:]
    size = 5 << 30
    head = head[:124] + b"\x80" + size.to_bytes(11) + head[136:148] + b" " * 8 + head[156:]
    head = head[:148] + b"%06o\0 " % sum(head) + head[156:]
    with tar.open("wb") as file:
        file.write(head)
        file.seek(BLOCK + size)
        file.write(rest[BLOCK:])
    (record,) = parse(build(tar)).records
    assert record["image_bytes"] == tar_index.TOO_LARGE
    assert record["caption"] == (BLOCK + size + BLOCK) // BLOCK
    assert np.dtype(tar_index.RECORD).itemsize == 36
