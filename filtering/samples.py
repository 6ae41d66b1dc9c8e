"""A sample of a WebDataset tar: which of its members say what, and the row of the corpus that they make."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from filtering.cleaning import clean
from filtering.schema import key_of
from filtering.url import is_url

MAX_TEXT = 1 << 20  # bytes read of a sample's caption or metadata
CAPTION_NAMES = ("caption", "text", "alttext", "alt", "imagecaption", "description", "title", "sentence", "label")
IMAGE_KINDS = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "avif"})
TEXT_KINDS = frozenset({"txt", "json"})

SampleRow = tuple[str, str, str, str]
"""(key, url, caption, sample), cleaned."""


def sample_row(path: str, name: str, texts: Mapping[str, bytes], *, image: bool) -> SampleRow:
    """The row of the sample `name` of the tar `path`, made from its .txt and .json.

    The caption is the text's, else the metadata's; without an `image` it is empty. The key is that of the link, or of the
    tar's file name and the sample's name where no URL is known: it stays when the folder moves.
    """
    told = _metadata(texts.get("json", b""))
    caption = texts.get("txt", b"").decode("utf-8-sig", errors="replace")
    caption = clean(caption) or clean(told.get(next((known for known in CAPTION_NAMES if told.get(known)), ""), ""))
    caption = caption if image else ""
    url = told.get("url", "").strip()
    url = url if is_url(url) else ""
    return key_of(url or f"{path.rpartition('/')[2]}::{name}", caption), url, caption, f"{path}::{name}"


def _metadata(content: bytes) -> dict[str, str]:
    """The texts in a sample's metadata by plain name."""
    try:
        told = json.loads(content.decode("utf-8-sig", errors="replace"))
    except (ValueError, RecursionError):
        return {}
    pairs: Iterable[tuple[str, Any]] = told.items() if isinstance(told, dict) else ()
    return {plain_name(name): _valid(value) for name, value in pairs if isinstance(value, str)}


def _valid(text: str) -> str:
    """The text without lone surrogates, which JSON's escapes can make."""
    return text.encode("utf-8", "replace").decode()


def plain_name(name: str) -> str:
    """A column's or a field's name in lower case, letters and digits alone."""
    return "".join(filter(str.isalnum, name.lower()))
