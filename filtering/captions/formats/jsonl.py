"""JSON Lines: an object a line. Whatever the order of its fields, each row is read by their names."""

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

from filtering import InputError
from filtering.captions.formats.columns import find_columns
from filtering.captions.formats.source import Part, Rows, SourceConfig, batches
from filtering.captions.formats.text import Lines, ranges
from filtering.kept_columns import plain_array
from filtering.sources import Kind, open_unpacked

SAMPLE_ROWS = 200


def parts(path: str, kind: Kind, source: SourceConfig) -> Iterator[Part]:
    """The parts of a file: byte ranges, or all of it where it is packed."""
    with open_unpacked(path) as file:
        lines = Lines(file)
        sample = list(islice(lines, SAMPLE_ROWS))
        line_bytes = lines.at / max(1, len(sample))
    objects = [found for line in sample if (found := _object(line)) is not None]
    if not sample:
        return
    if not objects:
        raise InputError(f"filter.source.path: {path} has no JSON object in its first lines; give one a line, as .jsonl has")
    names = list(dict.fromkeys(name for one in objects for name in one))

    def holds_text(position: int) -> bool:
        values = [one.get(names[position]) for one in objects]
        return all(value is None or isinstance(value, str | list) for value in values)

    columns = find_columns(names, source, path, url_fits=holds_text, caption_fits=holds_text)
    for position in columns[:2]:
        if not holds_text(position):
            raise InputError(f"filter.source: the field {names[position]!r} of {path} holds no text; choose another one")
    fields, keep = [names[position] for position in columns], list(source.keep_columns)
    for start, stop, rows_hint in ranges(path, 0, line_bytes, whole=False):
        yield Part(path=path, kind=kind, start=start, stop=stop, fields=fields, keep=keep, rows_hint=rows_hint)


def rows(part: Part) -> Iterator[Rows]:
    """The rows of a part, in batches. A line that is no object has an empty URL, and itself as its caption."""
    with open_unpacked(part.path) as file:
        for batch in batches(_rows(Lines(file, part.start, part.stop), part)):
            urls, captions, *kept = zip(*batch, strict=True)
            yield Rows(urls, captions, list(map(plain_array, kept)))


def _rows(lines: Lines, part: Part) -> Iterator[tuple[Any, ...]]:
    url, caption, *kept = part.fields
    for line in lines:
        found = _object(line)
        if found is None:
            yield "", line, *[None] * len(kept)
        else:
            yield _text(found.get(url)), _texts(found.get(caption)), *[found.get(name) for name in kept]


def _object(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _text(value: object) -> str | None:
    """A text, without lone surrogates, which JSON's escapes can make; None for what is none."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else None


def _texts(value: object) -> str | list[str | None] | None:
    return [_text(one) for one in value] if isinstance(value, list) else _text(value)
