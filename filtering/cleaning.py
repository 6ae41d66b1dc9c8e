"""Cleaning the text that the web delivers as captions."""

import html
import re
import unicodedata

_CONTROL = re.compile(r"[\0-\x08\x0e-\x1f\x7f-\x9f\xad\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufffe\uffff\ud800-\udfff]")
_STYLED = re.compile(r"[\ufb00-\ufb06\uff01-\uff5e\U0001d400-\U0001d7ff]+")
"""Ligatures, full-width and mathematical letters: other looks of a word that has to be found. Signs such as "™" stay."""


def clean(caption: str) -> str:
    """One line of text: entities resolved, Unicode composed, ligatures and styled letters plain, no controls, single spaces.

    >>> clean("Salt &amp; Pepper\\u200b\\n cellar")
    'Salt & Pepper cellar'
    """
    if caption.isascii() and caption.isprintable() and "&" not in caption and "  " not in caption:
        return caption.strip(" ")  # most captions; what follows would come to the same
    if "&" in caption:
        caption = html.unescape(html.unescape(caption))  # feeds often escape twice: "&amp;quot;"
    caption = _STYLED.sub(lambda match: unicodedata.normalize("NFKC", match[0]), caption)
    return " ".join(_CONTROL.sub("", unicodedata.normalize("NFC", caption)).split())
