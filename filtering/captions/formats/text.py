"""Lines of a text, and the fields that quotes make of them."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import IO, NamedTuple

from filtering.sources import END, is_packed, size_of

MAX_LINE = 1 << 20  # bytes; a longer line is no link, and memory stays flat
MAX_FIELD_LINES = 1000  # lines in one quoted field
PART_BYTES = 32 << 20
_SHOWN_OF_LONG = 200


class Range(NamedTuple):
    """A part of a text: the offsets between which its lines begin, and about how many there are."""

    start: int
    stop: int
    rows: int


def ranges(path: str, start: int, line_bytes: float, *, whole: bool) -> Iterator[Range]:
    """The parts of a text from `start` on; one if it is packed or must stay `whole`. A line takes some `line_bytes`."""
    size, packed = size_of(path), is_packed(path)
    for begin in [start] if whole or packed else range(start, size, PART_BYTES):
        end = min(size, END if whole else begin + PART_BYTES)
        taken = 3 * size if packed else end - begin  # text packs to about a third
        yield Range(begin, END if whole or packed else end, max(1, round(taken / line_bytes)))


class Lines:
    """The lines that begin at the offsets from `start` to before `stop`, without their ends. Only a line feed ends a line.

    Undecodable bytes are replaced, and a byte-order mark is skipped. `at` is the offset behind the last line.
    """

    def __init__(self, file: IO[bytes], start: int = 0, stop: int = END) -> None:
        self._file, self._stop = file, stop
        self._back: list[tuple[str, int]] = []
        self.at = start
        if start:
            self.at -= 1
            _skip(file, self.at)
            while self.at < stop and (raw := file.readline(MAX_LINE)):  # the end of the line before
                self.at += len(raw)
                if raw.endswith(b"\n"):
                    break

    def __iter__(self) -> Iterator[str]:
        """Lines that are not blank."""
        while (line := self.take()) is not None:
            if line:
                yield line

    def take(self) -> str | None:
        """The next line, even a blank one; None at the end."""
        if self._back:
            line, self.at = self._back.pop()
            return line
        if self.at >= self._stop or not (raw := self._file.readline(MAX_LINE)):
            return None
        encoding = "utf-8" if self.at else "utf-8-sig"
        self.at += len(raw)
        if len(raw) == MAX_LINE and not raw.endswith(b"\n"):
            while rest := self._file.readline(MAX_LINE):
                self.at += len(rest)
                if rest.endswith(b"\n"):
                    break
            raw = raw[:_SHOWN_OF_LONG].replace(b"\t", b" ")
        return raw.decode(encoding, errors="replace").rstrip("\r\n")

    def give_back(self, taken: list[tuple[str, int]]) -> None:
        """Take back lines that were taken last, each with the offset behind it."""
        if taken:
            self._back += reversed(taken)


def _skip(file: IO[bytes], offset: int) -> None:
    if file.seekable():
        file.seek(offset)
        return
    while offset > 0 and (passed := file.read(min(offset, MAX_LINE))):
        offset -= len(passed)


# ---- quotes


class Record(NamedTuple):
    """A row: its fields, and whether each stood in quotes."""

    fields: list[str]
    quoted: list[bool]
    lines: int = 1


_DOUBLED = re.compile(r'"((?:[^"]|"")*+)"')
"""A field in quotes; a quote inside is doubled."""
_ESCAPED = re.compile(r'"((?:[^"\\]|""|\\.)*+)"', re.DOTALL)
"""The same as some programs write it, with a backslash before a quote inside."""
_OPEN, _BROKEN = "open", "broken"


def _parse(text: str, delimiter: str, forms: Sequence[re.Pattern[str]]) -> Record | str:
    """The fields of a row; "open" if a quote is not closed yet, "broken" if quotes do not enclose whole fields."""
    fields: list[str] = []
    quoted: list[bool] = []
    at = 0
    while True:
        if text.startswith('"', at):
            found = [form.match(text, at) for form in forms]
            match = next((one for one in found if one and text[one.end() : one.end() + 1] in ("", delimiter)), None)
            if match is None:
                return _BROKEN if all(found) else _OPEN
            inside = match[1].replace('""', '"')
            fields.append(inside if match.re is _DOUBLED else re.sub(r"\\(.)", r"\1", inside, flags=re.DOTALL))
            end = match.end()
        else:
            end = text.find(delimiter, at)
            end = len(text) if end < 0 else end
            fields.append(text[at:end])
        quoted.append(text.startswith('"', at))
        if end >= len(text):
            return Record(fields, quoted)
        at = end + 1


StandsAlone = Callable[[str], bool]
"""Whether a line is a row by itself: a quote before it that is not closed does not reach over it."""


def read_record(line: str, lines: Lines, delimiter: str, stands_alone: StandsAlone) -> Record | None:
    """The row that begins with `line`, with as many of the next lines as its quotes enclose; None if they enclose no fields.

    A stray quote therefore never takes more than its own line.
    """
    for forms in ((_DOUBLED,), (_DOUBLED, _ESCAPED)):  # most writers double quotes, whatever stands before them
        if record := _read_record(line, lines, delimiter, stands_alone, forms):
            return record
    return None


def _read_record(
    line: str, lines: Lines, delimiter: str, stands_alone: StandsAlone, forms: Sequence[re.Pattern[str]]
) -> Record | None:
    text, taken = line, list[tuple[str, int]]()
    parsed = _parse(text, delimiter, forms)
    while parsed is _OPEN and len(taken) < MAX_FIELD_LINES and len(text) < MAX_LINE and (more := lines.take()) is not None:
        taken.append((more, lines.at))
        joined = f"{text}\n{more}"
        closed = _parse(joined, delimiter, forms) if '"' in more else _OPEN
        if stands_alone(more) and not (isinstance(closed, Record) and _encloses_no_row(closed, stands_alone)):
            break
        text, parsed = joined, closed
    if isinstance(parsed, Record):
        return parsed._replace(lines=1 + len(taken))
    lines.give_back(taken)
    return None


def _encloses_no_row(record: Record, stands_alone: StandsAlone) -> bool:
    """Whether no line of a field is a row: the end of a caption and the URL behind it look like one, and are none."""
    fields = (text for text in record.fields if "\n" in text)
    return not any(stands_alone(line) for text in fields for line in text.split("\n"))


def records(lines: Lines, delimiter: str, quoted: bool, stands_alone: StandsAlone) -> Iterator[list[str]]:
    """The fields of each row; where quotes enclose no fields they are characters like others."""
    for line in lines:
        record = read_record(line, lines, delimiter, stands_alone) if quoted and '"' in line else None
        yield line.split(delimiter) if record is None else record.fields


class Quotes(NamedTuple):
    """What the quotes of a text look like: the rows in which they are a writer's, those where they cannot be, each with one."""

    written: int = 0
    """Rows in which a writer of quotes would have put them."""
    spanning: str = ""
    """The beginning of a row that quotes hold together over several lines."""
    stray: str = ""
    """A row in which no writer of quotes could have put them."""


def look_at_quotes(lines: Lines, delimiter: str, stands_alone: StandsAlone, most: int) -> Iterator[Quotes]:
    """Judge the first `most` rows that hold quotes, one after another.

    A writer quotes a field because of a delimiter, a line end or a quote in it, or because it quotes all texts, and leaves no
    quote in a field that it does not quote. Needless quotes around a caption say nothing.
    """
    quotes = Quotes()
    for line in lines:
        if '"' not in line:
            continue
        record = read_record(line, lines, delimiter, stands_alone)
        if record is None or any('"' in text for text, quoted in zip(record.fields, record.quoted, strict=True) if not quoted):
            quotes = quotes._replace(stray=quotes.stray or line)
        elif record.lines > 1:
            quotes = quotes._replace(written=quotes.written + 1, spanning=quotes.spanning or line)
        elif sum(record.quoted) > 1 or _needed(record, delimiter):
            quotes = quotes._replace(written=quotes.written + 1)
        yield quotes
        most -= 1
        if not most:
            return


def _needed(record: Record, delimiter: str) -> bool:
    inside = [text for text, quoted in zip(record.fields, record.quoted, strict=True) if quoted]
    return any(not text or delimiter in text or '"' in text or "\r" in text for text in inside)
