"""A sample of a WebDataset tar: which of its members say what, and the rows of the corpus that they make."""

import json
import unicodedata
from collections.abc import Mapping
from typing import Any, NamedTuple

from filtering.cleaning import clean
from filtering.schema import key_of
from filtering.url import is_url

MAX_TEXT = 1 << 20  # bytes read of a sample's caption or metadata
CAPTION_NAMES = (
    *("caption", "text", "alttext", "alt", "imagecaption", "description", "title", "sentence", "label"),
    *("captions", "texts", "alttexts", "imagecaptions", "descriptions", "titles", "sentences"),
)
IMAGE_KINDS = frozenset({"jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "avif"})
TEXT_KINDS = frozenset({"txt", "json"})


class SampleRow(NamedTuple):
    """A row of the corpus, cleaned: the sample with one of its captions."""

    key: str
    url: str
    caption: str
    sample: str


def sample_rows(path: str, name: str, texts: Mapping[str, bytes]) -> list[SampleRow]:
    """The rows of the sample `name` of the tar `path`, one for each of its captions, made from its .txt and .json.

    The caption is the text's, else the metadata's; where that has a list of captions, all of them count. A sample without any
    has one row with an empty caption. The key is that of the link, or of the tar's file name and the sample's name
    where no URL is known: it stays when the folder moves.
    """
    told = {plain_name(field): value for field, value in metadata_of(texts).items()}
    single = texts.get("txt", b"").decode("utf-8-sig", errors="replace")
    captions = [clean(single)] if clean(single) else []
    for known in CAPTION_NAMES:
        value = told.get(known)
        if isinstance(value, list) and (not captions or known in ("caption", "captions")):
            captions += [clean(_valid(text)) for text in value if isinstance(text, str)]
        elif isinstance(value, str) and not captions:
            captions.append(clean(_valid(value)))
        captions = [text for text in captions if text]
    link = told.get("url")
    url = _valid(link).strip() if isinstance(link, str) else ""
    url = url if is_url(url) else ""
    named = url or f"{path.rpartition('/')[2]}::{name}"
    return [SampleRow(key_of(named, text), url, text, f"{path}::{name}") for text in dict.fromkeys(captions) or [""]]


def metadata_of(texts: Mapping[str, bytes]) -> dict[str, Any]:
    """What a sample's .json says by field; nothing if it is no mapping."""
    try:
        told = json.loads(texts.get("json", b"").decode("utf-8-sig", errors="replace"))
    except (ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def _valid(text: str) -> str:
    """The text without lone surrogates, which JSON's escapes can make."""
    return text.encode("utf-8", "replace").decode()


def plain_name(name: str) -> str:
    """A column's or a field's name in lower case, letters and digits alone."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFC", name.lower())))
