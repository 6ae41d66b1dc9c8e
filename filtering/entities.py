"""Nouns of a caption → canonical entities; counts over the corpus → the vocabulary of the most frequent ones."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import pyarrow as pa
from spacy.language import Language
from spacy.lookups import load_lookups
from spacy.tokens import Doc, Token

from filtering.lexicon import NOT_AN_ENTITY, Lexicon
from filtering.schema import ENTITIES
from filtering.tagger import COMMON_NOUNS, NOUNS
from filtering.text import for_tagging

BATCH = 512
BEFORE_A_NOUN = frozenset({"DT", "JJ", "PRP$"})


class EntityFinder:
    """Finds what a caption says can be seen: common nouns, singular, under the lexicon's canonical names.

    Compounds of the lexicon come before their words. Of a proper name only the last word counts.
    """

    def __init__(self, nlp: Language, lexicon: Lexicon) -> None:
        self._nlp = nlp
        self._lexicon = lexicon
        self._lemmas = NounLemmas()
        self._name_of = lru_cache(maxsize=1 << 16)(self._look_up)

    def __call__(self, captions: Iterable[str]) -> list[list[str]]:
        """For every caption its entities, each once, in order of first mention."""
        with self._nlp.memory_zone():  # else every word ever seen stays in memory
            docs = self._nlp.pipe(map(for_tagging, captions), batch_size=BATCH, as_tuples=True)
            return [self._entities(doc, lowered) for doc, lowered in docs]

    def _entities(self, doc: Doc, lowered: bool) -> list[str]:
        tokens = [token for token in doc if token.text != "-" and not token.is_space]
        found: dict[str, None] = {}
        at = 0
        while at < len(tokens):
            name, length = self._compound(tokens, at)
            if name is None and _is_thing(tokens[at], lowered):
                name = self._name_of(tokens[at].lower_, tokens[at].tag_ == "NNS")
            if name:
                found[name] = None
            at += length
        return list(found)

    def _compound(self, tokens: list[Token], at: int) -> tuple[str | None, int]:
        """The longest compound of the lexicon that opens at token `at` and ends in a noun, and its length in tokens."""
        longest = self._lexicon.longest.get(tokens[at].lower_, 1)
        for length in range(min(longest, len(tokens) - at), 1, -1):
            last = tokens[at + length - 1]
            if last.tag_ not in NOUNS:
                continue
            opening = " ".join(token.lower_ for token in tokens[at : at + length - 1])
            for form in self._lemmas(last.lower_):
                name = self._lexicon.names.get(f"{opening} {form}")
                if name is not None:
                    return name, length
        return None, 1

    def _look_up(self, word: str, plural: bool) -> str:
        """The canonical name of a single noun. A plural is read as one first, then as it stands ("glasses", "bus")."""
        forms = self._lemmas(word)
        for form in forms if plural else [word, *forms]:
            name = self._lexicon.names.get(form)
            if name is not None:
                return name
        return NOT_AN_ENTITY


def _is_thing(token: Token, lowered: bool) -> bool:
    """Whether a single word may name a thing: a common noun, or what only seems to be a proper one.

    Written in lower case by the author (not `lowered` by us) it is none, whatever the tagger says; and the last word after
    an article, an adjective or other names tells what is named: the Brooklyn *Bridge*, but not *Apple* iPhone.
    """
    if token.tag_ not in NOUNS:
        return False
    if token.tag_ in COMMON_NOUNS or (token.text.islower() and not lowered):
        return True
    before, after = (token.doc[at].tag_ if 0 <= at < len(token.doc) else "" for at in (token.i - 1, token.i + 1))
    return before in NOUNS | BEFORE_A_NOUN and after not in NOUNS


class NounLemmas:
    """spaCy's rule lemmatizer for nouns, on words instead of tokens: its tables, its order, no tagger needed."""

    def __init__(self) -> None:
        tables = load_lookups("en", ["lemma_rules", "lemma_exc", "lemma_index"])
        self._rules: list[list[str]] = tables.get_table("lemma_rules")["noun"]
        self._exceptions: Mapping[str, list[str]] = tables.get_table("lemma_exc")["noun"]
        self._known: frozenset[str] = frozenset(tables.get_table("lemma_index")["noun"])

    def __call__(self, word: str) -> list[str]:
        """Possible singulars of a word in lower case, the likeliest first, the word itself last."""
        stems = [word[: -len(old)] + new for old, new in self._rules if word.endswith(old) and len(word) > len(old)]
        known = [stem for stem in stems if stem in self._known]
        return [*self._exceptions.get(word, []), *known, *(stem for stem in stems if stem not in known), word]


def vocabulary(counts: Mapping[str, int], top_k: int, min_count: int) -> pa.Table:
    """All entities by falling count (ties by name), `kept` for the first `top_k` with at least `min_count` captions."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rows: list[dict[str, Any]] = [
        {"entity": entity, "count": count, "rank": rank, "kept": rank <= top_k and count >= min_count}
        for rank, (entity, count) in enumerate(ranked, start=1)
    ]
    return pa.Table.from_pylist(rows, schema=ENTITIES)


def kept_entities(table: pa.Table) -> frozenset[str]:
    """The kept names of a `vocabulary` table."""
    return frozenset(table.filter(table["kept"])["entity"].to_pylist())
