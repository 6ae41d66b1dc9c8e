"""Links from files as they come: TSV with or without header in either column order, and parquet with any column names.

TSV is read byte line by byte line, without quoting: a quote in a caption is a character, not an instruction, so it cannot
swallow the rows after it. A row that cannot be parted into URL and caption comes out with an empty URL and the whole line as
its caption, for the `bad_url` rule to drop and report: no row is lost in silence.
"""

import glob
import gzip
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from filtering.schema import LINKS, key_of
from filtering.stage import InputError
from filtering.text import clean
from filtering.url import is_url

BATCH_ROWS = 8192
MAX_LINE = 1 << 20  # bytes; a longer line is no link, and memory stays flat
SAMPLE_LINES = 200
SUFFIXES = (".parquet", ".tsv", ".txt", ".tsv.gz", ".txt.gz")
URL_NAMES = ("url", "imageurl", "imgurl", "imagelink", "link", "href", "src", "uri", "photourl", "image")
CAPTION_NAMES = ("caption", "text", "alttext", "alt", "imagecaption", "description", "title", "sentence", "label")

Row = tuple[str, str]
"""(url, caption) as they stand in the file."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Where the links are. With nothing but a path, format, header and columns are told by content."""

    path: str = ""
    """File, folder or glob pattern of the links: .tsv, .txt (both also .gz) or .parquet."""
    format: Literal["auto", "tsv", "parquet"] = "auto"
    """"auto" (by content), "tsv" (tab-separated, never quoted) or "parquet"."""
    url_column: str = ""
    """Column of the URLs: a name, or in a TSV without header its number from 1; "" finds it."""
    caption_column: str = ""
    """Column of the captions: a name, or in a TSV without header its number from 1; "" finds it."""
    header: Literal["auto", "yes", "no"] = "auto"
    """Whether a TSV's first line names its columns: "auto" (it does if it holds no URL but known names), "yes" or "no"."""


def read_links(source: SourceConfig) -> Iterator[pa.Table]:
    """The links of all files of `source` in order, as tables of schema `LINKS` with up to `BATCH_ROWS` rows.

    Captions are cleaned (`filtering.text.clean`), URLs stripped of white space; `key` is made from both.

    Raises:
        InputError: no such file, a column that is not there or cannot be told, or no row at all.
    """
    total = 0
    for path in source_files(source):
        rows = _parquet_rows(path, source) if _is_parquet(path, source) else _tsv_rows(path, source)
        while batch := list(islice(rows, BATCH_ROWS)):
            total += len(batch)
            yield _links(batch)
    if not total:
        raise InputError(f"filter.source.path: {source.path} holds no rows; give a table with a URL and a caption per row")


def source_files(source: SourceConfig) -> list[Path]:
    """The files that `source.path` names, sorted."""
    if not source.path:
        raise InputError("filter.source.path: not set; give a .tsv or .parquet file of URLs and captions")
    path = Path(source.path).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES) and not file.name.startswith("."))
        if not files:
            raise InputError(f"filter.source.path: no {', '.join(SUFFIXES)} file in the folder {source.path}")
        return files
    if path.is_file():
        return [path]
    files = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
    if not files:
        raise InputError(f"filter.source.path: no such file: {source.path}")
    return files


def _links(rows: Sequence[Row]) -> pa.Table:
    cleaned = [(url.strip(), clean(caption)) for url, caption in rows]
    columns = [[key_of(*row) for row in cleaned], [url for url, _ in cleaned], [caption for _, caption in cleaned]]
    return pa.Table.from_arrays([pa.array(column, pa.string()) for column in columns], schema=LINKS)


# ---- parquet


def _is_parquet(path: Path, source: SourceConfig) -> bool:
    if source.format != "auto":
        return source.format == "parquet"
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def _parquet_rows(path: Path, source: SourceConfig) -> Iterator[Row]:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"filter.source.path: {path} is not a readable parquet file: {_first_line(error)}") from error
    with file:
        names = file.schema_arrow.names
        url, caption = _named_columns(names, source, path)
        for column in (url, caption):
            kind = file.schema_arrow.field(column).type
            if pa.types.is_dictionary(kind):
                kind = kind.value_type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
                raise InputError(f"filter.source: column {column!r} of {path} holds {kind}, not text; choose another one")
        for batch in file.iter_batches(BATCH_ROWS, columns=[url, caption]):
            urls, captions = (batch.column(name).to_pylist() for name in (url, caption))
            yield from ((one or "", other or "") for one, other in zip(urls, captions, strict=True))


# ---- TSV


def _tsv_rows(path: Path, source: SourceConfig) -> Iterator[Row]:
    with path.open("rb") as raw, gzip.open(raw) if path.suffix == ".gz" else raw as file:
        try:
            lines = _lines(file)
            sample = list(islice(lines, SAMPLE_LINES))
            if not sample:
                return
            if sample[0].startswith("PAR1") or (sample[0].startswith("\ufffd\ufffd") and "\0" in sample[0]):  # parquet, UTF-16
                raise InputError(f"filter.source.path: {path} is not UTF-8 text with tabs; save it as TSV or parquet")
            if _has_header(sample[0], source):
                names = [name.strip() for name in sample.pop(0).split("\t")]
                url, caption = (names.index(name) for name in _named_columns(names, source, path))
                width = len(names)
            else:
                url, caption, width = _columns_by_content(sample, source, path)
            for part in (sample, lines):
                yield from (_part(line, url, caption, width) for line in part)
        except (gzip.BadGzipFile, EOFError) as error:
            raise InputError(f"filter.source.path: {path} is not a complete gzip file: {_first_line(error)}") from error


def _lines(file: IO[bytes] | gzip.GzipFile) -> Iterator[str]:
    """Lines as text: split at line feeds alone, undecodable bytes replaced, a byte-order mark skipped, blank lines too."""
    first = True
    while raw := file.readline(MAX_LINE):
        if not raw.endswith(b"\n") and len(raw) == MAX_LINE:
            while (rest := file.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                pass
            raw = raw[:200].replace(b"\t", b" ")
        line = raw.decode("utf-8-sig" if first else "utf-8", errors="replace").rstrip("\r\n")
        first = False
        if line:
            yield line


def _has_header(first_line: str, source: SourceConfig) -> bool:
    if source.header != "auto":
        return source.header == "yes"
    fields = [field.strip() for field in first_line.split("\t")]
    if any(map(is_url, fields)):
        return False
    asked = {source.url_column, source.caption_column} - {""}
    plain = {_plain(field) for field in fields}
    return bool(asked & set(fields)) or bool(plain & set(URL_NAMES)) or (len(fields) > 1 and bool(plain & set(CAPTION_NAMES)))


def _columns_by_content(sample: Sequence[str], source: SourceConfig, path: Path) -> tuple[int, int, int]:
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


def _number(asked: str, key: str, width: int, path: Path) -> int | None:
    """The index that a column number stands for; None where nothing is asked."""
    if not asked:
        return None
    if not asked.isdecimal() or not 1 <= int(asked) <= width:
        raise InputError(f"filter.source.{key}: {path} has no header and {width} columns; give a number from 1 to {width}")
    return int(asked) - 1


def _part(line: str, url: int, caption: int, width: int) -> Row:
    """URL and caption of a line. Of two columns the caption may hold tabs itself, since a URL never does."""
    fields = line.split("\t")
    if width == 2 and len(fields) > 2:
        fields = [fields[0], " ".join(fields[1:])] if url == 0 else [" ".join(fields[:-1]), fields[-1]]
    return (fields[url], fields[caption]) if len(fields) == width else ("", line)


# ---- column names


def _named_columns(names: Sequence[str], source: SourceConfig, path: Path) -> tuple[str, str]:
    """The names of the URL and the caption column: those asked for, else the best known ones, whatever their case."""
    asked = (("url_column", source.url_column, URL_NAMES), ("caption_column", source.caption_column, CAPTION_NAMES))
    url, caption = (_named(names, wanted, known, key, path) for key, wanted, known in asked)
    return url, caption


def _named(names: Sequence[str], wanted: str, known: Iterable[str], key: str, path: Path) -> str:
    if wanted in names:
        return wanted
    plain = {_plain(name): name for name in reversed(names)}
    candidates = [_plain(wanted)] if wanted else known
    for name in candidates:
        if name in plain:
            return plain[name]
    missing = f"no column {wanted!r}" if wanted else f"no column that looks like the {key.removesuffix('_column')}s"
    raise InputError(f"filter.source.{key}: {missing} in {path}; it has: {', '.join(names)}")


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
