"""Reading links in parts: wherever a file is cut, each row comes once."""

import gzip
import json
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from filtering.captions import reader
from filtering.captions.formats import parquet, text
from filtering.captions.reader import SourceConfig, parts_of, read_part
from filtering.cleaning import clean
from helpers.links import ROWS, URL, rows_of, write

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


def nasty_rows(content: bytes) -> list[tuple[str, str]]:
    """The rows of a text with header, read as a whole by the plainest means."""
    rows = []
    for line in content.split(b"\n")[1:]:
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
        monkeypatch.setattr(text, "PART_BYTES", size)
        tables = [table for part in parts_of(source) for table in read_part(part)]
        found = [row for table in tables for row in zip(*(table[name].to_pylist() for name in ("url", "caption")), strict=True)]
        assert found == expected, size


def test_lines_longer_than_memory_allows_are_cut_alike_in_every_part_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "MAX_LINE", 100)
    source = SourceConfig(path=str(write(tmp_path / "links.tsv", NASTY)))
    whole = rows_of(source.path)
    assert len(whole) == 11
    assert sum(len(caption) > 100 for _, caption in whole) == 0
    for size in (1, 2, 3, 50, 99, 100, 101, 150, 10_000):
        monkeypatch.setattr(text, "PART_BYTES", size)
        assert rows_of(source.path) == whole, size


def test_parts_of_files_with_different_headers_and_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.tsv", "url\tcaption\n" + "".join("\t".join(row) + "\n" for row in ROWS))
    write(tmp_path / "b.tsv", "".join("\t".join(row[::-1]) + "\n" for row in ROWS))
    write(tmp_path / "c.tsv", "id\ttext\turl\n" + "".join(f"{i}\t{caption}\t{url}\n" for i, (url, caption) in enumerate(ROWS)))
    write(tmp_path / "d.tsv", "")
    for size in (1, 40, 10_000):
        monkeypatch.setattr(text, "PART_BYTES", size)
        assert rows_of(tmp_path) == ROWS * 3
    assert all(5 <= part.rows_hint <= 6 for part in parts_of(SourceConfig(path=str(tmp_path))))


def test_parts_are_plain_values(tmp_path: Path) -> None:
    write(tmp_path / "a.tsv", "".join("\t".join(row) + "\n" for row in ROWS))
    (tmp_path / "b.tsv.gz").write_bytes(gzip.compress(b"url\tcaption\nhttp://a.example/1\ta dog\n"))
    pq.write_table(pa.table({"url": ["http://a.example/2"], "text": ["a cat"]}), tmp_path / "c.parquet")
    parts = parts_of(SourceConfig(path=str(tmp_path)))
    assert [part.kind for part in parts] == ["tsv", "tsv", "parquet"]
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
        monkeypatch.setattr(parquet, "PART_ROWS", size)
        found = parts_of(source)
        assert (len(found), sum(part.rows_hint for part in found)) == (parts, 100)
        assert rows_of(source.path) == rows
