"""The caption rules against their plain definitions: one caption at a time, Python's regular expressions alone."""

import re
from collections.abc import Callable

import pyarrow as pa
import pytest

from filtering.captions import rules
from filtering.captions.caption_counts import with_counts
from filtering.captions.lexicon import is_english, is_foreign, is_small
from filtering.captions.markup import is_markup
from filtering.captions.reader import SourceConfig, read_links
from filtering.captions.rules import (
    Boilerplate,
    DuplicateCaption,
    EmailAddress,
    FewLetters,
    Markup,
    NotEnglish,
    PhoneNumber,
    Repetition,
    RuleConfig,
    TooLong,
    TooShort,
)
from filtering.captions.text import PERSON_TOKEN, normalised, words
from helpers.paths import CAPTIONS
from helpers.strange_captions import strange_captions


def spells_english(caption: str, min_ascii: float = 0.85, min_known: float = 0.4) -> bool:
    letters = [char for char in caption if char.isalpha()]
    found = words(caption)
    stems = [word.removesuffix("'s") for word in found if word.isalpha() or "'" in word]
    spelt = [stem for stem in stems if len(stem) > 1]
    known, latin = sum(map(is_english, spelt)), sum(map(str.isascii, letters))
    foreign, small = sum(map(is_foreign, found)), sum(map(is_small, found))
    capitals = sum(char.isupper() and not before.isalpha() for before, char in zip(f" {caption}", caption, strict=False))
    speaks = foreign > small or len(letters) - latin > 1 or (known == 0 and 2 * capitals < len(spelt))
    another = (known < min_known * len(spelt) and speaks) or (foreign > small and foreign > 2)
    english = known > 3 and known >= 0.7 * len(spelt)
    return (latin >= min_ascii * len(letters) or english) and not another


def has_letters(caption: str, min_share: float = 0.5) -> bool:
    letters = sum(map(str.isalpha, caption))
    stems = [word.removesuffix("'s") for word in words(caption) if word.isalpha() or "'" in word]
    known = sum(len(stem) > 1 and is_english(stem) for stem in stems)
    return letters > 0 and (known > 1 or letters >= min_share * sum(not char.isspace() for char in caption))


def varies(caption: str, min_distinct: float = 0.6, max_run: int = 5) -> bool:
    found = words(caption)
    names = [word for word in found if not is_small(word)]
    passages = [tuple(found[at : at + 7]) for at in range(len(found) - 6)]
    sentence = len(found) > len(names) and len(found) - len(names) >= 0.25 * len(found) and len(set(passages)) == len(passages)
    few = len(names) <= 5 or (len(names) <= 8 and 2 * len(set(names)) > len(names))
    run = re.search(rf"([^\W\d_])\1{{{max_run},}}", caption, re.IGNORECASE)
    return (sentence or few or len(set(names)) >= min_distinct * len(names)) and not run


def says_none_of(phrases: tuple[str, ...], caption: str) -> bool:
    return not any(f" {normalised(phrase)} " in f" {normalised(caption)} " for phrase in phrases)


ODD_PHRASES = ("straße", "!!!", "don't miss", "a.b (c)", "STRASSE", "don’t")
PLAIN: list[tuple[RuleConfig, Callable[[str], bool]]] = [
    (TooShort(), lambda caption: len(words(caption)) >= 3),
    (TooLong(), lambda caption: len(words(caption)) <= 60),
    (TooLong(max_words=7), lambda caption: len(words(caption)) <= 7),
    (FewLetters(), has_letters),
    (FewLetters(min_share=0.8), lambda caption: has_letters(caption, 0.8)),
    (Markup(), lambda caption: not is_markup(caption.replace(PERSON_TOKEN, ""))),
    (Boilerplate(), lambda caption: says_none_of(Boilerplate().phrases, caption)),
    (Boilerplate(phrases=ODD_PHRASES), lambda caption: says_none_of(ODD_PHRASES, caption)),
    (Boilerplate(phrases=()), lambda caption: True),
    (EmailAddress(), lambda caption: not rules._EMAIL.search(caption)),
    (PhoneNumber(), lambda caption: not rules._PHONE.search(caption)),
    (Repetition(), varies),
    (Repetition(max_run=1, min_distinct=0.9), lambda caption: varies(caption, 0.9, 1)),
    (Repetition(max_run=2000), lambda caption: varies(caption, max_run=2000)),
    (NotEnglish(), spells_english),
    (NotEnglish(min_ascii=0.5, min_known=0.9), lambda caption: spells_english(caption, 0.5, 0.9)),
]


def real_captions() -> list[str]:
    files = [CAPTIONS / "cc3m_validation.tsv", CAPTIONS / "web_alt_text_10k.parquet"]
    tables = [table for file in files if file.exists() for table in read_links(SourceConfig(path=str(file)))]
    return [caption for table in tables for caption in table["caption"].to_pylist()]


@pytest.mark.parametrize("source", [strange_captions, real_captions])
def test_rules_decide_as_their_plain_definitions(source: Callable[..., list[str]]) -> None:
    captions = source(4000) if source is strange_captions else source()
    if not captions:
        pytest.skip("shared/data/captions is not beside the repository")
    table = with_counts(pa.table({"caption": captions}))
    for rule, keep in PLAIN:
        wrong = [caption for caption, kept in zip(captions, rule(table).to_pylist(), strict=True) if kept != keep(caption)]
        assert wrong == [], rule
    seen: dict[str, int] = {}
    first = [seen.setdefault(normalised(caption), row) == row for row, caption in enumerate(captions)]
    assert DuplicateCaption()(table).to_pylist() == first
