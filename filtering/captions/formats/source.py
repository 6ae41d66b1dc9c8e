"""What all formats share: the settings of a source, its parts, and rows as they stand in a file."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, NamedTuple, TypeVar

import pyarrow as pa

from filtering import InputError
from filtering.schema import OWN_NAMES
from filtering.sources import END, Format, Kind

BATCH_ROWS = 8192

_Row = TypeVar("_Row")


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Where the links are. With nothing but a path, format, header and columns are detected from the content."""

    path: str | tuple[str, ...] = ""
    """File, folder, glob pattern, {00000..00331}, {a,b} or URL (s3://...) of links, or a list of such; see docs/filter.md."""
    format: Format = "auto"
    """"auto" (by content and name), "tsv" (tabs), "csv", "jsonl" (an object a line), "parquet" or "webdataset" (tars)."""
    url_column: str = ""
    """Column of the URLs: a name, or its number from 1; "" finds it."""
    caption_column: str = ""
    """Column of the captions, or of lists of captions: a name, or its number from 1; "" finds it."""
    keep_columns: tuple[str, ...] = ()
    """Further columns carried through filter and download, for rules ({name: column, ...}) and readers of the shards."""
    header: Literal["auto", "yes", "no"] = "auto"
    """Whether the first line of a TSV or CSV names its columns: "auto" (if it holds no URL but known names), "yes" or "no"."""
    quoting: Literal["auto", "yes", "no"] = "auto"
    """Whether quotes around fields are the writer's, not the text's: "auto" (CSV: yes; TSV: if all can be), "yes" or "no"."""

    def __post_init__(self) -> None:
        for name in self.keep_columns:
            if name in OWN_NAMES:
                raise InputError(f"keep_columns: {name!r} is a column of the corpus or the shards; rename it in the source")
        if len(set(self.keep_columns)) < len(self.keep_columns) or "" in self.keep_columns:
            raise InputError(f"keep_columns: each column once, by its name, not {', '.join(map(repr, self.keep_columns))}")

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths one by one; none where nothing is set."""
        paths = (self.path,) if isinstance(self.path, str) else self.path
        return tuple(path for path in paths if path)

    @property
    def shown(self) -> str:
        """The paths, for people."""
        return ", ".join(self.paths)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of a source that can be read by itself. Plain values only: it travels to workers as JSON or as a table's row."""

    path: str
    """Absolute path or URL of the file."""
    kind: Kind
    """How to read it."""
    start: int = 0
    """First byte of a text (unpacked), first row group of a parquet file."""
    stop: int = END
    """The byte or row group after the last. A line belongs to the part in which it begins."""
    columns: list[int] = field(default_factory=list)
    """Positions of the URL, the caption and the columns to keep."""
    fields: list[str] = field(default_factory=list)
    """Names of these in a file that has names and no positions (JSON)."""
    keep: list[str] = field(default_factory=list)
    """Names of the columns to keep."""
    width: int = 0
    """Columns of a text table."""
    spare: int = 0
    """Further columns without a name behind these, which rows may lack."""
    delimiter: str = "\t"
    """What parts them."""
    quoted: bool = False
    """Whether quotes around their fields are the writer's."""
    rows_hint: int = 1
    """About how many rows there are."""
    raw: bool = False
    """Whether the captions of a table stay as they stand instead of being cleaned."""


class Rows(NamedTuple):
    """Some rows of a table as they stand in a file."""

    urls: Sequence[str | None]
    captions: Sequence[str | Sequence[Any] | None]
    """Captions, or lists of captions."""
    kept: list[pa.Array]
    """The columns to keep."""


def batches(rows: Iterable[_Row]) -> Iterator[list[_Row]]:
    """Up to `BATCH_ROWS` rows at a time; what comes before a fault is handed out before the fault is raised."""
    rows = iter(rows)
    fault = None
    while fault is None:
        batch: list[_Row] = []
        try:
            batch.extend(islice(rows, BATCH_ROWS))  # a list made in one go would be lost with the fault
        except Exception as error:
            fault = error
        if batch:
            yield batch
        elif fault is None:
            return
    raise fault
