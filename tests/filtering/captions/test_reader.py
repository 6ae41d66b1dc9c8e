"""Reading links: what files look like in the wild must neither shift, swallow nor lose a row."""

import gzip
import io
import json
import os
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from filtering import InputError, sources
from filtering.captions.formats import text
from filtering.captions.formats.text import MAX_LINE
from filtering.captions.reader import SourceConfig, parts_of, read_links, read_part, source_fingerprint
from helpers.links import ROWS, URL, rows_of, write


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


def test_links_behind_a_url(tmp_path: Path, memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "PART_BYTES", 50)
    content = "".join("\t".join(row) + "\n" for row in ROWS).encode()
    memory.pipe("/links/a.tsv", content)
    memory.pipe("/links/b.tsv.gz", gzip.compress(content))
    table = io.BytesIO()
    pq.write_table(pa.table({"url": [row[0] for row in ROWS], "text": [row[1] for row in ROWS]}), table)
    memory.pipe("/links/c.parquet", table.getvalue())
    for path in ("memory://links", "memory://links/", "memory://links/*"):
        assert rows_of(path) == ROWS * 3
    assert rows_of("memory://links/*.gz") == ROWS
    write(tmp_path / "a.tsv", content)
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


def test_a_pipe_is_no_source_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "links.tsv")
    with pytest.raises(InputError, match=r"links\.tsv is no regular file, and sources are read several times; save it as one$"):
        rows_of(tmp_path / "links.tsv")
