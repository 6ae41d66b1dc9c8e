"""Links from files as they come: text tables, JSON Lines, parquet, and WebDataset tars.

The input is cut into parts that can be read anywhere, each as a stream. A row with several captions becomes one row for each.
"""

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import pyarrow as pa

from filtering import InputError
from filtering.captions.formats import delimited, jsonl, parquet, tars
from filtering.captions.formats.source import Part, Rows, SourceConfig
from filtering.cleaning import clean
from filtering.schema import LINKS, key_of
from filtering.secrets import masked
from filtering.sources import find_files, identity_of, kind_of

_TABLES: dict[str, ModuleType] = {"tsv": delimited, "csv": delimited, "jsonl": jsonl, "parquet": parquet}


def parts_of(source: SourceConfig) -> list[Part]:
    """The parts of all files of `source`, in order; their formats and columns are detected here.

    Raises:
        InputError: no such file, or a format or column that is not there or cannot be detected.
    """
    kinds = {path: kind_of(path, source.format) for path in source_files(source)}
    archives = [path for path, kind in kinds.items() if kind == "webdataset"]
    if archives and len(archives) < len(kinds):
        table = next(path for path in kinds if path not in archives)
        raise InputError(
            f"filter.source.path: {source.shown} names both tars and tables ({archives[0]}, {table}); give one kind"
        )
    modules = {**_TABLES, "webdataset": tars}
    return [part for path, kind in kinds.items() for part in modules[kind].parts(path, kind, source)]


def read_part(part: Part) -> Iterator[pa.Table]:
    """The links of a part, as tables with the columns of `LINKS`, of tars with `SAMPLE` and `HAS_IMAGE` too, and those to keep.

    Captions are cleaned (`filtering.cleaning`) unless the part is raw, URLs stripped of white space; `key` is made from both.
    A row without a caption has an empty one.

    Raises:
        InputError: a file that is damaged or gone; the rows before the damage come first.
    """
    if part.kind == "webdataset":
        yield from tars.tables(part)
    else:
        for rows in _TABLES[part.kind].rows(part):
            yield _links(part, rows)


def read_links(source: SourceConfig) -> Iterator[pa.Table]:
    """The links of all parts of `source` in order. InputError as from `parts_of` and `read_part`, or if there is no row."""
    total = 0
    for part in parts_of(source):
        for table in read_part(part):
            total += table.num_rows
            yield table
    if not total:
        raise no_rows(source)


def no_rows(source: SourceConfig) -> InputError:
    """The mistake of a source without a row."""
    return InputError(f"filter.source.path: {source.shown} holds no rows; give a table with a URL and a caption per row")


def source_files(source: SourceConfig) -> list[str]:
    """The files that `source.path` names, sorted: absolute paths or URLs."""
    if not source.paths:
        raise InputError("filter.source.path: not set; give a .tsv or .parquet file of URLs and captions, or a folder of .tar")
    return find_files(source.paths, source.format)


def source_fingerprint(source: SourceConfig) -> object:
    """What identifies the input, as JSON: [name, identity] of each file, wherever the folder lies."""
    return [[masked(path).rpartition("/")[2], identity_of(path)] for path in source_files(source)]


def _links(part: Part, rows: Rows) -> pa.Table:
    urls = [url.strip() if url else "" for url in rows.urls]
    kept = rows.kept
    captions = [_captions(told, part.raw) for told in rows.captions]
    if any(len(texts) > 1 for texts in captions):
        place = [row for row, texts in enumerate(captions) for _ in texts]
        urls = [urls[row] for row in place]
        kept = [column.take(pa.array(place, pa.int64())) for column in kept]
    texts = [text for several in captions for text in several]
    columns = [pa.array(column, pa.string()) for column in (list(map(key_of, urls, texts)), urls, texts)]
    return pa.Table.from_arrays([*columns, *kept], names=[*LINKS.names, *part.keep])


def _captions(told: str | Sequence[Any] | None, raw: bool) -> list[str]:
    """The captions of a row, one or more; of none an empty one."""
    if isinstance(told, str):
        return [told if raw else clean(told)]
    texts = [text if raw else clean(text) for text in told or () if isinstance(text, str)]
    return [text for text in texts if text] or [""]
