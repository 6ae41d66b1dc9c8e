"""Copies of shards elsewhere: nothing half written under its name, nothing twice, nothing of others touched."""

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from filtering import InputError
from filtering.images.mirror import RECORDS, SIZES, Target


@pytest.fixture(params=["memory://bucket/shards", "memory://bucket/a b/ü/c/", "file", "file with spaces/nested/", "path"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    kind: str = request.param
    if kind.startswith("memory"):
        yield kind
        fsspec.filesystem("memory").store.clear()
        fsspec.filesystem("memory").pseudo_dirs[:] = [""]
    else:
        yield f"{tmp_path}/there" if kind == "path" else f"file://{tmp_path}/{kind}"


def listing(url: str) -> dict[str, bytes]:
    """What lies in the folder, without the records."""
    fs, folder = fsspec.core.url_to_fs(url)
    paths = [row["name"] for row in fs.ls(folder, detail=True) if row["type"] == "file"] if fs.exists(folder) else []
    return {path.rpartition("/")[2]: fs.cat_file(path) for path in paths}


def shard(folder: Path, number: int, content: bytes = b"x") -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number:05d}{suffix}" for suffix in (".tar", ".parquet", "_stats.json")]
    for path in paths:
        path.write_bytes(content * 1000 + path.name.encode())
    return paths


def contents(paths: list[Path]) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in paths}


def test_files_arrive_whole_under_their_names(url: str, tmp_path: Path) -> None:
    target = Target(url)
    target.check()
    assert listing(url) == {}
    files = [*shard(tmp_path / "here", 0), *shard(tmp_path / "here", 1)]
    target.push(files[:3])
    target.push(files[3:])
    assert listing(url) == contents(files)
    target.push([])
    assert listing(url) == contents(files)


def test_a_rerun_copies_only_what_changed(url: str, tmp_path: Path) -> None:
    files = [*shard(tmp_path / "here", 0), *shard(tmp_path / "here", 1)]
    target = Target(url)
    target.push(files)
    fs, folder = fsspec.core.url_to_fs(url)
    # What was copied is changed behind our back, with its size: whatever is copied again becomes right again.
    for path in files:
        fs.pipe_file(f"{folder}/{path.name}", bytes(path.stat().st_size))
    files[1].write_bytes(files[1].read_bytes()[::-1])  # of the same size
    target.push(files)
    found = listing(url)
    assert [path for path in files if found[path.name] == path.read_bytes()] == [files[1]]

    fs.rm_file(f"{folder}/{files[3].name}")
    fs.pipe_file(f"{folder}/{files[4].name}", b"cut short")
    target.push(files)
    found = listing(url)
    right = [path for path in files if found[path.name] == path.read_bytes()]
    assert right == [files[1], files[3], files[4]]


def test_many_shards_are_compared_at_once(url: str, tmp_path: Path) -> None:
    files = [path for number in range(12) for path in shard(tmp_path / "here", number)]
    target = Target(url)
    target.push(files)
    assert listing(url) == contents(files)
    fs, folder = fsspec.core.url_to_fs(url)
    fs.pipe_file(f"{folder}/{files[0].name}", bytes(files[0].stat().st_size))  # not to be noticed
    fs.pipe_file(f"{folder}/{files[1].name}", b"cut short")
    fs.rm_file(f"{folder}/{files[35].name}")
    files[20].write_bytes(b"changed")
    target.push(files)
    assert listing(url) == {**contents(files), files[0].name: bytes(files[0].stat().st_size)}
    # Digests that are known are believed: nothing is read.
    target.push(files[21:24], {files[22].name: "0" * 64})
    assert json.loads(fs.cat_file(f"{folder}/{RECORDS}/00007.json"))[files[22].name]["sha256"] == "0" * 64


def test_records_that_were_lost_or_torn_cost_a_copy_and_nothing_else(url: str, tmp_path: Path) -> None:
    files = shard(tmp_path / "here", 3)
    Target(url).push(files)
    fs, folder = fsspec.core.url_to_fs(url)
    for torn in (b"", b'{"00003.tar": {"by'):
        fs.pipe_file(f"{folder}/{RECORDS}/00003.json", torn)
        fs.pipe_file(f"{folder}/00003.tar", b"old")
        Target(url).push(files)
        assert listing(url) == contents(files)


def test_what_says_complete_comes_last(tmp_path: Path) -> None:
    """While a file cannot be copied, `sizes.json` is not there, whatever the order of the call."""
    here = tmp_path / "here"
    files = shard(here, 0)
    (here / SIZES).write_text("{}")
    (tmp_path / "there" / ".00000_stats.json.copying").mkdir(parents=True)  # in the way
    target = Target(f"file://{tmp_path}/there")
    with pytest.raises(InputError, match=r"download\.target.*did not get 00000.*run again") as error:
        target.push([here / SIZES, *files])
    assert "\n" not in str(error.value)
    assert SIZES not in listing(f"file://{tmp_path}/there")
    (tmp_path / "there" / ".00000_stats.json.copying").rmdir()
    target.push([here / SIZES, *files])
    assert listing(f"file://{tmp_path}/there") == contents([here / SIZES, *files])


def test_no_reader_sees_half_a_file(tmp_path: Path) -> None:
    """A reader that looks all the while sees the old file or the new one."""
    (tmp_path / "here").mkdir()
    tar, there = tmp_path / "here" / "00000.tar", tmp_path / "there"
    target = Target(str(there))
    old, new = bytes(30_000_000), bytes([1]) * 30_000_000
    tar.write_bytes(old)
    target.push([tar])
    seen: set[tuple[int, int, int]] = set()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            with (there / "00000.tar").open("rb") as file:
                first = file.read(1)[0]
                size = file.seek(0, os.SEEK_END)
                file.seek(-1, os.SEEK_END)
                seen.add((first, size, file.read(1)[0]))

    reader = threading.Thread(target=look)
    reader.start()
    for content in (new, old, new):
        tar.write_bytes(content)
        target.push([tar])
    done.set()
    reader.join()
    assert seen <= {(0, 30_000_000, 0), (1, 30_000_000, 1)}
    assert (there / "00000.tar").read_bytes() == new


def test_prune_takes_what_is_ours_and_not_wanted(url: str, tmp_path: Path) -> None:
    here = tmp_path / "here"
    files = [path for number in range(3) for path in shard(here, number)]
    (here / SIZES).write_text("{}")
    target = Target(url)
    target.push([*files, here / SIZES])
    fs, folder = fsspec.core.url_to_fs(url)
    strangers = ("notes.txt", "12.tar", "00001.tar.bak", "x00001.tar", "report.html", "00001.json", ".hidden")
    for name in (*strangers, ".00002.tar.copying"):
        fs.pipe_file(f"{folder}/{name}", b"?")
    target.prune({path.name for path in files[:3]})
    assert set(listing(url)) == {*strangers, *(path.name for path in files[:3])}
    assert set(listing(f"{url.rstrip('/')}/{RECORDS}")) == {"00000.json", f"{SIZES}.json"}
    target.push([*files, here / SIZES])  # all of them are copied again
    assert set(listing(url)) == {*strangers, SIZES, *(path.name for path in files)}


def test_prune_of_a_place_that_is_not_there_yet(url: str) -> None:
    Target(url).prune({"00000.tar"})


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "is no URL"),
        ("shards", "is no URL"),
        ("file://shards", "is no URL"),
        ("data:text/plain,x", "is no URL"),
        ("memory://", "names no folder"),
        ("file:///", "names no folder"),
        ("nowhere://bucket/shards", "Protocol not known: nowhere"),
        ("root://host/shards", "fsspec-xrootd"),  # a package that nobody here has
        ("http://user:secret@127.0.0.1:9/shards", "cannot be written"),
        ("zip://x::memory://y", "download.target"),
    ],
)
def test_a_place_that_cannot_be_is_one_line(url: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        Target(url).check()
    assert str(error.value).startswith("download.target: ")
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def test_a_file_in_the_way_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for call in (Target(f"{tmp_path}/file/shards").check, lambda: Target(f"{tmp_path}/file").push(shard(tmp_path / "here", 0))):
        with pytest.raises(InputError, match=r"^download\.target: [^\n]*$"):
            call()


def test_records_name_what_lies_there(tmp_path: Path) -> None:
    files = shard(tmp_path / "here", 7)
    Target(f"{tmp_path}/there").push(files)
    record = json.loads((tmp_path / "there" / RECORDS / "00007.json").read_text())
    assert {name: row["bytes"] for name, row in record.items()} == {path.name: path.stat().st_size for path in files}


def test_what_is_no_longer_there_is_named(url: str, tmp_path: Path) -> None:
    files = [*shard(tmp_path / "here", 0), *shard(tmp_path / "here", 1)]
    sizes = {path.name: path.stat().st_size for path in files}
    assert Target(url).lost(sizes) == dict.fromkeys(sizes, "missing")
    Target(url).push(files)
    assert Target(url).lost(sizes) == {}
    fs, folder = fsspec.core.url_to_fs(url)
    fs.rm_file(f"{folder}/00001.tar")
    fs.pipe_file(f"{folder}/00000.parquet", b"cut short")
    assert Target(url).lost(sizes) == {"00001.tar": "missing", "00000.parquet": "of another size"}
