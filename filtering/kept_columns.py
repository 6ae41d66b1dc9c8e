"""Columns that are carried along: text, int64, double or bool, whatever the source has, and one type in the whole corpus."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


def as_plain(column: pa.Array) -> pa.Array:
    """A column of any type as text, int64, double, bool or, where it holds nothing, null. Lists and the like become JSON."""
    type_ = column.type
    if pa.types.is_dictionary(type_):
        return as_plain(column.dictionary_decode())
    if isinstance(type_, pa.BaseExtensionType):
        return as_plain(column.storage)
    if column.null_count == len(column):
        return pa.nulls(len(column))
    if pa.types.is_boolean(type_):
        return column
    if pa.types.is_integer(type_) and type_ != pa.uint64():
        return column.cast(pa.int64())
    if pa.types.is_floating(type_) or pa.types.is_decimal(type_):
        return column.cast(pa.float64())
    if pa.types.is_temporal(type_) or pa.types.is_string(type_) or pa.types.is_large_string(type_):
        return _as_text(column)
    return plain_array(column.to_pylist())


def plain_array(values: Sequence[Any]) -> pa.Array:
    """Python's values as a column: the narrowest type that holds them all."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {bool}:
        return pa.array(values, pa.bool_() if kinds else pa.null())
    most = 2**53 if float in kinds else 2**63  # what the type of numbers holds exactly
    if kinds <= {int, float} and all(-most <= value < most for value in values if type(value) is int):
        return pa.array(values, pa.float64() if float in kinds else pa.int64())
    return pa.array([None if value is None else _text_of(value) for value in values], pa.string())


def _text_of(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text.encode("utf-8", "replace").decode()  # JSON's escapes can make lone surrogates


def _as_text(column: pa.Array) -> pa.Array:
    try:
        text = column.cast(pa.string())
        text.validate(full=True)
    except (pa.ArrowInvalid, UnicodeDecodeError):
        values = column.cast(pa.large_binary()).to_pylist()
        return pa.array([None if value is None else _text_of(value) for value in values], pa.string())
    return text


def common_types(schemas: Iterable[pa.Schema]) -> dict[str, pa.DataType]:
    """For the columns whose type differs between schemas, or is null, the type that holds all their values."""
    types: dict[str, set[pa.DataType]] = {}
    for schema in schemas:
        for field in schema:
            types.setdefault(field.name, set()).add(field.type)
    return {name: _common(found) for name, found in types.items() if len(found) > 1 or pa.null() in found}


def _common(types: set[pa.DataType]) -> pa.DataType:
    known = types - {pa.null()}
    if len(known) == 1:
        return next(iter(known))
    return pa.float64() if known and known <= {pa.int64(), pa.float64()} else pa.string()


def with_types(table: pa.Table, types: dict[str, pa.DataType]) -> pa.Table:
    """`table` with other types for some of its columns."""
    for position, name in enumerate(table.column_names):
        if name in types and table[name].type != types[name]:
            column = pc.cast(table[name], types[name], safe=False)  # integers beside fractions become the nearest double
            table = table.set_column(position, pa.field(name, types[name]), column)
    return table


def concatenated(tables: Sequence[pa.Table]) -> pa.Table:
    """The rows of tables whose columns have the same names, but perhaps not the same types."""
    types = common_types({table.schema for table in tables})
    types = {name: type_ for name, type_ in types.items() if len({table[name].type for table in tables}) > 1}
    return pa.concat_tables([with_types(table, types) for table in tables])
