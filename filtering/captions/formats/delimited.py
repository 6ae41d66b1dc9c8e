"""Text tables: TSV and CSV, with or without a header, with or without a writer's quotes, in either column order.

A row that cannot be parted into its columns comes out with an empty URL and the whole line as its caption, for the
`bad_url` rule to drop and report: no row is lost in silence.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import NamedTuple

import pyarrow as pa

from filtering import InputError
from filtering.captions.formats.columns import URL_NAMES, find_columns
from filtering.captions.formats.source import Part, Rows, SourceConfig, batches
from filtering.captions.formats.text import Lines, Quotes, look_at_quotes, ranges, records
from filtering.samples import CAPTION_NAMES, plain_name
from filtering.sources import Kind, open_unpacked
from filtering.url import is_url

SAMPLE_ROWS = 200
QUOTED_ROWS = 200
"""Rows with quotes that are looked at to tell whether quotes are a writer's."""
_DELIMITERS = {"tsv": "\t", "csv": ",;\t|"}


def parts(path: str, kind: Kind, source: SourceConfig) -> Iterator[Part]:
    """The parts of a text table: byte ranges, or all of it where it is packed or quoted, since a field may hold line feeds."""
    quoted = _is_quoted(path, kind, source)
    table = _look(path, kind, quoted, source)
    if table is None:
        return
    for start, stop, rows_hint in ranges(path, table.start, table.row_bytes, whole=quoted):
        yield Part(
            path=path,
            kind=kind,
            start=start,
            stop=stop,
            columns=table.columns,
            keep=list(source.keep_columns),
            width=table.width,
            spare=table.spare,
            delimiter=table.delimiter,
            quoted=quoted,
            rows_hint=rows_hint,
        )


def rows(part: Part) -> Iterator[Rows]:
    """The rows of a part, in batches."""
    with open_unpacked(part.path) as file:
        for batch in batches(_rows(Lines(file, part.start, part.stop), part)):
            urls, captions, *kept = zip(*batch, strict=True)
            yield Rows(urls, captions, [pa.array([text or None for text in column], pa.string()) for column in kept])


def _rows(lines: Lines, part: Part) -> Iterator[tuple[str, ...]]:
    """The texts of the columns of `part`, of each row."""
    url = part.columns[0]
    width, delimiter = part.width, part.delimiter
    alone = partial(_stands_alone, delimiter=delimiter, width=width, url=url)
    unreadable = [""] * len(part.keep)
    for fields in records(lines, delimiter, part.quoted, alone):
        if width < len(fields) <= width + part.spare:
            fields = fields[:width]
        elif len(fields) > width:
            fields = _fitted(fields, width, url, delimiter)
        if len(fields) == width:
            yield tuple([fields[position] for position in part.columns])
        else:
            yield "", delimiter.join(fields), *unreadable


def _fitted(fields: list[str], width: int, url: int, delimiter: str) -> list[str]:
    """A row of too many fields: empty ones at the end say nothing; of two the caption may hold tabs, a URL never does."""
    if not any(fields[width:]):
        return fields[:width]
    if width == 2 and delimiter == "\t" and url < 2:
        return [fields[0], " ".join(fields[1:])] if url == 0 else [" ".join(fields[:-1]), fields[-1]]
    return fields


def _stands_alone(line: str, *, delimiter: str, width: int, url: int) -> bool:
    """Whether a line is a row by itself. Commas are frequent in text, so there its own quotes must come out even, too."""
    fields = line.split(delimiter)
    if len(fields) != width or (delimiter != "\t" and line.count('"') % 2):
        return False
    return is_url(fields[url].strip('"'))


def _looks_like_a_row(line: str) -> bool:
    """The same of a line with tabs, before anything is known of the columns."""
    fields = line.split("\t")
    return len(fields) > 1 and any(is_url(field.strip('"')) for field in fields)


# ---- what a file looks like


class _Table(NamedTuple):
    columns: list[int]
    width: int
    delimiter: str
    start: int
    """Offset of the first row."""
    row_bytes: float
    """Bytes that a row takes on average."""
    spare: int = 0
    """Columns without a name behind the others."""


def _is_quoted(path: str, kind: Kind, source: SourceConfig) -> bool:
    if source.quoting != "auto" or kind == "csv":
        return source.quoting != "no"
    quotes = Quotes()
    with suppress(InputError), open_unpacked(path) as file:  # whoever reads a damaged file will say so
        for found in look_at_quotes(Lines(file), "\t", _looks_like_a_row, QUOTED_ROWS):
            quotes = found
    if quotes.spanning and quotes.stray:
        raise InputError(
            f"filter.source.quoting: {path} has quotes that a writer put around line feeds ({quotes.spanning[:60]!r}) and "
            f"others that belong to the text ({quotes.stray[:60]!r}); set it to yes, to join such lines, or to no"
        )
    return quotes.written > 0 and not quotes.stray


def _look(path: str, kind: Kind, quoted: bool, source: SourceConfig) -> _Table | None:
    """What the first rows tell; None of a file without any."""
    with open_unpacked(path) as file:
        head = Lines(file)
        first = next(iter(head), None)
    if first is None:
        return None
    if first.startswith("PAR1") or (first.startswith("\ufffd\ufffd") and "\0" in first):  # parquet, UTF-16
        raise InputError(f"filter.source.path: {path} is not UTF-8 text; save it as UTF-8 TSV, CSV or parquet")
    delimiter = _delimiter_of(path, kind, quoted)
    with open_unpacked(path) as file:
        lines = Lines(file)
        found = records(lines, delimiter, quoted, lambda line: False)
        sample = [next(found)]
        after_first = lines.at
        sample += islice(found, SAMPLE_ROWS - 1)
        row_bytes = lines.at / len(sample)
    if not _has_header(sample[0], source):
        return _Table(*_columns_by_content(sample, source, path), delimiter, 0, row_bytes)
    names, *others = sample
    names = [name.strip() for name in names]
    while names and not names[-1]:
        names.pop()  # a delimiter at the end of the header often opens no column
    spare = len(sample[0]) - len(names)
    if _lacks_a_name(names, others):
        names = ["", *names]
    urls = _urls_by_column(others, len(names))

    def holds_urls(position: int) -> bool:
        return urls[position] > 0

    columns = find_columns(names, source, path, url_fits=holds_urls, caption_fits=lambda position: True)
    return _Table(columns, len(names), delimiter, after_first, row_bytes, spare)


def _delimiter_of(path: str, kind: Kind, quoted: bool) -> str:
    """The one that parts the first rows into the same number of columns most often, with at least two."""
    scores = []
    for delimiter in _DELIMITERS[kind]:
        with open_unpacked(path) as file:
            found = list(islice(records(Lines(file), delimiter, quoted, lambda line: False), SAMPLE_ROWS))
        width, count = Counter(len(fields) for fields in found).most_common(1)[0]
        scores.append((width > 1, count, delimiter))
    return max(scores, key=lambda score: score[:2])[2]


def _has_header(first: Sequence[str], source: SourceConfig) -> bool:
    if source.header != "auto":
        return source.header == "yes"
    fields = [field.strip() for field in first]
    if any(map(is_url, fields)):
        return False
    asked = {source.url_column, source.caption_column, *source.keep_columns} - {""}
    plain = {plain_name(field) for field in fields}
    return bool(asked & set(fields)) or bool(plain & set(URL_NAMES)) or (len(fields) > 1 and bool(plain & set(CAPTION_NAMES)))


def _lacks_a_name(names: Sequence[str], others: Sequence[Sequence[str]]) -> bool:
    """Whether rows begin with a number or name of their own that the header has no name for, as R writes them."""
    widths = Counter(map(len, others))
    if not others or widths.most_common(1)[0][0] != len(names) + 1 or "" in names:
        return False
    urls = _urls_by_column(others, len(names) + 1)
    called = [position for position, name in enumerate(names) if plain_name(name) in URL_NAMES]
    return any(urls[position + 1] > urls[position] for position in called)


def _urls_by_column(sample: Sequence[Sequence[str]], width: int) -> list[int]:
    rows_ = [row for row in sample if len(row) >= width]
    return [sum(is_url(row[column]) for row in rows_) for column in range(width)]


def _columns_by_content(sample: Sequence[Sequence[str]], source: SourceConfig, path: str) -> tuple[list[int], int]:
    """The columns of rows without header, and how many there are."""
    widths = [len(row) for row in sample if any(map(is_url, row))]
    width = max(set(widths), key=lambda one: (widths.count(one), -one)) if widths else max(map(len, sample))
    same = [row for row in sample if len(row) == width]
    asked_url, asked_caption = (
        _number(asked, key, width, path)
        for asked, key in ((source.url_column, "url_column"), (source.caption_column, "caption_column"))
    )
    kept = [_number(name, "keep_columns", width, path) or 0 for name in source.keep_columns]
    urls = [sum(is_url(row[column]) for row in same) for column in range(width)]
    url = asked_url if asked_url is not None else max(range(width), key=urls.__getitem__)
    if asked_url is None and not urls[url]:
        shown = " | ".join(sample[0])[:60]
        raise InputError(
            f"filter.source.path: no column of {path} holds URLs (first line: {shown!r}); "
            "set filter.source.url_column, or filter.source.header=yes if the first line names the columns"
        )
    letters = [sum(sum(map(str.isalpha, row[column])) for row in same) for column in range(width)]
    others = [column for column in range(width) if column != url and urls[column] <= urls[url] // 2]
    if asked_caption is None and not others:
        raise InputError(f"filter.source.path: {path} has no column beside the URLs; captions are needed too")
    caption = asked_caption if asked_caption is not None else max(others, key=letters.__getitem__)
    return [url, caption, *kept], width


def _number(asked: str, key: str, width: int, path: str) -> int | None:
    """The index that a column number stands for; None where nothing is asked."""
    if not asked:
        return None
    if not asked.isdecimal() or not 1 <= int(asked) <= width:
        raise InputError(f"filter.source.{key}: {path} has no header and {width} columns; give a number from 1 to {width}")
    return int(asked) - 1
