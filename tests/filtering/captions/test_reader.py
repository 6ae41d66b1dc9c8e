"""Reading links: what files look like in the wild must neither shift, swallow nor lose a row."""

import gzip
import html
import io
import json
import re
import tarfile
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from filtering import InputError, sources
from filtering.captions import reader
from filtering.captions.reader import SourceConfig, parts_of, read_links, read_part, source_fingerprint
from filtering.cleaning import _CONTROL, _STYLED, clean
from filtering.schema import LINKS, SAMPLE, key_of
from filtering.sources import MAX_LINE
from filtering.url import is_url
from helpers.paths import CAPTIONS, needs

URL = "http://pics.example/{}.jpg"
ROWS = [(URL.format(number), f"a dog number {number} runs") for number in range(5)]


def rows_of(path: Path | str, **settings: str) -> list[tuple[str, str]]:
    tables = list(read_links(SourceConfig(path=str(path), **settings)))  # type: ignore[arg-type]
    assert all(table.schema == LINKS for table in tables)
    rows = [row for table in tables for row in table.to_pylist()]
    assert all(row["key"] == key_of(row["url"], row["caption"]) for row in rows)
    return [(row["url"], row["caption"]) for row in rows]


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("names", [(), ("url", "caption"), ("URL", "TEXT"), ("Image URL", "Alt_Text"), ("src", "alt")])
@pytest.mark.parametrize("order", [1, -1])
def test_header_and_order_are_told_by_content(tmp_path: Path, names: tuple[str, ...], order: int) -> None:
    lines = ["\t".join(row[::order]) for row in ([names] if names else []) + ROWS]
    assert rows_of(write(tmp_path / "links.tsv", "\n".join(lines))) == ROWS


def test_a_first_line_with_a_url_is_data_even_when_a_caption_looks_like_a_name(tmp_path: Path) -> None:
    path = write(tmp_path / "links.tsv", f"caption\t{URL.format(0)}\n" + f"a dog\t{URL.format(1)}\n")
    assert rows_of(path) == [(URL.format(0), "caption"), (URL.format(1), "a dog")]


def test_many_columns_and_explicit_names(tmp_path: Path) -> None:
    path = write(tmp_path / "links.tsv", f"id\turl\tnote\tcaption\n1\t{URL.format(1)}\tseen\ta dog\n2\tshort\n")
    assert rows_of(path) == [(URL.format(1), "a dog"), ("", "2 short")]
    assert rows_of(path, caption_column="note")[0] == (URL.format(1), "seen")
    bare = write(tmp_path / "bare.tsv", f"1\t{URL.format(1)}\tseen\ta dog in the long grass\n")
    assert rows_of(bare) == [(URL.format(1), "a dog in the long grass")]
    assert rows_of(bare, caption_column="3") == [(URL.format(1), "seen")]


def test_quotes_tabs_nul_and_line_ends_stay_in_their_row(tmp_path: Path) -> None:
    lines = [
        f'{URL.format(0)}\t"a quote that never closes',
        f"{URL.format(1)}\ta caption\twith two\ttabs",
        f"{URL.format(2)}\tnul\0s \x0bvertical \x85 next \u2028line",
        f"{URL.format(3)}\tcarriage\rreturn\r",
        "",
        f'{URL.format(4)}\t""double"" \'single\' `back`',
    ]
    assert rows_of(write(tmp_path / "links.tsv", "\n".join(lines))) == [
        (URL.format(0), '"a quote that never closes'),
        (URL.format(1), "a caption with two tabs"),
        (URL.format(2), "nuls vertical next line"),
        (URL.format(3), "carriage return"),
        (URL.format(4), '""double"" \'single\' `back`'),
    ]


def test_tabs_in_a_leading_caption(tmp_path: Path) -> None:
    path = write(tmp_path / "links.tsv", f"a\tdog\truns\t{URL.format(0)}\na cat\t{URL.format(1)}\na cow\t{URL.format(2)}\n")
    assert rows_of(path) == [(URL.format(0), "a dog runs"), (URL.format(1), "a cat"), (URL.format(2), "a cow")]


def test_bom_crlf_and_invalid_utf8(tmp_path: Path) -> None:
    text = (
        b"\xef\xbb\xbfurl\tcaption\r\n"
        + URL.format(0).encode()
        + b"\tcaf\xe9 au lait\r\n"
        + URL.format(1).encode()
        + b"\tok\r\n"
    )
    assert rows_of(write(tmp_path / "links.tsv", text)) == [(URL.format(0), "caf\ufffd au lait"), (URL.format(1), "ok")]


def test_malformed_rows_come_out_with_an_empty_url(tmp_path: Path) -> None:
    path = write(tmp_path / "links.tsv", f"{URL.format(0)}\ta dog\nno tab at all\n{URL.format(1)}\ta cat\n\t\n")
    assert rows_of(path) == [(URL.format(0), "a dog"), ("", "no tab at all"), (URL.format(1), "a cat"), ("", "")]


def test_a_line_without_end_is_one_malformed_row(tmp_path: Path) -> None:
    huge = b"x" * (3 * MAX_LINE) + b"\n"
    path = write(tmp_path / "links.tsv", f"{URL.format(0)}\ta dog\n".encode() + huge + f"{URL.format(1)}\ta cat\n".encode())
    first, middle, last = rows_of(path)
    assert (first, last) == ((URL.format(0), "a dog"), (URL.format(1), "a cat"))
    assert middle[0] == ""
    assert len(middle[1]) < 1000


def test_html_entities_are_resolved(tmp_path: Path) -> None:
    path = write(tmp_path / "links.tsv", f"{URL.format(0)}\tSalt &amp;amp; pepper &#39;n&#39; &quot;fun&quot;\u200b\n")
    assert rows_of(path) == [(URL.format(0), "Salt & pepper 'n' \"fun\"")]


@pytest.mark.parametrize("names", [("URL", "TEXT"), ("image_url", "alt_text"), ("Url", "Caption"), ("link", "title")])
def test_parquet_columns(tmp_path: Path, names: tuple[str, str]) -> None:
    url, caption = names
    table = pa.table({"id": range(5), caption: [row[1] for row in ROWS], url: [row[0] for row in ROWS]})
    pq.write_table(table, tmp_path / "links.parquet")
    assert rows_of(tmp_path / "links.parquet") == ROWS


def test_parquet_types_and_nulls(tmp_path: Path) -> None:
    table = pa.table(
        {"u": pa.array([URL.format(0), None], pa.large_string()), "c": pa.array(["a dog", None]).dictionary_encode()}
    )
    pq.write_table(table, tmp_path / "links.parquet")
    assert rows_of(tmp_path / "links.parquet", url_column="u", caption_column="C") == [(URL.format(0), "a dog"), ("", "")]


def test_gzip_folder_and_glob_read_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "b.tsv.gz").write_bytes(gzip.compress("\n".join("\t".join(row) for row in ROWS[2:]).encode()))
    write(tmp_path / "a.txt", "\n".join("\t".join(row[::-1]) for row in ROWS[:2]))
    write(tmp_path / "notes.md", "no links here")
    write(tmp_path / ".a.tsv", "half a file that somebody is writing")
    assert rows_of(tmp_path) == ROWS
    assert rows_of(tmp_path / "*.tsv*") == ROWS[2:]
    assert rows_of(tmp_path / "*.t*") == ROWS


def test_rows_stream(tmp_path: Path) -> None:
    path = write(tmp_path / "links.tsv", "".join(f"{URL.format(number)}\ta dog\n" for number in range(20_000)))
    first = next(read_links(SourceConfig(path=str(path))))
    assert 0 < first.num_rows < 20_000


@pytest.mark.parametrize(
    ("content", "settings", "said"),
    [
        (None, {}, "no such file"),
        ("", {}, "no rows"),
        ("url\tcaption\n", {}, "no rows"),
        ("a dog\ta cat\n", {}, "filter.source.url_column"),
        ("http://a.example/1\n", {}, "no column beside the URLs"),
        ("http://a.example/1\ta dog\n", {"caption_column": "text"}, "give a number from 1 to 2"),
        ("link\ttext\nhttp://a.example/1\ta dog\n", {"caption_column": "alt"}, "it has: link, text"),
        (b"\xff\xfeu\0r\0l\0\t\0c\0\n\0", {}, "not UTF-8"),
        (b"PAR1 but not really", {}, "not a readable parquet file"),
        (b"PAR1 but not really", {"format": "tsv"}, "not UTF-8"),
    ],
)
def test_mistakes_are_told_in_one_line(
    tmp_path: Path, content: str | bytes | None, settings: dict[str, str], said: str
) -> None:
    path = tmp_path / "links.tsv"
    if content is not None:
        write(path, content)
    with pytest.raises(InputError, match=said) as caught:
        rows_of(path, **settings)
    assert "\n" not in str(caught.value)
    assert "filter.source" in str(caught.value)


def test_more_mistakes(tmp_path: Path) -> None:
    pq.write_table(pa.table({"url": ["http://a.example/1"], "width": [3]}), tmp_path / "links.parquet")
    with pytest.raises(InputError, match=r"filter.source.caption_column: .* it has: url, width"):
        rows_of(tmp_path / "links.parquet")
    with pytest.raises(InputError, match="holds int64, not text"):
        rows_of(tmp_path / "links.parquet", caption_column="width")
    (tmp_path / "cut.tsv.gz").write_bytes(gzip.compress(b"http://a.example/1\ta dog\n" * 1000)[:-20])
    with pytest.raises(InputError, match="not a complete gzip file"):
        rows_of(tmp_path / "cut.tsv.gz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="in the folder"):
        rows_of(tmp_path / "empty")
    with pytest.raises(InputError, match=r"filter.source.path: not set"):
        rows_of("")


# ---- parts

NASTY = b"\n".join(
    [
        b"\xef\xbb\xbfurl\tcaption\r",
        b"http://a.example/1\tcaf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x90\x95 dog\r",
        b'http://a.example/2\t"a quote that never closes',
        b"",
        b"http://a.example/3\tinvalid \xff\xe2\x82 bytes\xc3",
        b"\r",
        b"http://a.example/4\ta\ttab, a nul\0, a lone\rreturn, \xe2\x80\xa8 a separator \xc2\x85 next line\r\r",
        b"no tab at all",
        b"http://a.example/5\t" + b"a very long line " * 12,
        b"\t",
        b"http://a.example/6\t&amp;lt;b&amp;gt; \xef\xbb\xbf mark inside",
        b"http://a.example/7\t" + b"\xf0\x9f\x90\x95" * 30,
        b"x",
        b"http://a.example/8\tno line feed at the end",
    ]
)


def nasty_rows(text: bytes) -> list[tuple[str, str]]:
    """The rows of a text with header, read as a whole by the plainest means."""
    rows = []
    for line in text.split(b"\n")[1:]:
        if line := line.rstrip(b"\r"):
            url, tab, caption = line.decode(errors="replace").partition("\t")
            rows.append((url.strip(), clean(caption)) if tab else ("", clean(url)))
    return rows


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\n\n"])
def test_every_part_size_gives_each_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: bytes) -> None:
    source = SourceConfig(path=str(write(tmp_path / "links.tsv", NASTY + end)))
    expected = nasty_rows(NASTY + end)
    assert len(expected) == 11
    for size in range(1, len(NASTY) + 3) if end == b"\n" else (1, 2, 3, 7, 64, 1000):
        monkeypatch.setattr(reader, "PART_BYTES", size)
        tables = [table for part in parts_of(source) for table in read_part(part)]
        found = [row for table in tables for row in zip(*(table[name].to_pylist() for name in ("url", "caption")), strict=True)]
        assert found == expected, size


def test_lines_longer_than_memory_allows_are_cut_alike_in_every_part_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MAX_LINE", 100)
    source = SourceConfig(path=str(write(tmp_path / "links.tsv", NASTY)))
    whole = rows_of(source.path)
    assert len(whole) == 11
    assert sum(len(caption) > 100 for _, caption in whole) == 0
    for size in (1, 2, 3, 50, 99, 100, 101, 150, 10_000):
        monkeypatch.setattr(reader, "PART_BYTES", size)
        assert rows_of(source.path) == whole, size


def test_parts_of_files_with_different_headers_and_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.tsv", "url\tcaption\n" + "".join("\t".join(row) + "\n" for row in ROWS))
    write(tmp_path / "b.tsv", "".join("\t".join(row[::-1]) + "\n" for row in ROWS))
    write(tmp_path / "c.tsv", "id\ttext\turl\n" + "".join(f"{i}\t{text}\t{url}\n" for i, (url, text) in enumerate(ROWS)))
    write(tmp_path / "d.tsv", "")
    for size in (1, 40, 10_000):
        monkeypatch.setattr(reader, "PART_BYTES", size)
        assert rows_of(tmp_path) == ROWS * 3
    assert all(5 <= part.rows_hint <= 6 for part in parts_of(SourceConfig(path=str(tmp_path))))


def test_parts_are_plain_values(tmp_path: Path) -> None:
    write(tmp_path / "a.tsv", "".join("\t".join(row) + "\n" for row in ROWS))
    (tmp_path / "b.tsv.gz").write_bytes(gzip.compress(b"url\tcaption\nhttp://a.example/1\ta dog\n"))
    pq.write_table(pa.table({"url": ["http://a.example/2"], "text": ["a cat"]}), tmp_path / "c.parquet")
    parts = parts_of(SourceConfig(path=str(tmp_path)))
    assert [part.kind for part in parts] == ["tsv", "tsv.gz", "parquet"]
    again = [reader.Part(**json.loads(json.dumps(asdict(part)))) for part in parts]
    again = [reader.Part(**row) for part in again for row in pa.Table.from_pylist([asdict(part)]).to_pylist()]
    assert again == parts
    assert [sum(table.num_rows for table in read_part(part)) for part in again] == [5, 1, 1]


def test_parquet_is_cut_at_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(URL.format(number), f"a dog number {number}") for number in range(100)]
    urls, captions = zip(*rows, strict=True)
    pq.write_table(pa.table({"url": urls, "text": captions}), tmp_path / "links.parquet", row_group_size=7)
    source = SourceConfig(path=str(tmp_path / "links.parquet"))
    for size, parts in ((1, 15), (20, 5), (1000, 1)):
        monkeypatch.setattr(reader, "PART_ROWS", size)
        found = parts_of(source)
        assert (len(found), sum(part.rows_hint for part in found)) == (parts, 100)
        assert rows_of(source.path) == rows


# ---- columns in the wild

LAION = ("SAMPLE_ID", "URL", "TEXT", "HEIGHT", "WIDTH", "LICENSE", "NSFW", "similarity", "hash", "punsafe", "pwatermark")
DATACOMP = ("uid", "url", "text", "original_width", "original_height", "clip_b32_similarity_score", "face_bboxes", "sha256")
COYO = ("id", "url", "text", "width", "height", "image_phash", "text_length", "clip_similarity_vitb32", "watermark_score")
TEXTS = {"LICENSE": "?", "NSFW": "UNLIKELY", "uid": "0" * 32, "sha256": "f" * 64, "image_phash": "c0ffee"}


@pytest.mark.parametrize("columns", [LAION, DATACOMP, COYO])
@pytest.mark.parametrize("order", [1, -1])
def test_the_columns_of_published_sets_are_found(tmp_path: Path, columns: tuple[str, ...], order: int) -> None:
    urls, captions = zip(*ROWS, strict=True)
    values = {"url": urls, "text": captions}
    table = pa.table({name: values.get(name.lower(), [TEXTS.get(name, 0.5)] * 5) for name in columns[::order]})
    pq.write_table(table, tmp_path / "part-00000.parquet")
    assert rows_of(tmp_path) == ROWS


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_every_kind_of_text_column(tmp_path: Path, kind: pa.DataType) -> None:
    urls, captions = ([*column, None] for column in zip(*ROWS, strict=True))
    table = pa.table({"URL": pa.array(urls).cast(kind), "TEXT": pa.array(captions).cast(kind)})
    pq.write_table(table, tmp_path / "links.parquet")
    assert rows_of(tmp_path / "links.parquet") == [*ROWS, ("", "")]


def test_a_column_of_bytes_is_no_choice_where_a_text_fits(tmp_path: Path) -> None:
    urls, captions = zip(*ROWS, strict=True)
    binary = pa.array([b"\xff\xd8"] * 5)
    picture = pa.array([{"bytes": b"\xff\xd8", "path": "1.jpg"}] * 5)
    columns = {"url": binary, "image": picture, "src": urls, "caption": pa.array([[1]] * 5), "label": captions}
    pq.write_table(pa.table(columns), tmp_path / "links.parquet")
    assert rows_of(tmp_path / "links.parquet") == ROWS
    pq.write_table(pa.table({"image": binary, "caption": captions}), tmp_path / "links.parquet")
    with pytest.raises(InputError, match=r"column 'image' of .* holds binary, not text"):
        rows_of(tmp_path / "links.parquet")


def test_parquet_text_that_is_no_utf8(tmp_path: Path) -> None:
    broken = pa.StringArray.from_buffers(2, *pa.array([b"caf\xe9 au lait", b"a dog"]).buffers()[1:])
    pq.write_table(pa.table({"url": [URL.format(0), URL.format(1)], "caption": broken}), tmp_path / "links.parquet")
    assert rows_of(tmp_path) == [(URL.format(0), "caf\ufffd au lait"), (URL.format(1), "a dog")]


# ---- anywhere


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()


def test_links_behind_a_url(tmp_path: Path, memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "PART_BYTES", 50)
    text = "".join("\t".join(row) + "\n" for row in ROWS).encode()
    memory.pipe("/links/a.tsv", text)
    memory.pipe("/links/b.tsv.gz", gzip.compress(text))
    table = io.BytesIO()
    pq.write_table(pa.table({"url": [row[0] for row in ROWS], "text": [row[1] for row in ROWS]}), table)
    memory.pipe("/links/c.parquet", table.getvalue())
    for path in ("memory://links", "memory://links/", "memory://links/*"):
        assert rows_of(path) == ROWS * 3
    assert rows_of("memory://links/*.gz") == ROWS
    write(tmp_path / "a.tsv", text)
    assert rows_of(f"file://{tmp_path}/a.tsv") == ROWS
    with pytest.raises(InputError, match=r"filter.source.path: no such file: memory://nothing"):
        rows_of("memory://nothing.tsv")
    with pytest.raises(InputError, match=r"filter.source.path: gopher://a/b.tsv cannot be opened: Protocol not known"):
        rows_of("gopher://a/b.tsv")


def test_a_relative_path_is_found_from_any_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "links.tsv", "".join("\t".join(row) + "\n" for row in ROWS))
    monkeypatch.chdir(tmp_path)
    (part,) = parts_of(SourceConfig(path="links.tsv"))
    monkeypatch.chdir("/")
    assert sum(table.num_rows for table in read_part(part)) == 5


def test_the_fingerprint_tells_contents_and_not_places(
    tmp_path: Path, memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fingerprint(path: object) -> object:
        found = source_fingerprint(SourceConfig(path=str(path)))
        assert json.loads(json.dumps(found)) == found
        return found

    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "a.tsv", "http://a.example/1\ta dog\n")
    first = fingerprint(tmp_path / "one")
    assert first == fingerprint(tmp_path / "two")
    write(tmp_path / "two" / "a.tsv", "http://a.example/1\ta cat\n")
    assert first != fingerprint(tmp_path / "two")
    monkeypatch.setattr(sources, "MAX_HASHED", 10)
    told = (tmp_path / "one" / "a.tsv").stat()
    assert fingerprint(tmp_path / "one") == [["a.tsv", [told.st_size, told.st_mtime_ns]]]
    memory.pipe("/a.tsv", b"http://a.example/1\ta dog\n")
    before = fingerprint("memory://a.tsv")
    assert before == fingerprint("memory://a.tsv")
    memory.pipe("/a.tsv", b"http://a.example/1\ta cat or so\n")
    assert before != fingerprint("memory://a.tsv")


# ---- WebDataset tars

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
        assert table.schema == pa.schema([*LINKS, SAMPLE])
        rows += table.to_pylist()
    for row in rows:
        tar, _, name = row["sample"].partition("::")
        assert row["key"] == key_of(row["url"] or f"{Path(tar).name}::{name}", row["caption"])
    return [(row["sample"].partition("::")[2], row["url"], row["caption"]) for row in rows]


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
        ({"txt": "a dog", "json": {"url": URL}}, (URL, "")),
        ({"seg.png": "x", "txt": "a dog"}, ("", "")),
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
        *("/absolute/2", "../../3", "./4", "a::b", "caf\ufffd", "n" * 300)
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


# ---- cleaning


def plainly_clean(caption: str) -> str:
    """What `clean` means, without its short cut."""
    if "&" in caption:
        caption = html.unescape(html.unescape(caption))
    caption = _STYLED.sub(lambda match: unicodedata.normalize("NFKC", match[0]), caption)
    return " ".join(_CONTROL.sub("", unicodedata.normalize("NFC", caption)).split())


def test_the_short_cut_of_cleaning_changes_nothing() -> None:
    pieces = [
        "a",
        "Z",
        " ",
        "  ",
        "&amp;",
        "&",
        "\t",
        "\n",
        "\r",
        "\0",
        "\x0b",
        "\x1c",
        "\x7f",
        "\x85",
        "\xa0",
        "e\u0301",
        "\u200b",
    ]
    pieces += ["\u2028", "\u3000", "\ufeff", "\U0001f415", "~", "!", ""]
    for first in pieces:
        for second in pieces:
            for third in pieces:
                caption = first + second + third
                assert clean(caption) == plainly_clean(caption), repr(caption)
    for code in range(0x3000):
        assert clean(f" a{chr(code)} ") == plainly_clean(f" a{chr(code)} "), hex(code)


@needs(CAPTIONS)
def test_the_short_cut_of_cleaning_changes_nothing_on_real_captions() -> None:
    captions = (CAPTIONS / "cc3m_validation.tsv").read_text(encoding="utf-8").split("\n")
    captions += pq.read_table(CAPTIONS / "web_alt_text_10k.parquet")["TEXT"].to_pylist()
    assert len(captions) > 25_000
    assert [clean(caption) for caption in captions] == [plainly_clean(caption) for caption in captions]


# ---- URLs


@pytest.mark.parametrize(
    "url",
    [
        "http://a.example/1.jpg",
        "HTTPS://A.EXAMPLE",
        "https://bücher.example/ä?q=1#x",
        "http://[::1]:8080/x",
        "http://10.0.0.1:80",
    ],
)
def test_urls(url: str) -> None:
    assert is_url(url)


@pytest.mark.parametrize(
    "url", ["", "a dog", "ftp://a.example/1", "http://", "http:///x", "http://?x", "data:image/png;base64,xx", "//a.example/x",
            "http://a.example/with space", "http://user:pw@a.example/", "http://a.example/" + "x" * 3000]
)  # fmt: skip
def test_not_urls(url: str) -> None:
    assert not is_url(url)
