"""Reading links from WebDataset tars: published, hostile, cut short."""

import gzip
import io
import json
import re
import tarfile
from collections.abc import Iterable
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from filtering import InputError
from filtering.captions.reader import SourceConfig, parts_of, read_links, read_part
from filtering.schema import HAS_IMAGE, LINKS, SAMPLE, key_of
from helpers.links import URL, write

Files = Iterable[tuple[str, bytes]]


def tar_of(files: Files, mode: str = "w") -> bytes:
    """A tar of (name, content) in that order."""
    result = io.BytesIO()
    with tarfile.open(fileobj=result, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return result.getvalue()


def sample(name: str, url: str = "", caption: str = "a dog", kind: str = "jpg") -> list[tuple[str, bytes]]:
    """A sample as CC12M's tars hold it."""
    told = {"key": name, "url": url, "status": "success", "width": 3}
    return [(f"{name}.{kind}", b"image"), (f"{name}.json", json.dumps(told).encode()), (f"{name}.txt", caption.encode())]


def samples_of(path: Path | str, **settings: str) -> list[tuple[str, str, str]]:
    rows = []
    for table in read_links(SourceConfig(path=str(path), **settings)):  # type: ignore[arg-type]
        assert table.schema == pa.schema([*LINKS, SAMPLE, HAS_IMAGE])
        rows += table.to_pylist()
    for row in rows:
        tar, _, name = row["sample"].partition("::")
        assert row["key"] == key_of(row["url"] or f"{Path(tar).name}::{name}", row["caption"])
    return [(row["sample"].partition("::")[2], row["url"], row["caption"]) for row in rows]


def test_names_that_differ_in_a_leading_folder_that_says_nothing_are_one_sample(tmp_path: Path) -> None:
    write(
        tmp_path / "a.tar", tar_of([("./a.JFIF", b"image"), ("a.txt", b"a dog"), ("./b.jpe", b"image"), ("./b.txt", b"a cat")])
    )
    (table,) = read_links(SourceConfig(path=str(tmp_path / "a.tar")))
    assert table[SAMPLE.name].to_pylist() == [f"{tmp_path / 'a.tar'}::a", f"{tmp_path / 'a.tar'}::b"]
    assert table[HAS_IMAGE.name].to_pylist() == [True, True]


def test_tars_as_they_are_published(tmp_path: Path, memory: fsspec.AbstractFileSystem) -> None:
    first = tar_of([*sample("000000000", URL.format(0), "a  dog &amp; <PERSON>"), *sample("000000001", URL.format(1), "a cat")])
    second = tar_of(sample("000010000", URL.format(2), "a cow", "webp"))
    write(tmp_path / "cc12m-train-0000.tar", first)
    write(tmp_path / "cc12m-train-0001.tar", second)
    write(tmp_path / "00000_stats.json", "{}")
    pq.write_table(pa.table({"url": ["http://a.example/1"], "caption": ["the same rows"]}), tmp_path / "0000.parquet")
    expected = [
        ("000000000", URL.format(0), "a dog & <PERSON>"),
        ("000000001", URL.format(1), "a cat"),
        ("000010000", URL.format(2), "a cow"),
    ]
    assert samples_of(tmp_path) == expected
    assert samples_of(tmp_path, format="webdataset") == samples_of(tmp_path / "*.tar") == expected
    memory.pipe("/wds/0.tar", first)
    memory.pipe("/wds/1.tar", second)
    assert samples_of("memory://wds") == expected
    with pytest.raises(InputError, match="names both tars and tables"):
        samples_of(tmp_path / "*0000.*")


def test_a_tar_is_told_by_content_and_may_be_packed(tmp_path: Path) -> None:
    files = sample("1", URL.format(1))
    for name, mode in (("a", "w"), ("b", "w:gz"), ("c.tar.gz", "w:gz"), ("d.tgz", "w:gz"), ("e.tar", "w:xz")):
        assert samples_of(write(tmp_path / name, tar_of(files, mode))) == [("1", URL.format(1), "a dog")], name


@pytest.mark.parametrize(
    ("files", "row"),
    [
        ({"jpg": "x", "txt": "a dog"}, ("", "a dog")),
        ({"png": "x", "json": {"url": URL, "caption": "a dog"}}, (URL, "a dog")),
        ({"jpeg": "x", "json": {"URL": f" {URL} ", "TEXT": "a dog", "caption": ""}}, (URL, "a dog")),
        ({"webp": "x", "json": {"url": "no url", "alt_text": "a dog"}}, ("", "a dog")),
        ({"JPG": "x", "TXT": "a dog", "json": {"caption": "a cat"}}, ("", "a dog")),
        ({"jpg": "x", "txt": " ", "json": {"caption": "a cat"}}, ("", "a cat")),
        ({"jpg": "x", "txt": "caf\xe9\0", "json": "{"}, ("", "caf\ufffd")),
        ({"jpg": "x", "json": {"caption": 3, "text": None, "url": ["x"]}}, ("", "")),
        ({"jpg": "x", "json": {"caption": "lone \udce9"}}, ("", "lone ?")),
        ({"jpg": "x", "json": "[" * 100_000}, ("", "")),
        ({"jpg": "x", "json": "[1]"}, ("", "")),
        ({"txt": "a dog", "json": {"url": URL}}, (URL, "a dog")),
        ({"seg.png": "x", "txt": "a dog"}, ("", "a dog")),
        ({"jpg": "x"}, ("", "")),
        ({"cls": "3"}, ("", "")),
    ],
)
def test_samples_of_every_make(tmp_path: Path, files: dict[str, object], row: tuple[str, str]) -> None:
    contents = {kind: text if isinstance(text, str) else json.dumps(text) for kind, text in files.items()}
    tar = tar_of((f"a/b.c/0001.{kind}", text.encode("latin-1", "surrogateescape")) for kind, text in contents.items())
    assert samples_of(write(tmp_path / "x.tar", tar)) == [("a/b.c/0001", *row)]


def test_keys_of_samples_stay_when_the_folder_moves(tmp_path: Path) -> None:
    tar = tar_of([*sample("1"), *sample("2", URL.format(2))])
    keys = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "x.tar", tar)
        (table,) = read_links(SourceConfig(path=str(tmp_path / folder)))
        keys.append(table["key"].to_pylist())
        assert table["sample"].to_pylist() == [f"{tmp_path}/{folder}/x.tar::1", f"{tmp_path}/{folder}/x.tar::2"]
    assert keys[0] == keys[1] == [key_of("x.tar::1", "a dog"), key_of(URL.format(2), "a dog")]


def test_hostile_members_are_read_as_streams_or_not_at_all(tmp_path: Path) -> None:
    result = io.BytesIO()
    with tarfile.open(fileobj=result, mode="w") as tar:
        for name, kind in (
            ("1.jpg", tarfile.SYMTYPE),
            ("1.txt", tarfile.LNKTYPE),
            ("1.png", tarfile.CHRTYPE),
            ("d", tarfile.DIRTYPE),
        ):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/hostname"
            tar.addfile(entry)
        for name in ("/absolute/2", "../../3", "./4", "a::b", "caf\udce9", "n" * 300):
            for suffix, content in ((".jpg", b"image"), (".txt", b"a dog")):
                entry = tarfile.TarInfo(name + suffix)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        for name in (".DS_Store", "._5.jpg", "README"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "x.tar", result.getvalue())
    before = sorted(tmp_path.rglob("*"))
    assert [name for name, _, caption in samples_of(tmp_path / "in") if caption] == [
        *("/absolute/2", "../../3", "4", "a::b", "caf\ufffd", "n" * 300)
    ]
    assert sorted(tmp_path.rglob("*")) == before


def urls_until_the_fault(source: SourceConfig) -> tuple[list[str], str]:
    """The URLs that are read before the InputError, and its message."""
    urls: list[str] = []
    try:
        for part in parts_of(source):
            for table in read_part(part):
                urls += table["url"].to_pylist()
    except InputError as error:
        return urls, str(error)
    raise AssertionError("no fault was told")


def test_a_cut_tar_is_read_as_far_as_it_goes_and_named(tmp_path: Path) -> None:
    whole = tar_of([file for i in range(5) for file in sample(f"{i}", URL.format(i))])
    for end in range(0, 15 * 1024 + 512, 512):  # a header or content ends at each of these, the archive's own end comes after
        for cut in (end, end + 100):
            path = write(tmp_path / "x.tar", whole[:cut])
            found, said = urls_until_the_fault(SourceConfig(path=str(path), format="webdataset"))
            assert re.fullmatch(
                r"filter.source.path: the tar .*/x.tar is damaged or cut short \(.+\); fetch it again or .*", said
            )
            assert found == [URL.format(i) for i in range(len(found))]
            assert cut // (3 * 1024) - 1 <= len(found) <= cut // (3 * 1024)
    packed = tar_of([file for i in range(5) for file in sample(f"{i}", URL.format(i))], "w:gz")
    for bad in (packed[:-30], whole[:3072] + b"garbage" * 500, b"no tar"):
        with pytest.raises(InputError, match=r"x.tar is damaged"):
            samples_of(write(tmp_path / "x.tar", bad))
    with pytest.raises(InputError, match="holds no rows"):
        samples_of(write(tmp_path / "x.tar", tar_of([])))


def test_a_packed_table_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    text = "".join(f"{URL.format(i * i)}\ta dog number {i * 7919}\n" for i in range(5000)).encode()
    path = write(tmp_path / "x.tsv.gz", gzip.compress(text)[:-2000])
    found, said = urls_until_the_fault(SourceConfig(path=str(path)))
    assert len(found) > 1000
    assert "not a complete gzip file" in said


def test_two_colons_in_the_path_of_a_tar_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a::b").mkdir()
    write(tmp_path / "a::b" / "x.tar", tar_of(sample("1")))
    with pytest.raises(InputError, match="rename"):
        samples_of(tmp_path / "a::b")


# ---- which members make a sample


def test_keys_with_dots_are_samples_of_their_own(tmp_path: Path) -> None:
    """As the files of recordings, versions and dates are called."""
    for name in ("Track 2.{}", "v1.{}.0", "a.b/photo.{}", "2026.01.{:02}"):
        names = [name.format(number) for number in range(10)]
        tar = tar_of(file for one in names for file in sample(one, URL.format(one), f"a dog by {one}"))
        expected = [(one, URL.format(one), f"a dog by {one}") for one in names]
        assert [row[::2] for row in samples_of(write(tmp_path / "x.tar", tar))] == [row[::2] for row in expected]
        apart = tar_of(sorted((file for one in names for file in sample(one, "", one)), key=lambda file: file[0][-3:]))
        assert sorted(samples_of(write(tmp_path / "x.tar", apart))) == sorted((one, "", one) for one in names)


def test_samples_that_wait_in_memory_stay_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ahead of the others lies one without a caption, whose text may still come; memory is full again and again."""
    monkeypatch.setattr("filtering.tar_samples.MAX_HELD", 10_000)
    files = [("v.0.jpg", b"x" * 3000)]
    files += [(f"v.{i}.{kind}", text) for i in range(1, 30) for kind, text in (("jpg", b"x" * 3000), ("txt", b"%d dogs" % i))]
    assert samples_of(write(tmp_path / "x.tar", tar_of(files))) == [
        ("v.0", "", ""),
        *((f"v.{i}", "", f"{i} dogs") for i in range(1, 30)),
    ]


@pytest.mark.parametrize(
    ("names", "rows"),
    [
        (["a.jpg", "a.seg.png", "a.txt", "b.jpg", "b.txt"], [("a", True), ("b", True)]),
        (["a.seg.png", "a.jpg", "a.txt"], [("a", True)]),
        (["a.jpg", "a.txt", "a.thumb.jpg", "a.thumb.txt"], [("a", True), ("a.thumb", True)]),
        (["x/a.JPG", "x/a.TXT", "y/a.Png", "y/a.txt"], [("x/a", True), ("y/a", True)]),
        (["a.jpg", "b.txt"], [("a", True), ("b", False)]),
        (["a.1.txt", "a.2.txt"], [("a.1", False), ("a.2", False)]),
        (["a.jpg", "a.txt", "a.jpg", "a.txt"], [("a", True), ("a", True)]),
        (["a.cls", "a.txt", "a.webp"], [("a", True)]),
        (["a.tiff", "a.txt"], [("a", False)]),
        (["__MACOSX/._a.jpg", "._a.txt", "a.jpg", "a.txt"], [("a", True)]),
    ],
)
def test_members_make_samples(tmp_path: Path, names: list[str], rows: list[tuple[str, bool]]) -> None:
    tar = tar_of((name, b"a dog") for name in names)
    (table,) = read_links(SourceConfig(path=str(write(tmp_path / "x.tar", tar))))
    found = [row.partition("::")[2] for row in table["sample"].to_pylist()]
    assert list(zip(found, table["has_image"].to_pylist(), strict=True)) == rows


@pytest.mark.parametrize(
    ("told", "captions"),
    [
        ({"caption": ["a dog near a house"]}, ["a dog near a house"]),
        ({"caption": ["a dog ", "a  cat", "a dog"]}, ["a dog", "a cat"]),
        ({"captions": ["a dog", None, 3, "", "a cat"]}, ["a dog", "a cat"]),
        ({"caption": "a dog", "captions": ["a cat", "a dog"]}, ["a dog", "a cat"]),
        ({"caption": [], "text": "a dog"}, ["a dog"]),
        ({"caption": {"en": "a dog"}}, [""]),
        ({"caption": [["a dog"]]}, [""]),
    ],
)
def test_several_captions_of_a_sample(tmp_path: Path, told: dict[str, object], captions: list[str]) -> None:
    tar = tar_of([("1.jpg", b"image"), ("1.json", json.dumps({**told, "url": URL}).encode())])
    assert samples_of(write(tmp_path / "x.tar", tar)) == [("1", URL, caption) for caption in captions]


def test_fields_of_samples_are_kept_with_their_types(tmp_path: Path) -> None:
    told = [{"score": 0.5, "number": 3, "ok": True, "tags": ["a"]}, {"score": 1, "ok": None, "tags": "b"}, {}]
    files = [
        (f"{i}.{kind}", text) for i, one in enumerate(told) for kind, text in (("jpg", b""), ("json", json.dumps(one).encode()))
    ]
    names = ("score", "number", "ok", "tags", "none")
    source = SourceConfig(path=str(write(tmp_path / "x.tar", tar_of(files))), keep_columns=names)
    (table,) = read_links(source)
    assert {name: table[name].to_pylist() for name in names} == {
        "score": [0.5, 1.0, None],
        "number": [3, None, None],
        "ok": [True, None, None],
        "tags": ['["a"]', "b", None],
        "none": [None] * 3,
    }
    assert table.schema.types[-5:] == [pa.float64(), pa.int64(), pa.bool_(), pa.string(), pa.null()]
