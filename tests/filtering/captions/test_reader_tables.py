"""Tables as programs write them: columns without names, headers, quotes, several captions, formats, packings."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from filtering import InputError
from filtering.captions.formats import text
from filtering.captions.reader import SourceConfig, parts_of, read_links
from helpers.links import ROWS, URL, rows_of, write

URLS, CAPTIONS = (list(column) for column in zip(*ROWS, strict=True))
FRAME = pd.DataFrame({"url": URLS, "caption": CAPTIONS})


def refused(path: Path | str, said: str, **settings: Any) -> None:
    with pytest.raises(InputError, match=said) as caught:
        rows_of(path, **settings)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("filter.source")


# ---- columns without a name, and of one name


@pytest.mark.parametrize(
    ("frame", "options"),
    [
        (FRAME, {}),
        (FRAME[["caption", "url"]], {}),
        (FRAME.set_index("caption"), {}),
        (FRAME.rename_axis("id"), {}),
        (FRAME.set_index(pd.MultiIndex.from_product([["a"], range(5)])), {}),
        (FRAME, {"index": False}),
        (FRAME, {"index": False, "header": False}),
        (FRAME, {"header": False}),
        (FRAME, {"index_label": False}),  # no name over the index, as R writes
        (FRAME, {"quoting": 1}),
        (FRAME.assign(note=None), {}),
        (FRAME.assign(score=0.5), {}),
    ],
)
@pytest.mark.parametrize(("name", "delimiter"), [("x.tsv", "\t"), ("x.csv", ","), ("x.csv", ";"), ("x.tsv.gz", "\t")])
def test_text_tables_of_pandas(tmp_path: Path, frame: pd.DataFrame, options: dict[str, Any], name: str, delimiter: str) -> None:
    frame.to_csv(tmp_path / name, sep=delimiter, **options)
    assert rows_of(tmp_path / name) == ROWS


@pytest.mark.parametrize(
    ("lines", "settings"),
    [
        (["url\tcaption\t", "{}\t{}\t"], {}),
        (["url\tcaption\t", "{}\t{}"], {}),
        (["url\tcaption", "{}\t{}\t"], {}),
        (["url\tcaption\t\t", "{}\t{}\t\t"], {}),
        (["\turl\t\tcaption", "7\t{}\t8\t{}"], {}),
        (["\t\turl\tcaption", "a text as well\t\t{}\t{}"], {}),
        (["url\turl\tcaption", "none\t{}\t{}"], {}),
        (["url\tcaption\tcaption", "{}\t{}\tan older caption"], {}),
        (["x\ty", "{}\t{}"], {"header": "yes", "url_column": "x", "caption_column": "y"}),
        (["url\tcaption\tlonger text", "{}\t{}\tthe description of the whole page on which it stood"], {}),
        (["url\tcaption\t", "{}\t{}\tunder no name"], {}),
        (["{}\t{}\t"], {}),
        (["a\tb\tc", "7\t{}\t{}"], {"header": "yes", "url_column": "2", "caption_column": "3"}),
    ],
)
def test_headers_with_empty_and_repeated_names(tmp_path: Path, lines: list[str], settings: dict[str, str]) -> None:
    *header, row = lines
    path = write(tmp_path / "links.tsv", "\n".join([*header, *(row.format(*links) for links in ROWS)]))
    assert rows_of(path, **settings) == ROWS


def test_parquet_columns_of_one_name_are_read_by_their_positions(tmp_path: Path) -> None:
    numbers = pa.array(range(5))
    nested = pa.array([{"url": "inside", "n": [1]}] * 5)
    for names, columns, settings in (
        (["url", "url", "caption"], [numbers, URLS, CAPTIONS], {}),
        (["caption", "url", "caption"], [numbers, URLS, CAPTIONS], {}),
        (["url", "caption", "caption", "url"], [URLS, CAPTIONS, [None] * 5, numbers], {}),
        (["meta", "", "url", "", "caption"], [nested, numbers, URLS, numbers, CAPTIONS], {}),
        (["url", "url", "caption", "caption"], [pa.nulls(5), URLS, pa.nulls(5, pa.string()), CAPTIONS], {}),
        (["url", "caption", "text"], [URLS, pa.nulls(5, pa.string()), CAPTIONS], {}),
        (["", ""], [CAPTIONS, URLS], {"url_column": "2", "caption_column": "1"}),
        (["x", "x"], [URLS, CAPTIONS], {"url_column": "1", "caption_column": "2"}),
    ):
        pq.write_table(pa.Table.from_arrays(list(map(pa.array, columns)), names=names), tmp_path / "x.parquet")
        assert rows_of(tmp_path / "x.parquet", **settings) == ROWS, names


def test_kept_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    columns = [*map(pa.array, (URLS, CAPTIONS, range(5), range(5)))]
    pq.write_table(pa.Table.from_arrays(columns, names=["url", "caption", "s", "s"]), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"^filter.source.keep_columns: \S+x.parquet has 2 columns 's'; rename one of them$"):
        rows_of(tmp_path / "x.parquet", keep_columns=("s",))


def test_a_column_is_found_in_either_way_of_writing_its_accents(tmp_path: Path) -> None:
    pq.write_table(pa.table({"u\u0308rl": URLS, "caption": CAPTIONS}), tmp_path / "x.parquet")
    assert rows_of(tmp_path / "x.parquet", url_column="\u00fcrl") == ROWS


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"ARROW1\0\0", "an Arrow file; write it as parquet"),
        (b"PK\x03\x04\x14\0", r"a zip archive \(or a spreadsheet\); unpack it, or save it as CSV"),
        (b'[{"url": "http://a.example/1", "caption": "a dog"}]', "one JSON list; write an object a line, as JSON Lines"),
        (b'\n[ \r\n {"url": "http://a.example/1"}]', "one JSON list; write an object a line, as JSON Lines"),
    ],
)
def test_formats_that_are_not_read_are_named(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "links").write_bytes(content)
    with pytest.raises(InputError, match=f"^filter.source.path: \\S+links is {told}$"):
        rows_of(tmp_path / "links")


def test_integers_that_no_double_holds_are_kept_beside_fractions_as_text(tmp_path: Path) -> None:
    lines = [
        {"url": url, "caption": "a dog", "id": number} for url, number in zip(URLS, [0.5, 2**53 + 1, 3, None, 1], strict=True)
    ]
    write(tmp_path / "x.jsonl", "\n".join(map(json.dumps, lines)))
    tables = list(read_links(SourceConfig(path=str(tmp_path / "x.jsonl"), keep_columns=("id",))))
    assert pa.concat_tables(tables)["id"].to_pylist() == ["0.5", "9007199254740993", "3", None, "1"]


def test_partitions_without_rows_or_values_are_no_fault(tmp_path: Path) -> None:
    """A type is judged where there are values: pandas gives columns without any a type of its own choice."""
    table = pa.table({"url": URLS, "caption": CAPTIONS})
    nothing = pd.DataFrame({"url": [], "caption": []})
    nothing.to_parquet(tmp_path / "0.parquet")
    nothing.astype("float64").to_parquet(tmp_path / "1.parquet")
    pq.write_table(pa.table({}), tmp_path / "2.parquet")
    pq.write_table(table, tmp_path / "3.parquet")
    pd.DataFrame({"url": [None, None], "caption": ["a dog", None]}).to_parquet(tmp_path / "4.parquet")
    pd.DataFrame({"url": [float("nan")], "caption": [None]}).to_parquet(tmp_path / "5.parquet")
    pq.write_table(
        pa.table({"url": pa.nulls(1, pa.int32()), "caption": pa.nulls(1, pa.list_(pa.null()))}), tmp_path / "6.parquet"
    )
    assert rows_of(tmp_path) == [*ROWS, ("", "a dog"), ("", ""), ("", ""), ("", "")]
    pq.write_table(pa.table({"url": [1], "caption": ["a dog"]}), tmp_path / "7.parquet")
    refused(tmp_path, r"column 'url' of .*/7.parquet holds int64, not text")


# ---- damage


def test_damage_behind_a_good_footer(tmp_path: Path) -> None:
    table = pa.table({"url": [URL.format(i * i) for i in range(3000)], "caption": [f"dog {i * 7919}" for i in range(3000)]})
    for number, options in enumerate(({}, {"compression": "none"}, {"compression": "zstd", "write_page_checksum": True})):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(table, path, use_dictionary=False, row_group_size=1000, **options)
        content = bytearray(path.read_bytes())
        middle = pq.read_metadata(path).row_group(1).column(0).data_page_offset
        content[middle : middle + 400] = bytes(400)
        path.write_bytes(content)
        refused(path, rf"{path} is not a readable parquet file \(.+\); fetch it again or take it away")
    path.write_bytes(content[: len(content) // 2])
    refused(path, "is not a readable parquet file")


@pytest.mark.parametrize(
    ("suffix", "pack", "codec"),
    [
        (".gz", gzip.compress, "gzip"),
        (".bz2", bz2.compress, "bzip2"),
        (".xz", lzma.compress, "xz"),
        (".zst", lambda content: pa.compress(content, "zstd", asbytes=True), "zstd"),
    ],
)
@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl", "ndjson"])
def test_packed_tables_and_cut_ones(tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes], codec: str, kind: str) -> None:
    content = CONTENTS[kind](ROWS).encode()
    assert rows_of(write(tmp_path / f"x.{kind}{suffix}", pack(content))) == ROWS
    assert rows_of(tmp_path) == ROWS
    many = [(URL.format(i * i), f"a dog number {i * 7919}") for i in range(500)]
    packed = pack(CONTENTS[kind](many).encode())
    refused(write(tmp_path / f"x.{kind}{suffix}", packed[: len(packed) * 2 // 3]), f"not a complete {codec} file")


def test_members_of_a_gzip_file_follow_each_other(tmp_path: Path) -> None:
    lines = ["\t".join(row) + "\n" for row in ROWS]
    assert rows_of(write(tmp_path / "x.tsv.gz", b"".join(gzip.compress(line.encode()) for line in lines))) == ROWS


# ---- quotes


def _quoted(value: str) -> str:
    return '"' + value.replace('"', '""') + '"'


def test_line_feeds_in_quoted_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captions = ["a dog\non a mat", 'a "big"\n\n\ncat', "a cow\tin\r\nthe rain", "a plain one", 'a 5" pipe', ""]
    urls = [URL.format(i) for i in range(6)]
    expected = list(zip(urls, ["a dog on a mat", 'a "big" cat', "a cow in the rain", *captions[3:]], strict=True))
    monkeypatch.setattr(text, "PART_BYTES", 30)
    for name, delimiter in (("x.tsv", "\t"), ("x.csv", ","), ("y.csv", "|"), ("x.tsv.gz", "\t")):
        pd.DataFrame({"url": urls, "caption": captions}).to_csv(tmp_path / name, sep=delimiter, index=False)
        assert rows_of(tmp_path / name) == expected, name
    pl.DataFrame({"caption": captions, "url": urls}).write_csv(tmp_path / "p.tsv", separator="\t", quote_style="always")
    assert rows_of(tmp_path / "p.tsv") == expected
    lines = [f'"{url}"\t"{caption.replace(chr(34), chr(92) + chr(34))}"' for url, caption in zip(urls, captions, strict=True)]
    assert rows_of(write(tmp_path / "b.tsv", "\n".join(lines))) == expected  # a quote behind a backslash


@pytest.mark.parametrize(
    "caption",
    ['5" pipe', '"a quote that never closes', 'a "quoted" word', '"begins" with one', 'ends "so"', '"', '"all of it"'],
)
def test_stray_quotes_are_text_and_stay_in_their_row(tmp_path: Path, caption: str) -> None:
    rows = [ROWS[0], (URL.format(7), caption), *ROWS[1:]]
    assert rows_of(write(tmp_path / "x.tsv", "".join(f"{url}\t{text}\n" for url, text in rows))) == rows
    assert rows_of(tmp_path / "x.tsv", quoting="no") == rows


def test_a_stray_quote_in_a_csv_takes_no_other_row(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", f'url,caption\n{URL.format(0)},"a quote that never closes\n{URL.format(1)},a "b" c\n')
    assert rows_of(path) == [(URL.format(0), '"a quote that never closes'), (URL.format(1), 'a "b" c')]


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("quoting", ["auto", "yes", "no"])
def test_quotes_never_enclose_a_row(tmp_path: Path, order: int, quoting: str) -> None:
    rows = [(URL.format(0), '"it opens here'), (URL.format(1), 'and closes there"'), ROWS[2]]
    path = write(tmp_path / "x.tsv", "".join("\t".join(row[::order]) + "\n" for row in rows))
    assert rows_of(path, quoting=quoting) == rows


def test_ambiguous_quotes_are_refused_and_settled_by_a_setting(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tsv", f'url\tcaption\n{URL.format(0)}\t"a dog\non a mat"\n{URL.format(1)}\t5" pipe\n')
    refused(
        path,
        r"^filter.source.quoting: .*x.tsv has quotes that .*\('.*\"a dog'\).*\('.*5\" pipe'\); set it to yes, .* or to no$",
    )
    assert rows_of(path, quoting="yes") == [(URL.format(0), "a dog on a mat"), (URL.format(1), '5" pipe')]
    assert rows_of(path, quoting="no") == [(URL.format(0), '"a dog'), ("", 'on a mat"'), (URL.format(1), '5" pipe')]


# ---- formats and paths

CONTENTS: dict[str, Callable[[list[tuple[str, str]]], str]] = {
    "tsv": lambda rows: "".join(f"{url}\t{caption}\n" for url, caption in rows),
    "csv": lambda rows: "url,caption\n" + "".join(f"{url},{_quoted(caption)}\n" for url, caption in rows),
    "jsonl": lambda rows: "".join(json.dumps({"caption": caption, "url": url}) + "\n" for url, caption in rows),
    "ndjson": lambda rows: "\n".join(json.dumps({"n": 1, "URL": url, "TEXT": caption}) for url, caption in rows),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_formats_are_told_by_name_and_cut_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    write(tmp_path / f"X.{kind.upper()}", CONTENTS[kind](ROWS))
    assert rows_of(tmp_path) == ROWS
    for size in (1, 50, 117):
        monkeypatch.setattr(text, "PART_BYTES", size)
        assert rows_of(tmp_path) == ROWS, size


def test_json_lines_by_content_and_odd_lines(tmp_path: Path) -> None:
    lines = [
        json.dumps({"id": 1, "url": URL.format(0), "caption": "a dog"}),
        json.dumps({"caption": "a\ncat \ud800", "url": URL.format(1)}),
        "",
        "{broken",
        "[1]",
        json.dumps({"url": 7, "caption": None}),
        json.dumps({"id": 3}),
    ]
    expected = [(URL.format(0), "a dog"), (URL.format(1), "a cat ?"), ("", "{broken"), ("", "[1]"), ("", "")]
    path = write(tmp_path / "links", "\n".join(lines))
    refused(path, r"the field 'url' of .* holds no text")  # a number where links are wanted
    path = write(tmp_path / "links", "\n".join(line for line in lines if '"url": 7' not in line))
    assert rows_of(path) == expected
    refused(write(tmp_path / "x.jsonl", "a dog\na cat\n"), "no JSON object in its first lines")
    refused(write(tmp_path / "x.jsonl", '{"a": 1}'), r"filter.source.url_column: no column that looks like the urls .*: a$")


def test_several_paths_braces_and_the_missing_one(tmp_path: Path) -> None:
    for number, row in enumerate(ROWS):
        write(tmp_path / f"{number:05}.tsv", "\t".join(row))
    write(tmp_path / "{x}.tsv", "\t".join(ROWS[0]))

    def read(*paths: str) -> list[tuple[str, str]]:
        tables = read_links(SourceConfig(path=tuple(f"{tmp_path}/{path}" for path in paths)))
        return [(row["url"], row["caption"]) for table in tables for row in table.to_pylist()]

    assert read("00003.tsv", "00001.tsv", "0000[13].*") == [ROWS[1], ROWS[3]]
    assert read("{00000..00004}.tsv") == read("0000{4..0}.{tsv,tsv}") == ROWS
    assert read("0000{1,3}.tsv", "{00000..00001}.t{s,x}v".replace("t{s,x}v", "tsv")) == [ROWS[0], ROWS[1], ROWS[3]]
    assert read("{x}.tsv") == [ROWS[0]]
    with pytest.raises(
        InputError, match=r"no such file: .*/00005.tsv \(2 of the 7 that .*\{00000..00006\}.tsv names are missing\)$"
    ):
        read("{00000..00006}.tsv")
    with pytest.raises(InputError, match=r"no such file: .*/no.tsv$"):
        read("00001.tsv", "no.tsv")
    with pytest.raises(InputError, match="more than 1,000,000 names"):
        read("{0..9999999}.tsv")


# ---- several captions of a row

LISTS = [["a dog ", "a  cat"], [], None, ["a cow", None, ""], [None]]
FROM_LISTS = [(URLS[0], "a dog"), (URLS[0], "a cat"), (URLS[1], ""), (URLS[2], ""), (URLS[3], "a cow"), (URLS[4], "")]


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.string()),
        pa.large_list(pa.large_string()),
        pa.list_(pa.dictionary(pa.int32(), pa.string())),
        pa.list_view(pa.string()),
    ],
)
def test_list_columns_give_a_row_for_each_caption(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"url": URLS, "captions": pa.array(LISTS, kind)}), tmp_path / "x.parquet")
    assert rows_of(tmp_path / "x.parquet") == FROM_LISTS


def test_list_captions_of_json_lines(tmp_path: Path) -> None:
    lines = [json.dumps({"url": url, "captions": told}) for url, told in zip(URLS, [*LISTS[:4], "one text"], strict=True)]
    assert rows_of(write(tmp_path / "x.jsonl", "\n".join(lines))) == [*FROM_LISTS[:-1], (URLS[4], "one text")]


def test_a_part_is_read_by_what_its_file_looked_like(tmp_path: Path) -> None:
    """Columns are found file by file: one folder may hold the same links in other orders, names and formats."""
    pq.write_table(pa.table({"TEXT": CAPTIONS[:1], "URL": URLS[:1]}), tmp_path / "0.parquet")
    write(tmp_path / "1.csv", f"alt;src\n{CAPTIONS[1]};{URLS[1]}\n")
    write(tmp_path / "2.jsonl", json.dumps({"link": URLS[2], "title": CAPTIONS[2]}))
    write(tmp_path / "3.tsv", f"{CAPTIONS[3]}\t{URLS[3]}\n")
    write(tmp_path / "4.txt", f"\turl\tcaption\n9\t{URLS[4]}\t{CAPTIONS[4]}\n")
    assert rows_of(tmp_path) == ROWS
    assert [part.kind for part in parts_of(SourceConfig(path=str(tmp_path)))] == ["parquet", "csv", "jsonl", "tsv", "tsv"]
