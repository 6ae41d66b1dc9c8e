"""The caption rules. `RuleConfig` is the registry: to add a rule, write a dataclass and add it to the union.

A rule judges the rows of one table (schema `LINKS`) and never drops: true = keep. Corpora keep rows with the same caption
in the same shard, so the two duplicate rules see every copy there is.

Two means make the rules fast. Those that count words or letters read one column, `caption_counts.with_counts`, that is made
once and stays with its rows. Those that search for a pattern let Arrow's RE2 clear most rows, and look at the doubted ones in
Python, whose regular expressions know all of Unicode.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from string import ascii_lowercase
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from filtering import InputError
from filtering.captions.balance import Balanced
from filtering.captions.caption_counts import counts_of
from filtering.captions.markup import MAYBE, is_markup
from filtering.captions.near_duplicates import NearDuplicate
from filtering.captions.opt_outs import Forgotten
from filtering.captions.row_rules import ColumnRule
from filtering.captions.text import PERSON_TOKEN, normalised, says_twice
from filtering.captions.words import normalised_of
from filtering.schema import SAMPLE
from filtering.url import MAX_LENGTH, PLAIN_URL, is_url


def _doubt(column: pa.ChunkedArray, pattern: str) -> pa.ChunkedArray:
    """Rows that may match a pattern of Python's `re`. RE2 answers for ASCII, where both mean the same; the rest is doubted."""
    return pc.or_(pc.match_substring_regex(column, pattern), pc.invert(pc.string_is_ascii(column)))


def _judge(column: pa.ChunkedArray, doubted: pa.ChunkedArray, keep: Callable[[str], bool]) -> pa.BooleanArray:
    """Ask `keep` about the doubted rows; the others stay. Null reads as an empty text."""
    asked = pc.fill_null(doubted, True).to_numpy()
    judged = np.ones(len(column), bool)
    judged[asked] = [keep(text or "") for text in column.filter(pa.array(asked)).to_pylist()]
    return pa.array(judged)


def _at_most(copies: int, values: pa.Array | pa.ChunkedArray) -> pa.BooleanArray:
    """Keep the first `copies` rows of each value."""
    coded = pa.table({"value": values}).combine_chunks()["value"].dictionary_encode(null_encoding="encode").combine_chunks()
    codes = coded.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    first = np.searchsorted(codes[order], codes[order])
    keep = np.empty(len(codes), bool)
    keep[order] = np.arange(len(codes)) - first < copies
    return pa.array(keep)


def _check(right: bool, key: str, rule: str) -> None:
    if not right:
        raise InputError(f"{key}: {rule}")


def _check_share(value: float, key: str) -> None:
    _check(0 <= value <= 1, key, f"is a share and must lie between 0 and 1, not {value}")


@dataclass(frozen=True, kw_only=True)
class BadUrl:
    """Refuses links that no client could fetch, and rows without one."""

    name: Literal["bad_url"] = "bad_url"
    """Refuses rows whose URL is missing or is no http(s) URL with a host; images that are there already need none."""

    def __call__(self, table: pa.Table) -> pa.BooleanArray:
        urls = table["url"]
        plain = pc.and_(pc.match_substring_regex(urls, rf"\A{PLAIN_URL}\z"), pc.less_equal(pc.binary_length(urls), MAX_LENGTH))
        keep = _judge(urls, pc.invert(plain), is_url)
        return pc.or_(keep, pc.is_valid(table[SAMPLE.name])) if SAMPLE.name in table.column_names else keep


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
        return pa.array(counts_of(table)["words"] >= self.min_words)


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
        return pa.array(counts_of(table)["words"] <= self.max_words)


@dataclass(frozen=True, kw_only=True)
class FewLetters:
    """Refuses product codes, prices, dates and rows of signs."""

    name: Literal["few_letters"] = "few_letters"
    """Refuses captions in which letters are rare and fewer than two words are known."""
    min_share: float = 0.5
    """Smallest share of letters among the characters that are not white space (0 to 1)."""

    def __post_init__(self) -> None:
        _check_share(self.min_share, "min_share")

    def __call__(self, table: pa.Table) -> pa.BooleanArray:
        counts = counts_of(table)
        many = counts["letters"] >= self.min_share * counts["visible"]
        return pa.array((counts["letters"] > 0) & (many | (counts["known"] > 1)))


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """Refuses keyword lists that say the same again and again."""

    name: Literal["repetition"] = "repetition"
    """Refuses captions that repeat their words without making sentences of them, or one character many times."""
    min_distinct: float = 0.6
    """Smallest share of distinct words (0 to 1), function words such as "a" and "of" aside; up to five words always pass."""
    sentence: float = 0.25
    """Share of function words from which a caption is a person's sentence, which may repeat its words (0 to 1)."""
    max_run: int = 5
    """Most times that one character may follow itself."""

    def __post_init__(self) -> None:
        _check_share(self.min_distinct, "min_distinct")
        _check_share(self.sentence, "sentence")
        _check(self.max_run >= 1, "max_run", "must be at least 1")

    def __call__(self, table: pa.Table) -> pa.BooleanArray:
        counts = counts_of(table)
        names = counts["words"] - counts["small"]
        varied = (names <= 5) | (counts["distinct"] >= self.min_distinct * names)
        varied |= (names <= SHORT) & (2 * counts["distinct"] > names)
        sentence = (counts["small"] > 0) & (counts["small"] >= self.sentence * counts["words"])
        asked = pa.chunked_array([sentence & ~varied])
        varied |= sentence & np.array(_judge(table["caption"], asked, lambda caption: not says_twice(caption)))
        run = re.compile(rf"([^\W\d_])\1{{{self.max_run},}}", re.IGNORECASE)
        opening = min(self.max_run, 5) + 1  # RE2 knows no back-references, and counts up to 1000 only
        doubted = _doubt(table["caption"], "(?i)" + "|".join(f"{letter}{{{opening}}}" for letter in ascii_lowercase))
        return pc.and_(pa.array(varied), _judge(table["caption"], doubted, lambda caption: not run.search(caption)))


SHORT = 8
"""Words but function words up to which half of them must be repetitions."""


@dataclass(frozen=True, kw_only=True)
class Markup:
    """Refuses captions that carry traces of a web page."""

    name: Literal["markup"] = "markup"
    """Refuses captions with HTML tags, CSS or template code, web addresses, or file names; a sentence may name a site."""

    def __call__(self, table: pa.Table) -> pa.BooleanArray:
        captions = pc.replace_substring(table["caption"], PERSON_TOKEN, "")
        return _judge(captions, _doubt(captions, f"(?i){MAYBE}"), lambda caption: not is_markup(caption))


@dataclass(frozen=True, kw_only=True)
class Boilerplate:
    """Refuses what software writes where a person wrote nothing."""

    name: Literal["boilerplate"] = "boilerplate"
    """Refuses captions that contain a stock phrase of web pages."""
    phrases: tuple[str, ...] = (
        "all rights reserved", "click for", "click here", "click on", "click to", "cookie policy", "free shipping",
        "image may contain", "image not available", "image not found", "image result for", "no image available",
        "no photo available", "photo not available", "placeholder image", "read more about", "read more at", "read more here",
        "sign up bonus", "sign up free", "sign up here", "sign up now", "sign up today", "terms of use",
    )  # fmt: skip
    """The phrases, in any case."""

    def __call__(self, table: pa.Table) -> pa.BooleanArray:
        phrases = [f" {normalised(phrase)} " for phrase in self.phrases]
        doubted = _doubt(table["caption"], "(?i)" + "|".join("[^0-9a-z]+".join(map(re.escape, one.split())) for one in phrases))
        return _judge(table["caption"], doubted, lambda caption: not any(map(f" {normalised(caption)} ".__contains__, phrases)))


@dataclass(frozen=True, kw_only=True)
class EmailAddress:
    """Refuses captions that give away how to reach somebody."""

    name: Literal["email_address"] = "email_address"
    """Refuses captions with an e-mail address."""

    def __call__(self, table: pa.Table) -> pa.BooleanArray:
        captions = table["caption"]
        return _judge(captions, pc.match_substring(captions, "@"), lambda caption: not _EMAIL.search(caption))


_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]+\s?@\s?[\w-]+(\.[\w-]+)+")


@dataclass(frozen=True, kw_only=True)
class PhoneNumber:
    """Refuses captions that give away a telephone number. Years, sizes, ISBNs and stock numbers are none."""

    name: Literal["phone_number"] = "phone_number"
    """Refuses captions with a telephone number: international, in groups as one dials, or after a word like "call"."""

    def __call__(self, table: pa.Table) -> pa.BooleanArray:
        captions = table["caption"]
        seven_digits = r"[0-9](?:[ ().-]{0,3}[0-9]){6}"
        return _judge(captions, _doubt(captions, seven_digits), lambda caption: not _PHONE.search(caption))


_PHONE = re.compile(
    r"(?i)(?<![\w.,/+-])(?:"
    r"(?:\+|00 ?(?=[1-9]\d{0,2}[ .(-]))[1-9](?:[ ().-]{0,2}\d){7,13}"  # +44 20 7946 0958
    r"|(?:1 ?[ .-] ?)?(?:\([2-9]\d\d\) ?|[2-9]\d\d ?[.-] ?)[2-9]\d\d ?[ .-] ?\d{4}"  # (415) 744-8666, 415.744.8666
    r"|1 [2-9]\d\d [2-9]\d\d \d{4}"  # 1 800 555 1234
    r"|(?:\(0\d{1,4}\) ?|0[1-9]\d{1,3}[ -])\d{3,4}[ -]?\d{3,4}"  # 0330 123 4567, (02) 1234 5678
    r"|(?:(?:call|tel|fax|whats ?app|hotline|(?:phone|mobile|contact) ?(?:no|number))\b|(?:phone|mobile|contact) ?:|[☎☏📞])"
    r"(?: (?:us|me|at|on|now|today|toll|free)\b)*[ .:@]{0,3}\(?\d(?:[ ().-]{0,3}\d){6,13}"  # call 02261054600
    r")(?![\w-])"
)


@dataclass(frozen=True, kw_only=True)
class NotEnglish:
    """Refuses captions in other scripts and other languages, cheaply: by their letters and by known words."""

    name: Literal["not_english"] = "not_english"
    """Refuses captions that do not look like English."""
    min_ascii: float = 0.85
    """Smallest share of a to z among the letters (0 to 1)."""
    min_known: float = 0.4
    """Share of words that an English dictionary knows (0 to 1) below which a caption is refused if anything speaks for another
    language: its function words, letters beyond a to z, or no known word at all and few capitals (names are no language)."""

    def __post_init__(self) -> None:
        _check_share(self.min_ascii, "min_ascii")
        _check_share(self.min_known, "min_known")

    def __call__(self, table: pa.Table) -> pa.BooleanArray:
        counts = counts_of(table)
        unknown = counts["known"] < self.min_known * counts["spelt"]
        other_letters = counts["letters"] - counts["latin"]
        nothing_known = (counts["known"] == 0) & (2 * counts["capitals"] < counts["spelt"])
        function_words = counts["foreign"] > counts["small"]  # a single one may be of a name: Lana Del Rey on the stage
        foreign = unknown & (function_words | (other_letters > 1) | nothing_known)
        foreign |= function_words & (counts["foreign"] > 2)
        english = (counts["known"] > 3) & (
            counts["known"] >= STAMPED * counts["spelt"]
        )  # with a stock agency's stamp in Russian
        return pa.array(((counts["latin"] >= self.min_ascii * counts["letters"]) | english) & ~foreign)


STAMPED = 0.7
"""Share of known words from which a caption is English, whatever letters stand beside them."""


@dataclass(frozen=True, kw_only=True)
class DuplicateLink:
    """Refuses second and later copies of a link."""

    name: Literal["duplicate_link"] = "duplicate_link"
    """Refuses rows whose URL and caption were there before."""

    def __call__(self, table: pa.Table) -> pa.BooleanArray:
        return _at_most(1, table["key"])


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
        return _at_most(self.copies, normalised_of(table["caption"]))


RuleConfig = (
    BadUrl
    | ColumnRule
    | TooShort
    | TooLong
    | FewLetters
    | Markup
    | Boilerplate
    | EmailAddress
    | PhoneNumber
    | Repetition
    | NotEnglish
    | DuplicateLink
    | DuplicateCaption
)

DEFAULT_RULES: tuple[RuleConfig, ...] = (
    BadUrl(), TooShort(), TooLong(), FewLetters(), Markup(), Boilerplate(), EmailAddress(), PhoneNumber(), Repetition(),
    NotEnglish(), DuplicateLink(), DuplicateCaption(),
)  # fmt: skip
"""Every rule once that needs no setting, the cheap ones first."""


# ---- rules about entities, made by the settings of a corpus and not by the list `filter.rules`


@dataclass(frozen=True)
class NoEntity:
    """Refuses captions that mention nothing one could see."""

    name: ClassVar[str] = "no_entity"

    def __call__(self, table: pa.Table) -> pa.BooleanArray:
        return pc.greater(pc.list_value_length(table["entities"]), 0)


@dataclass(frozen=True)
class RareEntity:
    """Refuses captions that mention visible things, but none of the vocabulary."""

    kept: frozenset[str]
    name: ClassVar[str] = "rare_entity"

    def __call__(self, table: pa.Table) -> pa.BooleanArray:
        return pa.array([not self.kept.isdisjoint(names) for names in table["entities"].to_pylist()], pa.bool_())


ENTITY_RULES = (NoEntity, RareEntity, NearDuplicate, Balanced, Forgotten)
"""In the order in which they judge; a rule's first docstring line is its explanation in the report, as with `RuleConfig`."""
