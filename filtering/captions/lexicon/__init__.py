"""The names of visible things: which words of a caption can be an entity, and under which canonical name.

`imagenet21k.tsv` is built by `tools/build_lexicon.py`, `wordnet.tsv` and `adjectives.txt` by
`tools/build_wordnet_names.py`; the others are kept by hand. A later file overrules an earlier one.
"""

import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from pathlib import Path

from spacy.lookups import load_lookups

from filtering.files import digest_of, digest_of_file

FOLDER = Path(__file__).parent
VISIBLE = ("imagenet21k.tsv", "wordnet.tsv", "extra.tsv")
STOP = "stop.txt"
ADJECTIVES = "adjectives.txt"
PAPER = "paper.tsv"
FOREIGN = "foreign.txt"
ENGLISH = "english.txt"
ATTRIBUTES = "attributes.txt"
GIVEN_NAMES = "given_names.txt"

NOT_AN_ENTITY = ""
NOUN_VERB_ADJECTIVE = ("noun", "verb", "adj")

_POSSESSIVE = re.compile(r"(?<=\w)['’](?=s?(?!\S))")


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

    def with_names(self, own: Mapping[str, str]) -> "Lexicon":
        """This lexicon with other canonical names for some names, in any spelling.

        What meant one of them follows: if "man" becomes "people", so does "guy", which meant "man".
        """
        names = {spelling(name): canonical for name, canonical in own.items()}
        followed = {written: names.get(spelling(name), name) for written, name in self.names.items()}
        return Lexicon(names=followed | names)


@lru_cache(maxsize=4)  # making one takes a third of a second, and each pass of a corpus asks for it
def load_lexicon(stop: tuple[str, ...] = ()) -> Lexicon:
    """The shipped lexicon, which all who ask share; `stop` adds to the shipped stop list."""
    names: dict[str, str] = {}
    for file in VISIBLE:
        names.update((spelling(name), canonical) for name, canonical in _lines(file))
    adjectives = {spelling(name) for name, _ in _lines(ADJECTIVES)}
    # A window blind is a thing, though "blind" alone mostly is none.
    names.update((name, name) for name, head in names.items() if " " in name and head in adjectives)
    stopped = (spelling(name) for name in (*(name for name, _ in _lines(STOP)), *stop))
    names.update(dict.fromkeys((*stopped, *adjectives), NOT_AN_ENTITY))
    return Lexicon(names={written: _resolve(name, names) for written, name in names.items()})


@cache
def paper_names() -> Mapping[str, str]:
    """OVSegmentor's 100 words, exactly as its script looks for them and in its order → its 73 canonical names."""
    return dict(_lines(PAPER))


@lru_cache(maxsize=1 << 17)
def is_english(word: str) -> bool:
    """Whether a word in lower case is known: as a lemma or inflected form of spaCy's tables, or by `english.txt`.

    The tables hold no function words but all sorts of letters and loans ("la", "en", "die"): `foreign.txt` takes out the
    small words of other languages, which are no evidence for English.
    """
    return (is_small(word) or any(word in table for table in _lemma_tables())) and not is_foreign(word)


def is_small(word: str) -> bool:
    """Whether a word in lower case is an English function word: it holds sentences together and names nothing."""
    return word in _words(ENGLISH)


def is_foreign(word: str) -> bool:
    """Whether a word in lower case is a function word of another language that English captions do without."""
    return word in _words(FOREIGN) or word[:2] in ("d'", "l'", "d’", "l’")


def attributes() -> frozenset[str]:
    """Colours and materials that are things, too: before a noun they only tell what it is like."""
    return _words(ATTRIBUTES)


def given_names() -> frozenset[str]:
    """Words that are names where a sentence opens with them: Rose, Mark, Turkey."""
    return _words(GIVEN_NAMES)


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
    return digest_of(
        [
            digest_of_file(FOLDER / file)
            for file in (*VISIBLE, STOP, ADJECTIVES, PAPER, FOREIGN, ENGLISH, ATTRIBUTES, GIVEN_NAMES)
        ]
    )


def _resolve(name: str, names: dict[str, str]) -> str:
    """Follow "dining table" → "table" → ... to the canonical name; what leads to a stopped name is stopped."""
    seen = set()
    while name and name not in seen:
        seen.add(name)
        name = names.get(spelling(name), name)
    return name


def spelling(name: str) -> str:
    """How the lexicon writes a name: lower case, single spaces, hyphens as spaces, a possessive's end as a word of its own.

    So it writes a word for each token: "Rubik's Cube" is "rubik 's cube".
    """
    return _POSSESSIVE.sub(" '", " ".join(name.lower().replace("-", " ").split()))


def _lines(file: str) -> Iterator[tuple[str, str]]:
    """(name, canonical name) for every line: a name alone, or a name and its canonical one with a tab between."""
    for line in (FOLDER / file).read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, canonical = line.partition("\t")
            yield name, canonical or name
