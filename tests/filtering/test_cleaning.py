"""Cleaning of captions: its short cut changes nothing."""

import html
import unicodedata

import pyarrow.parquet as pq

from filtering.cleaning import _CONTROL, _STYLED, clean
from helpers.paths import CAPTIONS, needs


def plainly_clean(caption: str) -> str:
    """What `clean` means, without its short cut."""
    if "&" in caption:
        caption = html.unescape(html.unescape(caption))
    caption = _STYLED.sub(lambda match: unicodedata.normalize("NFKC", match[0]), caption)
    return " ".join(_CONTROL.sub("", unicodedata.normalize("NFC", caption)).split())


def test_the_short_cut_of_cleaning_changes_nothing() -> None:
    pieces = [
        "a",
        "Z",
        " ",
        "  ",
        "&amp;",
        "&",
        "\t",
        "\n",
        "\r",
        "\0",
        "\x0b",
        "\x1c",
        "\x7f",
        "\x85",
        "\xa0",
        "e\u0301",
        "\u200b",
    ]
    pieces += ["\u2028", "\u3000", "\ufeff", "\U0001f415", "~", "!", ""]
    for first in pieces:
        for second in pieces:
            for third in pieces:
                caption = first + second + third
                assert clean(caption) == plainly_clean(caption), repr(caption)
    for code in range(0x3000):
        assert clean(f" a{chr(code)} ") == plainly_clean(f" a{chr(code)} "), hex(code)


@needs(CAPTIONS)
def test_the_short_cut_of_cleaning_changes_nothing_on_real_captions() -> None:
    captions = (CAPTIONS / "cc3m_validation.tsv").read_text(encoding="utf-8").split("\n")
    captions += pq.read_table(CAPTIONS / "web_alt_text_10k.parquet")["TEXT"].to_pylist()
    assert len(captions) > 25_000
    assert [clean(caption) for caption in captions] == [plainly_clean(caption) for caption in captions]
