"""The caption rules. `RuleConfig` is the registry: to add a rule, write a dataclass and add it to the union.

A rule judges the rows of one table (schema `LINKS`) and never drops: true = keep. Corpora keep rows with the same caption
in the same shard, so the two duplicate rules see every copy there is.
"""

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from filtering.lexicon import is_english
from filtering.stage import InputError
from filtering.text import PERSON_TOKEN, normalised, words
from filtering.url import is_url


def _judge(column: pa.ChunkedArray, keep: Callable[[str], bool]) -> pa.BooleanArray:
    return pa.array([keep(text or "") for text in column.to_pylist()], pa.bool_())


def _at_most(copies: int, values: Iterable[Hashable]) -> pa.BooleanArray:
    seen: Counter[Hashable] = Counter()
    keep = []
    for value in values:
        seen[value] += 1
        keep.append(seen[value] <= copies)
    return pa.array(keep, pa.bool_())


def _check(right: bool, key: str, rule: str) -> None:
    if not right:
        raise InputError(f"{key}: {rule}")


def _check_share(value: float, key: str) -> None:
    _check(0 <= value <= 1, key, f"is a share and must lie between 0 and 1, not {value}")


@dataclass(frozen=True, kw_only=True)
class BadUrl:
    """Refuses links that no client could fetch, and rows without one."""

    name: Literal["bad_url"] = "bad_url"
    """Refuses rows whose URL is missing or is no http(s) URL with a host."""

    def __call__(self, table: pa.Table) -> pa.BooleanArray:
        return _judge(table["url"], is_url)


@dataclass(frozen=True, kw_only=True)
class TooShort:
    """Refuses captions that say too little."""

    name: Literal["too_short"] = "too_short"
    """Refuses captions with fewer words than `min_words`."""
    min_words: int = 3
    """Fewest words (3, as in CC12M)."""

    def __post_init__(self) -> None:
        _check(self.min_words >= 1, "min_words", "must be at least 1")

    def __call__(self, table: pa.Table) -> pa.BooleanArray:
        return _judge(table["caption"], lambda caption: len(words(caption)) >= self.min_words)


@dataclass(frozen=True, kw_only=True)
class TooLong:
    """Refuses texts that are no captions: articles, keyword lists."""

    name: Literal["too_long"] = "too_long"
    """Refuses captions with more words than `max_words`."""
    max_words: int = 60
    """Most words (60: about what CLIP's 77 text tokens hold)."""

    def __post_init__(self) -> None:
        _check(self.max_words >= 1, "max_words", "must be at least 1")

    def __call__(self, table: pa.Table) -> pa.BooleanArray:
        return _judge(table["caption"], lambda caption: len(words(caption)) <= self.max_words)


@dataclass(frozen=True, kw_only=True)
class FewLetters:
    """Refuses product codes, prices, dates and rows of signs."""

    name: Literal["few_letters"] = "few_letters"
    """Refuses captions in which letters are rare."""
    min_share: float = 0.5
    """Smallest share of letters among the characters that are not white space (0 to 1)."""

    def __post_init__(self) -> None:
        _check_share(self.min_share, "min_share")

    def __call__(self, table: pa.Table) -> pa.BooleanArray:
        return _judge(table["caption"], self._keep)

    def _keep(self, caption: str) -> bool:
        letters = sum(map(str.isalpha, caption))
        return letters > 0 and letters >= self.min_share * sum(not char.isspace() for char in caption)


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """Refuses keyword lists that say the same again and again."""

    name: Literal["repetition"] = "repetition"
    """Refuses captions that repeat their words, or one character many times."""
    min_distinct: float = 0.6
    """Smallest share of distinct words among the words of a caption (0 to 1); five words or fewer always pass."""
    max_run: int = 5
    """Most times that one character may follow itself."""

    def __post_init__(self) -> None:
        _check_share(self.min_distinct, "min_distinct")
        _check(self.max_run >= 1, "max_run", "must be at least 1")

    def __call__(self, table: pa.Table) -> pa.BooleanArray:
        run = re.compile(rf"([^\W\d_])\1{{{self.max_run},}}", re.IGNORECASE)
        return _judge(table["caption"], lambda caption: self._varied(words(caption)) and not run.search(caption))

    def _varied(self, found: list[str]) -> bool:
        return len(found) <= 5 or len(set(found)) >= self.min_distinct * len(found)


@dataclass(frozen=True, kw_only=True)
class Markup:
    """Refuses captions that carry traces of a web page."""

    name: Literal["markup"] = "markup"
    """Refuses captions with HTML tags, CSS or template code, web addresses, or file names."""

    def __call__(self, table: pa.Table) -> pa.BooleanArray:
        return _judge(table["caption"], lambda caption: not _MARKUP.search(caption.replace(PERSON_TOKEN, "")))


_MARKUP = re.compile(
    r"""</?[a-z][^<>]*>|<!--|\{\{|\}\}|\[/?(caption|url|img|b|i)\b|&\#?\w+;   # tags, templates, forum code, left entities
    |https?:|\bwww\.|\w\.(com|org|net)\b                                      # addresses
    |\w\.(jpe?g|png|gif|webp|bmp|tiff?|svg|pdf|mp4|html?|php|aspx?)\b         # file names
    |\b(img|dsc|dscn|dscf|screenshot)[_-]?\d{3,}                              # what cameras call their files
    """,
    re.IGNORECASE | re.VERBOSE,
)


@dataclass(frozen=True, kw_only=True)
class Boilerplate:
    """Refuses what software writes where a person wrote nothing."""

    name: Literal["boilerplate"] = "boilerplate"
    """Refuses captions that contain a stock phrase of web pages."""
    phrases: tuple[str, ...] = (
        "all rights reserved", "click for", "click here", "click on", "click to", "cookie policy", "free shipping",
        "image may contain", "image not available", "image not found", "image result for", "no image available",
        "no photo available", "photo not available", "placeholder image", "read more", "sign up", "terms of use",
    )  # fmt: skip
    """The phrases, in any case."""

    def __call__(self, table: pa.Table) -> pa.BooleanArray:
        phrases = {f" {normalised(phrase)} " for phrase in self.phrases}
        return _judge(table["caption"], lambda caption: not any(map(f" {normalised(caption)} ".__contains__, phrases)))


@dataclass(frozen=True, kw_only=True)
class EmailAddress:
    """Refuses captions that give away how to reach somebody."""

    name: Literal["email_address"] = "email_address"
    """Refuses captions with an e-mail address."""

    def __call__(self, table: pa.Table) -> pa.BooleanArray:
        return _judge(table["caption"], lambda caption: "@" not in caption or not _EMAIL.search(caption))


_EMAIL = re.compile(r"[\w.+-]+\s?@\s?[\w-]+(\.[\w-]+)+")


@dataclass(frozen=True, kw_only=True)
class NotEnglish:
    """Refuses captions in other scripts and other languages, cheaply: by their letters and by known words."""

    name: Literal["not_english"] = "not_english"
    """Refuses captions that do not look like English."""
    min_ascii: float = 0.85
    """Smallest share of a to z among the letters (0 to 1)."""
    min_known: float = 0.4
    """Smallest share of words that an English dictionary knows (0 to 1); captions of up to three words need one."""

    def __post_init__(self) -> None:
        _check_share(self.min_ascii, "min_ascii")
        _check_share(self.min_known, "min_known")

    def __call__(self, table: pa.Table) -> pa.BooleanArray:
        return _judge(table["caption"], self._keep)

    def _keep(self, caption: str) -> bool:
        letters = [char for char in caption if char.isalpha()]
        if sum(map(str.isascii, letters)) < self.min_ascii * len(letters):
            return False
        found = [word.removesuffix("'s") for word in words(caption) if word.isalpha() or "'" in word]
        known = sum(len(word) > 1 and is_english(word) for word in found)
        return known >= (self.min_known * len(found) if len(found) > 3 else min(1, len(found)))


@dataclass(frozen=True, kw_only=True)
class DuplicateLink:
    """Refuses second and later copies of a link."""

    name: Literal["duplicate_link"] = "duplicate_link"
    """Refuses rows whose URL and caption were there before."""

    def __call__(self, table: pa.Table) -> pa.BooleanArray:
        return _at_most(1, table["key"].to_pylist())


@dataclass(frozen=True, kw_only=True)
class DuplicateCaption:
    """Refuses captions that many images share: they describe none of them, and are false negatives in a batch."""

    name: Literal["duplicate_caption"] = "duplicate_caption"
    """Refuses rows whose caption (case and punctuation aside) was there `copies` times before."""
    copies: int = 1
    """Most rows that may share a caption."""

    def __post_init__(self) -> None:
        _check(self.copies >= 1, "copies", "must be at least 1")

    def __call__(self, table: pa.Table) -> pa.BooleanArray:
        return _at_most(self.copies, map(normalised, table["caption"].to_pylist()))


RuleConfig = (
    BadUrl
    | TooShort
    | TooLong
    | FewLetters
    | Markup
    | Boilerplate
    | EmailAddress
    | Repetition
    | NotEnglish
    | DuplicateLink
    | DuplicateCaption
)

DEFAULT_RULES: tuple[RuleConfig, ...] = (
    BadUrl(), TooShort(), TooLong(), FewLetters(), Markup(), Boilerplate(), EmailAddress(), Repetition(), NotEnglish(),
    DuplicateLink(), DuplicateCaption(),
)  # fmt: skip
"""Every rule once, the cheap ones first."""
