"""Cleaning of captions: its short cut changes nothing."""

import unicodedata

import pyarrow.parquet as pq
import pytest

from filtering.cleaning import _DELETED, _READ_AS, _STYLED, _unescaped, clean
from helpers.paths import CAPTIONS, needs


def plainly_clean(caption: str) -> str:
    """What `clean` means, without its short cut."""
    if "&" in caption:
        caption = _unescaped(_unescaped(caption))
    caption = _STYLED.sub(lambda match: unicodedata.normalize("NFKC", match[0]), caption.translate(_READ_AS))
    return " ".join(unicodedata.normalize("NFC", _DELETED.sub("", caption)).split())


SEPARATORS = (
    "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u2009\u200a\u200b\u2028\u2029\u202f\u205f\u3000\u3164\u2800\ufffc"
)
WITHOUT_WIDTH = (
    "\0\x01\x08\x0e\x1b\x7f\xad\u061c\u200c\u200d\u200e\u200f\u202a\u202e\u2060\u2063\u2066\u2069\u206f\ufeff\ufff9\uffff\ud800"
)


@pytest.mark.parametrize("mark", SEPARATORS)
def test_what_separates_becomes_a_space(mark: str) -> None:
    assert clean(f"a cat{mark}on a chair") == clean(f"a cat {mark}{mark}on a chair{mark}") == "a cat on a chair"
    if mark != "\x85":  # which HTML reads as an ellipsis
        assert clean(f"a cat&#x{ord(mark):x};on a chair") == clean(f"a cat&amp;#{ord(mark)};on a chair") == "a cat on a chair"


@pytest.mark.parametrize("mark", WITHOUT_WIDTH)
def test_what_has_no_width_is_deleted(mark: str) -> None:
    assert clean(f"{mark}a ca{mark}t on a chair {mark}") == "a cat on a chair"


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("an astronaut 👩\u200d🚀 waves", "an astronaut 👩\u200d🚀 waves"),
        ("a burning heart ❤\ufe0f\u200d🔥", "a burning heart ❤\ufe0f\u200d🔥"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("क्\u200dष", "क्\u200dष"),
        ("🏴\U000e0067\U000e0062\U000e007f flag", "🏴\U000e0067\U000e0062\U000e007f flag"),
        ("👩\u200d and a ca\u200dt", "👩 and a cat"),
        ("a dog\x92s bowl \x96 caf\xe9", "a dog’s bowl – café"),
        ("a cafe\u200d\u0301", "a café"),
    ],
)
def test_joiners_stay_where_they_mean_something(caption: str, cleaned: str) -> None:
    assert clean(caption) == cleaned


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
