"""Links from files as they come: TSV with or without header in either column order, parquet, and WebDataset tars.

The input is cut into parts that can be read anywhere, each as a stream. TSV is read byte line by byte line, without quoting: a
quote in a caption is a character, not an instruction, so it cannot swallow the rows after it. A row that cannot be parted into
URL and caption comes out with an empty URL and the whole line as its caption, for the `bad_url` rule to drop and report: no row
is lost in silence.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Literal, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from filtering import InputError
from filtering.cleaning import clean
from filtering.samples import CAPTION_NAMES, IMAGE_KINDS, MAX_TEXT, TEXT_KINDS, SampleRow, plain_name, sample_row
from filtering.schema import LINKS, SAMPLE, key_of
from filtering.secrets import masked
from filtering.sources import (
    END,
    Kind,
    find_files,
    first_line,
    identity_of,
    kind_of,
    lines,
    open_file,
    open_lines,
    open_tar,
    size_of,
)
from filtering.url import is_url

BATCH_ROWS = 8192
PART_BYTES = 32 << 20
PART_ROWS = 1 << 18  # of parquet, whose row groups come in all sizes
SAMPLE_LINES = 200
SAMPLE_BYTES = 1 << 16  # guess of what a sample of a tar takes; for progress alone
URL_NAMES = ("url", "imageurl", "imgurl", "imagelink", "link", "href", "src", "uri", "photourl", "image")

Row = tuple[str, str]
"""(url, caption) as they stand in the file."""
_Row = TypeVar("_Row")


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Where the links are. With nothing but a path, format, header and columns are detected from the content."""

    path: str = ""
    """File, folder or glob pattern of the links: .tsv, .txt (both also .gz), .parquet, or .tar; also a URL (s3://...)."""
    format: Literal["auto", "tsv", "parquet", "webdataset"] = "auto"
    """"auto" (by content), "tsv" (tab-separated, never quoted), "parquet" or "webdataset" (tars of images and captions)."""
    url_column: str = ""
    """Column of the URLs: a name, or in a TSV without header its number from 1; "" finds it."""
    caption_column: str = ""
    """Column of the captions: a name, or in a TSV without header its number from 1; "" finds it."""
    header: Literal["auto", "yes", "no"] = "auto"
    """Whether a TSV's first line names its columns: "auto" (it does if it holds no URL but known names), "yes" or "no"."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of a source that can be read by itself. Plain values only: it travels to workers as JSON or as a table's row."""

    path: str
    """Absolute path or URL of the file."""
    kind: Kind
    """How to read it."""
    start: int = 0
    """First byte of a TSV (unpacked), first row group of a parquet file."""
    stop: int = END
    """The byte or row group after the last. A line belongs to the part in which it begins."""
    url: int = 0
    """Index of the URL column."""
    caption: int = 0
    """Index of the caption column."""
    width: int = 0
    """Columns of a TSV."""
    rows_hint: int = 1
    """About how many rows there are."""
    raw: bool = False
    """Whether the captions of a table stay as they stand instead of being cleaned."""


def parts_of(source: SourceConfig) -> list[Part]:
    """The parts of all files of `source`, in order; their formats and columns are detected here.

    Raises:
        InputError: no such file, or a format or column that is not there or cannot be detected.
    """
    kinds = {path: kind_of(path, source.format) for path in source_files(source)}
    tars = [path for path, kind in kinds.items() if kind == "webdataset"]
    if tars and len(tars) < len(kinds):
        table = next(path for path in kinds if path not in tars)
        raise InputError(f"filter.source.path: {source.path} names both tars and tables ({tars[0]}, {table}); give one kind")
    cut = {"tsv": _tsv_parts, "tsv.gz": _tsv_parts, "parquet": _parquet_parts, "webdataset": _tar_parts}
    return [part for path, kind in kinds.items() for part in cut[kind](path, kind, source)]


def read_part(part: Part) -> Iterator[pa.Table]:
    """The links of a part, as tables of schema `LINKS` (of tars with `SAMPLE` too) with up to `BATCH_ROWS` rows.

    Captions are cleaned (`filtering.cleaning`) unless the part is raw, URLs stripped of white space; `key` is made from both.

    Raises:
        InputError: a file that is damaged or gone; the rows before the damage come first.
    """
    if part.kind == "parquet":
        yield from map(partial(_links, part), _batches(_parquet_rows(part)))
    elif part.kind == "webdataset":
        yield from map(_samples, _batches(_tar_rows(part)))
    else:
        yield from map(partial(_links, part), _batches(_tsv_rows(part)))


def read_links(source: SourceConfig) -> Iterator[pa.Table]:
    """The links of all parts of `source` in order. InputError as from `parts_of` and `read_part`, or if there is no row."""
    total = 0
    for part in parts_of(source):
        for table in read_part(part):
            total += table.num_rows
            yield table
    if not total:
        raise InputError(f"filter.source.path: {source.path} holds no rows; give a table with a URL and a caption per row")


def source_files(source: SourceConfig) -> list[str]:
    """The files that `source.path` names, sorted: absolute paths or URLs."""
    if not source.path:
        raise InputError("filter.source.path: not set; give a .tsv or .parquet file of URLs and captions, or a folder of .tar")
    return find_files(source.path, source.format)


def source_fingerprint(source: SourceConfig) -> object:
    """What identifies the input, as JSON: [name, identity] of each file, wherever the folder lies."""
    return [[masked(path).rpartition("/")[2], identity_of(path)] for path in source_files(source)]


def _batches(rows: Iterable[_Row]) -> Iterator[list[_Row]]:
    """Up to `BATCH_ROWS` rows at a time; what comes before a fault is handed out before the fault is raised."""
    rows = iter(rows)
    fault = None
    while fault is None:
        batch: list[_Row] = []
        try:
            batch.extend(islice(rows, BATCH_ROWS))  # a list made in one go would be lost with the fault
        except InputError as error:
            fault = error
        if batch:
            yield batch
        elif fault is None:
            return
    raise fault


def _links(part: Part, batch: Sequence[Row]) -> pa.Table:
    urls = [url.strip() for url, _ in batch]
    captions = [caption if part.raw else clean(caption) for _, caption in batch]
    columns = [list(map(key_of, urls, captions)), urls, captions]
    return pa.Table.from_arrays([pa.array(column, pa.string()) for column in columns], schema=LINKS)


# ---- parquet


def _parquet_parts(path: str, kind: Kind, source: SourceConfig) -> Iterator[Part]:
    with open_file(path) as raw:
        try:
            metadata = pq.read_metadata(raw)
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"filter.source.path: {path} is not a readable parquet file: {first_line(error)}") from error
    fields = {field.name: _value_type(field.type) for field in metadata.schema.to_arrow_schema()}
    names, texts = list(fields), [name for name, type_ in fields.items() if _is_text(type_)]
    columns = _named_columns(names, source, path, texts)
    for column in columns:
        if column not in texts:
            raise InputError(f"filter.source: column {column!r} of {path} holds {fields[column]}, not text; choose another one")
    url, caption = map(names.index, columns)
    start = rows = 0
    for group in range(metadata.num_row_groups):
        rows += metadata.row_group(group).num_rows
        if rows >= PART_ROWS or group == metadata.num_row_groups - 1:
            yield Part(path=path, kind=kind, start=start, stop=group + 1, url=url, caption=caption, rows_hint=rows)
            start, rows = group + 1, 0


def _parquet_rows(part: Part) -> Iterator[Row]:
    with open_file(part.path) as raw, pq.ParquetFile(raw, buffer_size=1 << 20) as file:
        names = [file.schema_arrow.names[column] for column in (part.url, part.caption)]
        for batch in file.iter_batches(BATCH_ROWS, row_groups=range(part.start, part.stop), columns=names):
            yield from zip(*(_texts(batch.column(name)) for name in names), strict=True)


def _texts(column: pa.Array) -> list[str]:
    """The strings of a text column of any kind; "" for null, and bytes that are not UTF-8 replaced."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        return [text or "" for text in column.to_pylist()]
    except UnicodeDecodeError:
        binary = column.cast(pa.large_binary())
        return [(text or b"").decode("utf-8", errors="replace") for text in binary.to_pylist()]


def _value_type(type_: pa.DataType) -> pa.DataType:
    return type_.value_type if pa.types.is_dictionary(type_) else type_


def _is_text(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_))


# ---- WebDataset tars


def _tar_parts(path: str, kind: Kind, source: SourceConfig) -> Iterator[Part]:
    if "::" in path:
        raise InputError(f'filter.source.path: "::" in the path of a tar parts it from the names of samples; rename {path}')
    yield Part(path=path, kind=kind, rows_hint=max(1, size_of(path) // SAMPLE_BYTES))


def _tar_rows(part: Part) -> Iterator[SampleRow]:
    with open_tar(part.path) as samples:
        for name, files in samples:
            texts, image = {}, False
            for file in files:
                if file.kind in TEXT_KINDS:
                    texts[file.kind] = file.read(MAX_TEXT)
                image = image or file.kind in IMAGE_KINDS
            yield sample_row(part.path, name, texts, image=image)


def _samples(batch: Sequence[SampleRow]) -> pa.Table:
    columns = zip(*batch, strict=True)
    return pa.Table.from_arrays([pa.array(column, pa.string()) for column in columns], schema=pa.schema([*LINKS, SAMPLE]))


# ---- TSV


def _tsv_parts(path: str, kind: Kind, source: SourceConfig) -> Iterator[Part]:
    packed = kind == "tsv.gz"
    with open_lines(path, packed=packed) as file:
        found = lines(file)
        first = next(found, None)
        if first is None:
            return
        if first.startswith("PAR1") or (first.startswith("\ufffd\ufffd") and "\0" in first):  # parquet, UTF-16
            raise InputError(f"filter.source.path: {path} is not UTF-8 text with tabs; save it as TSV or parquet")
        after_first = file.tell()
        sample = [first, *islice(found, SAMPLE_LINES - 1)]
        bytes_per_line = file.tell() / len(sample)
    start = 0
    if _has_header(first, source):
        names = [name.strip() for name in first.split("\t")]
        url, caption = (names.index(name) for name in _named_columns(names, source, path, names))
        start, width = after_first, len(names)
    else:
        url, caption, width = _columns_by_content(sample, source, path)
    size = size_of(path)
    for begin in [start] if packed else range(start, size, PART_BYTES):
        end = END if packed else min(begin + PART_BYTES, size)
        hint = max(1, round((3 * size if packed else end - begin) / bytes_per_line))  # text packs to about a third
        yield Part(path=path, kind=kind, start=begin, stop=end, url=url, caption=caption, width=width, rows_hint=hint)


def _tsv_rows(part: Part) -> Iterator[Row]:
    url, caption, width = part.url, part.caption, part.width
    with open_lines(part.path, packed=part.kind == "tsv.gz") as file:
        for line in lines(file, part.start, part.stop):
            fields = line.split("\t")
            if width == 2 and len(fields) > 2:  # of two columns the caption may hold tabs itself, since a URL never does
                fields = [fields[0], " ".join(fields[1:])] if url == 0 else [" ".join(fields[:-1]), fields[-1]]
            yield (fields[url], fields[caption]) if len(fields) == width else ("", line)


def _has_header(first_line: str, source: SourceConfig) -> bool:
    if source.header != "auto":
        return source.header == "yes"
    fields = [field.strip() for field in first_line.split("\t")]
    if any(map(is_url, fields)):
        return False
    asked = {source.url_column, source.caption_column} - {""}
    plain = {plain_name(field) for field in fields}
    return bool(asked & set(fields)) or bool(plain & set(URL_NAMES)) or (len(fields) > 1 and bool(plain & set(CAPTION_NAMES)))


def _columns_by_content(sample: Sequence[str], source: SourceConfig, path: str) -> tuple[int, int, int]:
    """(URL column, caption column, number of columns) of lines without header."""
    rows = [line.split("\t") for line in sample]
    widths = [len(row) for row in rows if any(map(is_url, row))]
    width = max(set(widths), key=lambda one: (widths.count(one), -one)) if widths else max(map(len, rows))
    asked_url, asked_caption = (
        _number(asked, key, width, path)
        for asked, key in ((source.url_column, "url_column"), (source.caption_column, "caption_column"))
    )
    urls = [sum(is_url(row[column]) for row in rows if len(row) == width) for column in range(width)]
    url = asked_url if asked_url is not None else max(range(width), key=urls.__getitem__)
    if asked_url is None and not urls[url]:
        raise InputError(
            f"filter.source.path: no column of {path} holds URLs (first line: {sample[0][:60]!r}); "
            "set filter.source.url_column, or filter.source.header=yes if the first line names the columns"
        )
    letters = [sum(sum(map(str.isalpha, row[column])) for row in rows if len(row) == width) for column in range(width)]
    others = [column for column in range(width) if column != url and urls[column] <= urls[url] // 2]
    if asked_caption is None and not others:
        raise InputError(f"filter.source.path: {path} has no column beside the URLs; captions are needed too")
    return url, asked_caption if asked_caption is not None else max(others, key=letters.__getitem__), width


def _number(asked: str, key: str, width: int, path: str) -> int | None:
    """The index that a column number stands for; None where nothing is asked."""
    if not asked:
        return None
    if not asked.isdecimal() or not 1 <= int(asked) <= width:
        raise InputError(f"filter.source.{key}: {path} has no header and {width} columns; give a number from 1 to {width}")
    return int(asked) - 1


# ---- column names


def _named_columns(names: Sequence[str], source: SourceConfig, path: str, texts: Sequence[str]) -> tuple[str, str]:
    """The names of the URL and the caption column: those asked for, else the best known ones, whatever their case.

    Of columns that may be meant, those among `texts` come first.
    """
    asked = (("url_column", source.url_column, URL_NAMES), ("caption_column", source.caption_column, CAPTION_NAMES))
    url, caption = (_named(names, texts, wanted, known, key, path) for key, wanted, known in asked)
    return url, caption


def _named(names: Sequence[str], texts: Sequence[str], wanted: str, known: Iterable[str], key: str, path: str) -> str:
    if wanted in names:
        return wanted
    candidates = [plain_name(wanted)] if wanted else list(known)
    for pool in (texts, names):
        plain = {plain_name(name): name for name in reversed(pool)}
        for name in candidates:
            if name in plain:
                return plain[name]
    missing = f"no column {wanted!r}" if wanted else f"no column that looks like the {key.removesuffix('_column')}s"
    raise InputError(f"filter.source.{key}: {missing} in {path}; it has: {', '.join(names)}")
