"""Rules about a row and not its caption: what it consists of, which holds whatever `filter.rules` says, and its columns."""

import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from filtering import InputError
from filtering.schema import HAS_IMAGE


@dataclass(frozen=True)
class NoImage:
    """Refuses samples of tars without an image."""

    name: ClassVar[str] = "no_image"

    def __call__(self, table: pa.Table) -> pa.BooleanArray:
        if HAS_IMAGE.name not in table.column_names:
            return pa.array(np.ones(table.num_rows, bool))
        return table[HAS_IMAGE.name].combine_chunks()


@dataclass(frozen=True)
class NoCaption:
    """Refuses rows without a caption: an empty one, a null, an empty list."""

    name: ClassVar[str] = "no_caption"

    def __call__(self, table: pa.Table) -> pa.BooleanArray:
        return pc.greater(pc.binary_length(table["caption"]), 0)


ROW_RULES = (NoImage, NoCaption)
"""In the order in which they judge, before the rules of the list."""


# ---- a rule of the list


@dataclass(frozen=True, kw_only=True)
class ColumnRule:
    """Refuses rows by a number that came with them: a similarity, a score, a size."""

    column: str
    """The column, which `filter.source.keep_columns` carries along."""
    name: Literal["column"] = "column"
    """Refuses rows whose value in `column` is missing, is no number or lies outside the limits."""
    at_least: float | None = None
    """Smallest value."""
    at_most: float | None = None
    """Largest value."""

    def __post_init__(self) -> None:
        if self.at_least is None and self.at_most is None:
            raise InputError(f"at_least: give a limit for {self.column!r}, here or as at_most")

    def __call__(self, table: pa.Table) -> pa.BooleanArray:
        values = _numbers(table[self.column])
        keep = ~np.isnan(values)
        if self.at_least is not None:
            keep &= values >= self.at_least
        if self.at_most is not None:
            keep &= values <= self.at_most
        return pa.array(keep)


_NUMBER = re.compile(r"\s*[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?\s*", re.ASCII)


def _numbers(column: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A column as float64 [rows]: NaN for what is no number; true is 1."""
    if pa.types.is_string(column.type):
        texts = column.to_pylist()
        return np.array([float(text) if text is not None and _NUMBER.fullmatch(text) else np.nan for text in texts], np.float64)
    return pc.fill_null(pc.cast(column, pa.float64()), np.nan).to_numpy()  # type: ignore[no-any-return]
