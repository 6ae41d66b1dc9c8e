"""The names of visible things: which words of a caption can be an entity, and under which canonical name.

`imagenet21k.tsv` is built by `tools/build_lexicon.py`; the other files are kept by hand. A later file overrules an earlier one.
"""

from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from pathlib import Path

from spacy.lookups import load_lookups

from filtering.stage import digest_of, digest_of_file

FOLDER = Path(__file__).parent
VISIBLE = ("imagenet21k.tsv", "extra.tsv")
STOP = "stop.txt"
FOREIGN = "foreign.txt"
ENGLISH = "english.txt"

NOT_AN_ENTITY = ""
NOUN_VERB_ADJECTIVE = ("noun", "verb", "adj")


@dataclass(frozen=True, kw_only=True)
class Lexicon:
    """Canonical names by spelling. Hyphens count as spaces, so "t-shirt", "t shirt" and "t - shirt" are one spelling."""

    names: dict[str, str] = field(repr=False)
    """Spelling → canonical name; `NOT_AN_ENTITY` for a spelling that is stopped and must not be read as anything else."""

    @cached_property
    def longest(self) -> dict[str, int]:
        """First word of a compound → number of words of the longest compound that opens with it."""
        longest: dict[str, int] = {}
        for first, *rest in map(str.split, self.names):
            if rest:
                longest[first] = max(longest.get(first, 0), 1 + len(rest))
        return longest


def load_lexicon(stop: tuple[str, ...] = ()) -> Lexicon:
    """The shipped lexicon; `stop` adds to the shipped stop list."""
    names: dict[str, str] = {}
    for file in VISIBLE:
        names.update(_spellings(file))
    for spelling, _ in _spellings(STOP):
        names[spelling] = NOT_AN_ENTITY
    for name in stop:
        names[_spelling(name)] = NOT_AN_ENTITY
    return Lexicon(names={spelling: _resolve(name, names) for spelling, name in names.items()})


@lru_cache(maxsize=1 << 17)
def is_english(word: str) -> bool:
    """Whether a word in lower case is known: as a lemma or inflected form of spaCy's tables, or by `english.txt`.

    The tables hold no function words but all sorts of letters and loans ("la", "en", "die"): `foreign.txt` takes out the
    small words of other languages, which are no evidence for English.
    """
    return (word in _words(ENGLISH) or any(word in table for table in _lemma_tables())) and word not in _words(FOREIGN)


@cache
def _lemma_tables() -> tuple[Container[str], ...]:
    tables = load_lookups("en", ["lemma_index", "lemma_exc", "lemma_lookup"])
    indexes = [table[kind] for table in map(tables.get_table, ("lemma_index", "lemma_exc")) for kind in NOUN_VERB_ADJECTIVE]
    return (*map(frozenset, indexes), tables.get_table("lemma_lookup"))


@cache
def _words(file: str) -> frozenset[str]:
    return frozenset((FOLDER / file).read_text(encoding="utf-8").split())


def lexicon_digest() -> str:
    """Changes with the shipped files."""
    return digest_of([digest_of_file(FOLDER / file) for file in (*VISIBLE, STOP, FOREIGN, ENGLISH)])


def _resolve(name: str, names: dict[str, str]) -> str:
    """Follow "dining table" → "table" → ... to the canonical name; what leads to a stopped name is stopped."""
    seen = set()
    while name and name not in seen:
        seen.add(name)
        name = names.get(_spelling(name), name)
    return name


def _spelling(name: str) -> str:
    return " ".join(name.lower().replace("-", " ").split())


def _spellings(file: str) -> Iterator[tuple[str, str]]:
    """(spelling, canonical name) for every line: a name alone, or a spelling and its canonical name with a tab between."""
    for line in (FOLDER / file).read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, canonical = line.partition("\t")
            yield _spelling(name), canonical or name
