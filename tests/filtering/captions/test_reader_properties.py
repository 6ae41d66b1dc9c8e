"""Whatever table a writer makes of links, the reader reads it as it was meant, or refuses it in one line."""

import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from filtering import InputError
from filtering.captions.reader import SourceConfig, read_links
from filtering.cleaning import clean


class Table(NamedTuple):
    """Columns by their positions: names may be empty or occur twice."""

    names: list[str]
    columns: list[list[Any]]
    url: int
    caption: int

    @property
    def distinct(self) -> "Table":
        """The same with a name of its own for each column, for writers that want that."""
        seen: dict[str, int] = {}
        names = []
        for position, name in enumerate(self.names):
            lower = name.lower()
            names.append(name if name and lower not in seen else f"{name}_{position}x")
            seen[lower] = position
        names[self.url], names[self.caption] = self.names[self.url], self.names[self.caption]
        return self._replace(names=names)

    @property
    def rows(self) -> list[tuple[str, str]]:
        """What the reader shall make of it."""
        links = zip(self.columns[self.url], self.columns[self.caption], strict=True)
        return [((url or "").strip(), clean(caption or "")) for url, caption in links]


URLS = st.integers(0, 99).map("http://pics.example/{}.jpg".format)
WORDS = st.sampled_from(
    ["dog", "cat", '"', '5"', "'", ",", ";", "\t", "\n", "\r\n", "\\", "|", "é", "\u2028", "🐕", "#", "NULL", " "]
)
TEXTS = st.one_of(
    st.lists(WORDS, min_size=1, max_size=6).map(" ".join).map("a {}".format), st.lists(WORDS, max_size=4).map("".join)
)
OTHERS: dict[str, st.SearchStrategy[Any]] = {
    "int": st.integers(-(2**40), 2**40),
    "float": st.floats(allow_nan=False, width=32),
    "bool": st.booleans(),
    "text": st.sampled_from(["x", "", 'y "z"', "cc by", "1"]),
    "null": st.none(),
}
NAMES = st.sampled_from(
    ["", "id", "n\u00e9", "a b", "Unnamed: 0", "0", 'with "quotes"', "score", "a.b", "key", "__index_level_0__"]
)


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """Links with other columns around them, in any order; no row is without a URL in every column but the first ones may be."""
    count = draw(st.integers(0, 12))
    missing = draw(st.booleans())

    def column(values: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(st.one_of(values, st.none()) if missing else values, min_size=count, max_size=count))

    names = [draw(st.sampled_from(["url", "URL", "image_url"])), draw(st.sampled_from(["caption", "TEXT", "Alt Text"]))]
    columns = [column(URLS), column(TEXTS)]
    for _ in range(draw(st.integers(0, 3))):
        names.append(draw(NAMES))
        columns.append(column(OTHERS[draw(st.sampled_from(sorted(OTHERS)))]))
    order = draw(st.permutations(range(len(names))))
    return Table([names[i] for i in order], [columns[i] for i in order], order.index(0), order.index(1))


def arrow_of(table: Table) -> pa.Table:
    return pa.Table.from_arrays([pa.array(column) for column in table.columns], names=table.names)


def pandas_of(table: Table) -> pd.DataFrame:
    frame = pd.DataFrame(dict(enumerate(table.columns)))
    frame.columns = pd.Index(table.names)
    return frame


def polars_of(table: Table) -> pl.DataFrame:
    return pl.DataFrame(
        [pl.Series(name, column, strict=False) for name, column in zip(table.names, table.columns, strict=True)]
    )


def by_duckdb(table: Table, folder: Path, name: str, options: str) -> None:
    with duckdb.connect() as database:
        database.register("links", arrow_of(table))
        database.execute(f"COPY links TO '{folder / name}' ({options})")


def pyarrow_csv(table: Table, folder: Path) -> None:
    content = io.BytesIO()
    pyarrow.csv.write_csv(arrow_of(table), content, pyarrow.csv.WriteOptions(delimiter="\t"))
    (folder / "x.tsv").write_bytes(content.getvalue())


def json_lines(table: Table, folder: Path) -> None:
    rows = [dict(zip(table.names, row, strict=True)) for row in zip(*table.columns, strict=True)]
    (folder / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def in_partitions(table: Table, folder: Path) -> None:
    """Of one row each, between empty ones: pandas gives columns without values types of its own choice."""
    for number in range(len(table.columns[0])):
        part = table._replace(columns=[column[number : number + 1] for column in table.columns])
        pandas_of(part.distinct).to_parquet(folder / f"{number:03}.parquet")
    pandas_of(table.distinct._replace(columns=[[] for _ in table.columns])).to_parquet(folder / "none.parquet")


WRITERS: dict[str, Callable[[Table, Path], object]] = {
    "pandas parquet": lambda table, folder: pandas_of(table.distinct).to_parquet(folder / "x.parquet"),
    "pandas tsv": lambda table, folder: pandas_of(table).to_csv(folder / "x.tsv", sep="\t"),
    "pandas csv": lambda table, folder: pandas_of(table).to_csv(folder / "x.csv", index=False),
    "pandas quoted": lambda table, folder: pandas_of(table).to_csv(folder / "x.tsv.gz", sep="\t", quoting=1),
    "pandas partitions": in_partitions,
    "polars parquet": lambda table, folder: polars_of(table.distinct).write_parquet(folder / "x.parquet"),
    "polars csv": lambda table, folder: polars_of(table.distinct).write_csv(folder / "x.csv", separator=";"),
    "polars tsv": lambda table, folder: polars_of(table.distinct).write_csv(folder / "x.tsv", separator="\t"),
    "polars jsonl": lambda table, folder: polars_of(table.distinct).write_ndjson(folder / "x.ndjson"),
    "duckdb parquet": lambda table, folder: by_duckdb(table.distinct, folder, "x.parquet", "FORMAT parquet"),
    "duckdb csv": lambda table, folder: by_duckdb(table.distinct, folder, "x.csv", "FORMAT csv, HEADER"),
    "pyarrow parquet": lambda table, folder: pq.write_table(arrow_of(table), folder / "x.parquet", row_group_size=3),
    "pyarrow tsv": pyarrow_csv,
    "json": lambda table, folder: json_lines(table.distinct, folder),
}


def rows_or_refusal(folder: str) -> list[tuple[str, str]] | str:
    try:
        return [(row["url"], row["caption"]) for table in read_links(SourceConfig(path=folder)) for row in table.to_pylist()]
    except InputError as refusal:
        return str(refusal)


@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tables(), st.sampled_from(sorted(WRITERS)))
@example(Table(["url", "caption"], [["http://pics.example/0.jpg"] * 2, ["a dog", '\\"\n']], 0, 1), "duckdb csv")
def test_tables_are_read_as_the_writer_meant(table: Table, writer: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        WRITERS[writer](table, Path(folder))
        found = rows_or_refusal(folder)
    if isinstance(found, str):
        assert "\n" not in found
        assert found.startswith("filter.source")
        assert not any(table.columns[table.url]) or "quoting" in found, found
    else:
        assert found == table.rows
