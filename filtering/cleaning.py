"""Cleaning the text that the web delivers as captions."""

import html
import re
import unicodedata

_SEPARATING = (
    "\u200b\u2800\u3164\ufffc"  # zero-width and other blanks, an object's place; what Python calls white space besides
)
_JOINED = "[\u0590-\u1fff\u2190-\U0010ffff]"  # scripts and emoji, which joiners belong to
_DELETED = re.compile(
    r"[\0-\x08\x0e-\x1b\x7f\xad\u061c\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff]"
    rf"|(?<!{_JOINED})[\u200c\u200d]|[\u200c\u200d](?!{_JOINED})"
)
_READ_AS = str.maketrans(dict.fromkeys(_SEPARATING, " ") | dict.fromkeys(range(128, 160), " "))
for _code in {*range(0x80, 0xA0)} - {0x81, 0x85, 0x8D, 0x8F, 0x90, 0x9D}:
    _READ_AS[_code] = bytes([_code]).decode("cp1252")  # Windows text taken for Latin-1, read as HTML reads it; 0x85 ends a line
_STYLED = re.compile(r"[\ufb00-\ufb06\uff01-\uff5e\U0001d400-\U0001d7ff]+")
"""Ligatures, full-width and mathematical letters: other looks of a word that has to be found. Signs such as "™" stay."""


def clean(caption: str) -> str:
    """One line of text: entities resolved, Unicode composed, ligatures and styled letters plain, no controls, single spaces.

    Whatever separates becomes a space, visible or not (line and paragraph separators, U+200B); what has no width of its own is
    deleted (soft hyphens, byte-order marks, marks of direction), but joiners inside scripts and emoji and variation selectors.

    >>> clean("Salt &amp; Pepper\\u2028cel\\u00adlar")
    'Salt & Pepper cellar'
    """
    if caption.isascii() and caption.isprintable() and "&" not in caption and "  " not in caption:
        return caption.strip(" ")  # most captions; what follows would come to the same
    if "&" in caption:
        caption = _unescaped(_unescaped(caption))  # feeds often escape twice: "&amp;quot;"
    caption = _STYLED.sub(lambda match: unicodedata.normalize("NFKC", match[0]), caption.translate(_READ_AS))
    return " ".join(unicodedata.normalize("NFC", _DELETED.sub("", caption)).split())


def _unescaped(text: str) -> str:
    return html.unescape(_SPACE_REFERENCE.sub(" ", text))


_SPACE_REFERENCE = re.compile(r"&#(?:0*(?:11|2[89]|3[01])|[xX]0*(?:[bB]|1[c-fC-F]))(?![0-9a-fA-F]);?")
"""Numbers of separators that `html.unescape` makes nothing of."""
