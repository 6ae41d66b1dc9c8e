"""The kept rows of a corpus, as the download reads them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from filtering import InputError
from filtering.files import read_table
from filtering.images.captioned import carried
from filtering.schema import CORPUS, KEY_LENGTH, OWN_NAMES, SAMPLE


@dataclass(frozen=True)
class Corpus:
    """The kept rows of a corpus: their files, and the columns with those that are carried along."""

    files: list[Path]
    rows: int
    schema: pa.Schema

    def tables(self, batch_rows: int) -> Iterator[pa.Table]:
        """All rows in the corpus's columns, so many at a time. InputError if a key is none of ours."""
        for path in self.files:
            with pq.ParquetFile(path) as file:
                there = [name for name in self.schema.names if name in file.schema_arrow.names]
                for batch in file.iter_batches(batch_rows, columns=there):
                    yield self._checked(path, pa.Table.from_batches([batch]), self.schema.names)

    def file_tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Some columns of each file, sorted by key and sample, each key once: rows with one key lie in one file."""
        for path in self.files:
            there = [name for name in columns if name in schema_of(path).names]
            table = self._checked(path, read_table(path, there), columns)
            yield without_repeats(table.sort_by([("key", "ascending"), (SAMPLE.name, "ascending")]))

    def _checked(self, path: Path, table: pa.Table, columns: Sequence[str]) -> pa.Table:
        schema = pa.schema([self.schema.field(name) for name in columns])
        for field in schema:
            if field.name not in table.column_names:
                table = table.append_column(field, pa.nulls(len(table), field.type))
        check_keys(table["key"], path)
        return table.select(columns).cast(schema)


@dataclass(frozen=True)
class Cut:
    """The kept rows cut into shards."""

    sources: list[Path]
    """A parquet file of rows per shard; rows that repeat a key are left out."""
    rows: int
    """Rows of the corpus."""
    repeated: int
    """Of which so many repeat another's URL and caption."""


def open_corpus(corpus: Path, *, in_tars: bool = False) -> Corpus:
    """The corpus's kept rows, with the column `sample` if they are `in_tars`.

    InputError if there are none, or if a file lacks a column, or has one by a name that is the download's own.
    """
    files = sorted((corpus / "kept").glob("*.parquet"))
    if not files:
        raise InputError(f"{corpus / 'kept'}: no parquet files there; run the filter first")
    columns = [*CORPUS, *([SAMPLE] if in_tars else [])]
    schemas = [schema_of(file) for file in files]
    for file, schema in zip(files, schemas, strict=True):
        if missing := [field.name for field in columns if field.name not in schema.names]:
            raise InputError(f"{file}: column {missing[0]!r} is missing; it is not a corpus that the filter wrote")
    rows = sum(pq.read_metadata(file).num_rows for file in files)
    if not rows:
        raise InputError(f"{corpus / 'kept'}: the corpus holds no links; loosen the filter's rules")
    return Corpus(files, rows, pa.schema([*columns, *_carried_of_files(files, schemas)]))


def schema_of(file: Path) -> pa.Schema:
    """The schema of a parquet file. InputError if it cannot be read."""
    try:
        return pq.read_schema(file).remove_metadata()
    except (OSError, pa.ArrowException) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{file}: cannot be read ({reason}); delete {file.parent.parent} and run the filter again") from None


def check_keys(keys: pa.ChunkedArray, file: Path) -> None:
    """InputError if a key is none of ours: keys name files, so that a stranger's could point anywhere."""
    good = pc.fill_null(pc.match_substring_regex(keys, rf"^[0-9a-f]{{{KEY_LENGTH}}}$"), False)
    if not pc.all(good).as_py():
        key = keys.filter(pc.invert(good))[0].as_py()
        raise InputError(
            f"{file}: key {key!r:.80} is not {KEY_LENGTH} hex digits; run the filter on the links, it makes the keys"
        )


def without_repeats(table: pa.Table) -> pa.Table:
    """The first row of every key of a table sorted by key.

    A key is the name of an image. Rows that share one have the same URL and caption; a filter without rules keeps them all.
    """
    keys = table["key"].combine_chunks()
    first = np.ones(len(keys), bool)
    first[1:] = pc.not_equal(keys[1:], keys[:-1]).to_numpy(zero_copy_only=False)
    return table if first.all() else table.filter(pa.array(first))


def _carried_of_files(files: Sequence[Path], schemas: Sequence[pa.Schema]) -> list[pa.Field]:
    """The columns that the files of a corpus carry along. InputError where a name is taken, or files do not agree."""
    for file, schema in zip(files, schemas, strict=True):
        if taken := [field.name for field in carried(schema) if field.name in OWN_NAMES]:
            raise InputError(f"{file}: column {taken[0]!r} has the name of a column of the download's own; rename it")
    try:
        return list(pa.unify_schemas([pa.schema(carried(schema)) for schema in schemas], promote_options="permissive"))
    except pa.ArrowException as error:
        raise InputError(
            f"{files[0].parent}: the files do not agree on a column's type ({error}); run the filter again"
        ) from None
