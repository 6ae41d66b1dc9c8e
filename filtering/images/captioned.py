"""An image and the rows of the corpus that caption it: asked for once, stored once, with all of its captions."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from filtering.schema import CAPTIONS, CORPUS, SAMPLE
from filtering.url import id_of

Row = dict[str, Any]
"""A kept row: a value per column."""


@dataclass(frozen=True)
class CaptionedImage:
    """An image with its rows, sorted by key. The first names the image and stands for all where one value is wanted."""

    id: str
    """What its result is remembered by."""
    rows: Sequence[Row]

    @property
    def key(self) -> str:
        """The name of the sample."""
        return str(self.rows[0]["key"])

    @property
    def url(self) -> str:
        """Where it is to be had; "" where that is not known."""
        return self.rows[0]["url"] or ""

    def columns(self) -> Row:
        """The values of the image's row in a table of statuses, but for those of RESULT."""
        first = {name: value for name, value in self.rows[0].items() if name != SAMPLE.name}
        if len(self.rows) == 1:
            return {**first, **dict.fromkeys(CAPTIONS.names)}
        of_rows = {name: [row[name] for row in self.rows] for name in ("caption", "entities", "key")}
        captions = {
            "captions": [caption or "" for caption in of_rows["caption"]],
            "caption_entities": [names or [] for names in of_rows["entities"]],
            "caption_keys": of_rows["key"],
        }
        return {**first, **captions}


def by_url(rows: Iterable[Row]) -> list[CaptionedImage]:
    """Rows sorted by key as images sorted by key: those of one URL are one image's."""
    images: dict[str, list[Row]] = {}
    for row in rows:
        images.setdefault(id_of(row["url"], row["key"]), []).append(row)
    return [CaptionedImage(id_, found) for id_, found in images.items()]


def carried(schema: pa.Schema) -> list[pa.Field]:
    """The columns of a corpus that are not ours and go through the download as they are (`filter.source.keep_columns`)."""
    ours = {*CORPUS.names, SAMPLE.name}
    return [field for field in schema if field.name not in ours]


def json_value(value: object) -> object:
    """A carried value in JSON: numbers, texts and null stay what they are; what JSON has no word for becomes null or text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [json_value(one) for one in value]
    if isinstance(value, dict):
        return {str(name): json_value(one) for name, one in value.items()}
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
