"""What a corpus makes of its source: reasons of rows that lack something, the message if none is left, columns to keep."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from filtering import InputError
from filtering.captions.corpus import FilterConfig, build_corpus
from filtering.captions.reader import SourceConfig, read_links
from filtering.captions.row_rules import ColumnRule
from filtering.captions.rules import BadUrl, TooShort
from filtering.captions.vocabulary import PaperList
from helpers import tar_files
from helpers.corpora import rows_in
from helpers.links import URL, write

RULES = (BadUrl(), TooShort())
DOGS = [(URL.format(number), f"a dog near the house {number}") for number in range(20)]


def build(out: Path, path: Path, *, rules: Sequence[Any] = RULES, keep: Sequence[str] = (), **settings: Any) -> dict[str, Any]:
    source = SourceConfig(path=str(path), keep_columns=tuple(keep))
    return build_corpus(FilterConfig(source=source, rules=tuple(rules), shards=2, min_count=1, **settings), out)


def table_of(rows: Sequence[tuple[str | None, str | None]], **columns: Any) -> pa.Table:
    urls, captions = zip(*rows, strict=True)
    return pa.table({"url": pa.array(urls, pa.string()), "caption": pa.array(captions, pa.string()), **columns})


def written(path: Path, table: pa.Table) -> Path:
    pq.write_table(table, path)
    return path


# ---- reasons


def test_what_lacks_a_caption_or_an_image_says_so(tmp_path: Path) -> None:
    image = tar_files.picture()
    files = [
        *tar_files.sample("dog", "a dog near the house", image),
        ("silent.jpg", image),
        *tar_files.sample("blank", " \u200b", image),
        ("list.jpg", image),
        ("list.json", json.dumps({"caption": ["a dog near a house"]}).encode()),
        ("empty.jpg", image),
        ("empty.json", json.dumps({"caption": []}).encode()),
        ("blind.txt", b"a dog near the wall"),
        ("neither.json", b"{}"),
        *tar_files.sample("short", "dog", image),
    ]
    summary = build(tmp_path / "corpus", tar_files.write(tmp_path / "x.tar", files))
    reasons = {row["sample"].partition("::")[2]: row["drop_reason"] for row in rows_in(tmp_path / "corpus" / "dropped")}
    assert reasons == {
        "silent": "no_caption",
        "blank": "no_caption",
        "empty": "no_caption",
        "blind": "no_image",
        "neither": "no_image",
        "short": "too_short",
    }
    kept = {row["sample"].partition("::")[2]: row["caption"] for row in rows_in(tmp_path / "corpus" / "kept")}
    assert kept == {"dog": "a dog near the house", "list": "a dog near a house"}
    assert summary["dropped"] == {"no_image": 2, "no_caption": 3, "too_short": 1}


def test_rows_of_tables_without_a_caption_say_so_whatever_the_rules(tmp_path: Path) -> None:
    path = written(
        tmp_path / "x.parquet", table_of([*DOGS[:2], (URL.format(7), None), (URL.format(8), "\ufeff "), (None, "a dog")])
    )
    summary = build(tmp_path / "corpus", path)
    assert (summary["links"], summary["kept"], summary["dropped"]) == (5, 2, {"no_caption": 2, "bad_url": 1})
    summary = build(tmp_path / "paper", path, vocabulary=PaperList())
    assert summary["dropped"]["no_caption"] >= 1


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [(f"photo {i}.jpg", f"a dog {i} runs") for i in range(20)],
            r"filter: 20 of 20 rows dropped: bad_url; such as url 'photo \d+.jpg', caption 'a dog \d+ runs'; "
            r"see filter.source.url_column, .*",
        ),
        (
            [(url, None) for url, _ in DOGS[:3]],
            r"filter: 3 of 3 rows dropped: no_caption; such as url 'http://.*', caption ''; see filter.source.caption_column",
        ),
        (
            [*DOGS[:1] * 0, (URL.format(0), "dog"), (URL.format(1), "cat"), ("none", "a dog near a house")],
            r"filter: 3 of 3 rows dropped: too_short 2, bad_url 1; such as url 'http.*', caption '(dog|cat)'; see filter.rules",
        ),
        (
            [(URL.format(0), "x" * 500)],
            r"filter: 1 of 1 rows dropped: too_short; such as url '.*', caption 'x{80}…'; see filter.rules",
        ),
    ],
)
def test_where_all_rows_are_dropped_the_message_says_why(tmp_path: Path, rows: list[Any], said: str) -> None:
    with pytest.raises(InputError, match=f"^{said}$"):
        build(tmp_path / "corpus", written(tmp_path / "x.parquet", table_of(rows)))


def test_where_all_samples_lack_an_image_the_message_names_one(tmp_path: Path) -> None:
    path = tar_files.write(tmp_path / "x.tar", [(f"{i}.txt", b"a dog near the house") for i in range(4)])
    with pytest.raises(
        InputError, match=r"^filter: 4 of 4 rows dropped: no_image; such as sample '\d', caption 'a dog .*; a tar's "
    ):
        build(tmp_path / "corpus", path)


def test_samples_whose_files_are_parted_are_told_how_to_be_put_together(tmp_path: Path) -> None:
    files = [
        (f"{i}.{kind}", content) for kind, content in (("jpg", b"image"), ("txt", b"a dog near the house")) for i in range(3)
    ]
    path = tar_files.write(tmp_path / "x.tar", files)
    with pytest.raises(InputError, match=r"6 of 6 rows dropped: no_caption 3, no_image 3; .* tar --sort=name puts them$"):
        build(tmp_path / "corpus", path)


def test_a_list_that_nobody_mentions(tmp_path: Path) -> None:
    rows = [(URL.format(number), f"a walrus near the otter {number}") for number in range(20)]
    with pytest.raises(InputError, match=r"^filter: 20 of 20 rows dropped: rare_entity; such as url .* see filter.vocabulary"):
        build(tmp_path / "corpus", written(tmp_path / "x.parquet", table_of(rows)), vocabulary=PaperList(match="nouns"))


def test_min_count_is_blamed_only_where_it_is_to_blame(tmp_path: Path) -> None:
    path = written(tmp_path / "x.parquet", table_of([(URL.format(0), "a dog runs"), ("none", "a dog and a cat")]))
    config = FilterConfig(source=SourceConfig(path=str(path)), rules=RULES, shards=2, min_count=2)
    said = r"^filter.min_count: no entity is mentioned by 2 of the 1 captions that .* \(1 rows dropped: bad_url\); .*'dog'"
    with pytest.raises(InputError, match=said):
        build_corpus(config, tmp_path / "corpus")


# ---- columns to keep

KEPT = {
    "similarity": [None if number == 5 else number / 20 for number in range(20)],
    "pixels": list(range(20)),
    "safe": [number % 2 == 0 for number in range(20)],
    "license": [f"cc {number}" for number in range(20)],
}
TYPES = {"similarity": pa.float64(), "pixels": pa.int64(), "safe": pa.bool_(), "license": pa.string()}


def expected_of(numbers: Sequence[int]) -> dict[str, dict[str, Any]]:
    return {DOGS[number][0]: {name: values[number] for name, values in KEPT.items()} for number in numbers}


def kept_values(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["url"]: {name: row[name] for name in KEPT} for row in rows_in(folder)}


def test_columns_are_carried_with_their_types_and_judged(tmp_path: Path) -> None:
    narrow = {
        "similarity": pa.float32(),
        "pixels": pa.uint16(),
        "safe": pa.bool_(),
        "license": pa.dictionary(pa.int8(), pa.string()),
    }
    columns = {name: pa.array(values, narrow[name]) for name, values in KEPT.items()}
    path = written(tmp_path / "x.parquet", table_of(DOGS, **columns, unused=[b""] * 20))
    rules = (*RULES, ColumnRule(column="similarity", at_least=0.25, at_most=0.75), ColumnRule(column="safe", at_least=1))
    summary = build(tmp_path / "corpus", path, rules=rules, keep=list(KEPT))
    for folder in ("kept", "dropped"):
        for file in (tmp_path / "corpus" / folder).glob("*.parquet"):
            schema = pq.read_schema(file)
            assert {name: schema.field(name).type for name in KEPT} == TYPES
    expected = expected_of([6, 8, 10, 12, 14])
    found = kept_values(tmp_path / "corpus" / "kept")
    assert found.keys() == expected.keys()
    for url, values in expected.items():
        assert found[url] == {**values, "similarity": pytest.approx(values["similarity"])}
    dropped = {row["url"]: (row["drop_reason"], row["pixels"]) for row in rows_in(tmp_path / "corpus" / "dropped")}
    assert dropped == {DOGS[i][0]: ("column", i) for i in range(20) if DOGS[i][0] not in expected}
    assert summary["dropped"] == {"column": 15}


@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl", "parquet"])
def test_columns_of_every_format(tmp_path: Path, kind: str) -> None:
    rows = [{"url": url, "caption": caption, "similarity": number / 20} for number, (url, caption) in enumerate(DOGS)]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    else:
        mark = "\t" if kind == "tsv" else ","
        lines = [mark.join(map(str, row)) for row in ([*rows[0]], *(row.values() for row in rows))]
        write(tmp_path / f"x.{kind}", "\n".join(map(json.dumps, rows) if kind == "jsonl" else lines))
    (table,) = read_links(SourceConfig(path=str(tmp_path / f"x.{kind}"), keep_columns=("similarity",)))
    assert table.schema.types[-1] == (pa.string() if kind in ("tsv", "csv") else pa.float64())
    kept = table.filter(ColumnRule(column="similarity", at_least=0.9)(table))
    assert dict(zip(kept["url"].to_pylist(), map(float, kept["similarity"].to_pylist()), strict=True)) == {
        DOGS[18][0]: 0.9,
        DOGS[19][0]: 0.95,
    }


def test_a_column_of_several_types_becomes_one(tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    values: list[Any] = [pa.array([1, 2]), pa.array([0.5, None]), pa.array([None, None], pa.string())]
    for number, column in enumerate(values):
        written(tmp_path / "links" / f"{number}.parquet", table_of(DOGS[2 * number : 2 * number + 2], score=column))
    build(tmp_path / "corpus", tmp_path / "links", keep=["score"])
    rows = sorted(rows_in(tmp_path / "corpus" / "kept"), key=lambda row: row["url"])
    assert [row["score"] for row in rows] == [1.0, 2.0, 0.5, None, None, None]
    written(tmp_path / "links" / "3.parquet", table_of(DOGS[6:8], score=["high", "low"]))
    build(tmp_path / "again", tmp_path / "links", keep=["score"])
    rows = sorted(rows_in(tmp_path / "again" / "kept"), key=lambda row: row["url"])
    assert [row["score"] for row in rows][:3] + [row["score"] for row in rows][-2:] == ["1", "2", "0.5", "high", "low"]


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        (["key"], r"^keep_columns: 'key' is a column of the corpus or the shards; rename it in the source$"),
        (["entities"], "'entities' is a column of the corpus"),
        (["sha256"], "'sha256' is a column of the corpus or the shards"),
        (["a", "a"], "each column once"),
        ([""], "each column once"),
    ],
)
def test_names_that_cannot_be_kept(keep: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        SourceConfig(keep_columns=tuple(keep))


def test_columns_that_are_not_there_or_hold_bytes(tmp_path: Path) -> None:
    path = written(tmp_path / "x.parquet", table_of(DOGS, pixels=[1] * 20, image=[b"x"] * 20))
    with pytest.raises(
        InputError, match=r"^filter.source.keep_columns: no column 'depth' in .*; it has: url, caption, pixels, image$"
    ):
        list(read_links(SourceConfig(path=str(path), keep_columns=("depth",))))
    with pytest.raises(InputError, match=r"^filter.source.keep_columns: column 'image' of .* holds bytes; leave it out$"):
        list(read_links(SourceConfig(path=str(path), keep_columns=("image",))))
    bare = write(tmp_path / "bare.tsv", f"{URL.format(0)}\ta dog\t0.5\n")
    with pytest.raises(
        InputError, match=r"^filter.source.keep_columns: .* has no header and 3 columns; give a number from 1 to 3$"
    ):
        list(read_links(SourceConfig(path=str(bare), keep_columns=("score",))))
    (table,) = read_links(SourceConfig(path=str(bare), keep_columns=("3",)))
    assert table["3"].to_pylist() == ["0.5"]


def test_a_rule_names_a_column_that_is_carried_and_a_limit() -> None:
    with pytest.raises(
        InputError, match=r"^rules: 'similarity' is judged, but source.keep_columns does not carry it; add it there$"
    ):
        FilterConfig(rules=(ColumnRule(column="similarity", at_least=0.3),))
    with pytest.raises(InputError, match=r"^at_least: give a limit for 'similarity', here or as at_most$"):
        ColumnRule(column="similarity")


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        (pa.array(["0.5", " 1e-1 ", "nan", "inf", "0x1", "1_0", "", None]), [True, False] + [False] * 6),
        (pa.array([0.5, 0.1, float("nan"), None]), [True, False, False, False]),
        (pa.array([1, 0, None]), [True, False, False]),
        (pa.array([True, False, None]), [True, False, False]),
        (pa.nulls(2), [False, False]),
    ],
)
def test_only_numbers_pass_a_column_rule(values: pa.Array, kept: list[bool]) -> None:
    assert ColumnRule(column="x", at_least=0.3)(pa.table({"x": values})).to_pylist() == kept
