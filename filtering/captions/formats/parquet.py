"""Parquet: columns are read by their positions, as names may be empty or occur twice, and judged where there are values."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from filtering import InputError
from filtering.captions.formats.columns import find_columns
from filtering.captions.formats.source import BATCH_ROWS, Part, Rows, SourceConfig
from filtering.kept_columns import as_plain
from filtering.sources import Kind, open_file, reading

PART_ROWS = 1 << 18  # row groups come in all sizes


def parts(path: str, kind: Kind, source: SourceConfig) -> Iterator[Part]:
    """The parts of a file: row groups, small ones together; none of a file without rows, whatever its columns."""
    with _open(path) as file:
        if not file.metadata.num_rows:
            return
        fields = list(file.schema_arrow)

        def url_fits(position: int) -> bool:
            return _is_text(fields[position].type) or not _has_values(file, position)

        def caption_fits(position: int) -> bool:
            return _is_list_of_text(fields[position].type) or url_fits(position)

        names = [field.name for field in fields]
        has_values = partial(_has_values, file)
        columns = find_columns(names, source, path, url_fits=url_fits, caption_fits=caption_fits, has_values=has_values)
        for position, fits in zip(columns, (url_fits, caption_fits), strict=False):
            if not fits(position):
                column = f"column {names[position]!r} of {path} holds {fields[position].type}"
                raise InputError(f"filter.source: {column}, not text; choose another one")
        for position in columns[2:]:
            if _value_type(fields[position].type) in (pa.binary(), pa.large_binary()):
                raise InputError(f"filter.source.keep_columns: column {names[position]!r} of {path} holds bytes; leave it out")
        groups = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
    start = rows_ = 0
    for group, count in enumerate(groups):
        rows_ += count
        if rows_ >= PART_ROWS or group == len(groups) - 1:
            keep = list(source.keep_columns)
            yield Part(path=path, kind=kind, start=start, stop=group + 1, columns=columns, keep=keep, rows_hint=max(1, rows_))
            start, rows_ = group + 1, 0


def rows(part: Part) -> Iterator[Rows]:
    """The rows of a part, in batches."""
    with _open(part.path) as file:
        for batch in _columns(file, part.columns, range(part.start, part.stop)):
            url, caption, *kept = batch
            yield Rows(_texts(url), _texts(caption), list(map(as_plain, kept)))


@contextmanager
def _open(path: str) -> Iterator[pq.ParquetFile]:
    with (
        open_file(path) as raw,
        reading(path, "is not a readable parquet file"),
        pq.ParquetFile(raw, buffer_size=1 << 20, page_checksum_verification=True) as file,
    ):
        yield file


def _columns(file: pq.ParquetFile, positions: Sequence[int], groups: Sequence[int]) -> Iterator[list[pa.Array]]:
    """The columns at `positions`, batch by batch."""
    first = [0]
    for field in file.schema_arrow:
        first.append(first[-1] + _leaves(field.type))
    wanted = sorted(set(positions))
    leaves = [leaf for position in wanted for leaf in range(first[position], first[position + 1])]
    for batch in file.reader.iter_batches(BATCH_ROWS, list(groups), column_indices=leaves, use_threads=False):
        columns = dict(zip(wanted, batch.columns, strict=True))
        yield [columns[position] for position in positions]


def _leaves(type_: pa.DataType) -> int:
    """How many columns of the file a column of this type is."""
    if isinstance(type_, pa.BaseExtensionType):
        return _leaves(type_.storage_type)
    if pa.types.is_map(type_):
        return _leaves(type_.key_type) + _leaves(type_.item_type)
    if pa.types.is_nested(type_):
        return sum(_leaves(type_.field(number).type) for number in range(type_.num_fields))
    return 1


def _has_values(file: pq.ParquetFile, position: int) -> bool:
    """Whether a column holds anything but nulls (a number that is none is what some writers have for null)."""
    type_ = file.schema_arrow.field(position).type
    if pa.types.is_null(type_):
        return False
    for (column,) in _columns(file, [position], range(file.metadata.num_row_groups)):
        missing = pc.is_null(column, nan_is_null=pa.types.is_floating(type_))
        if not pc.all(missing, min_count=0).as_py():
            return True
    return False


def _texts(column: pa.Array) -> list[Any]:
    """The strings of a text column of any kind, or its lists of them; bytes that are not UTF-8 are replaced."""
    if isinstance(column.type, pa.BaseExtensionType):
        column = column.storage
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not (_is_text(column.type) or _is_list_of_text(column.type)):
        return [None] * len(column)  # without values, as it was found to be
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        pass
    if _is_list_of_text(column.type):
        binary = column.cast(pa.list_(pa.large_binary())).to_pylist()
        return [None if texts is None else [_decoded(text) for text in texts] for texts in binary]
    return [_decoded(text) for text in column.cast(pa.large_binary()).to_pylist()]


def _decoded(text: bytes | None) -> str | None:
    return None if text is None else text.decode("utf-8", errors="replace")


def _value_type(type_: pa.DataType) -> pa.DataType:
    if isinstance(type_, pa.BaseExtensionType):
        type_ = type_.storage_type
    return type_.value_type if pa.types.is_dictionary(type_) else type_


def _is_text(type_: pa.DataType) -> bool:
    type_ = _value_type(type_)
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_))


def _is_list_of_text(type_: pa.DataType) -> bool:
    type_ = _value_type(type_)
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_list_view)
    return any(kind(type_) for kind in kinds) and (_is_text(type_.value_type) or pa.types.is_null(type_.value_type))
