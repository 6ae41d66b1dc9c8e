"""The cheap first pass over captions: which words could be entities, and how they are written. No tagger is asked.

What the tagger may say about a word is left open, so nothing it could accept is missed: the scan cuts captions with the
tagger's own tokenizer (each string between white space once, then from memory) and reads every word as a possible noun.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import pyarrow as pa
from spacy.tokenizer import Tokenizer

from filtering.captions.entities import HYPHEN, NounLemmas, Remembered, cut_with, name_of, plain
from filtering.captions.lexicon import NOT_AN_ENTITY, Lexicon
from filtering.captions.text import for_tagging

CAPITAL, TITLE, OVERLAP = "|capital", "|title", "|overlap"
"""What ends a form: a word that opens with a capital, a word of a caption in Title Case, a compound that opens inside another
one. A word in lower case and other compounds end in nothing."""


def parted(form: str) -> tuple[str, str]:
    """The words of a form and how they are written: "dog|title" → ("dog", "|title")."""
    case = next((case for case in (CAPITAL, TITLE, OVERLAP) if form.endswith(case)), "")
    return form.removesuffix(case), case


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a form stands for."""

    name: str
    """The entity if its last word is a noun; "" for a form that is stopped as a whole."""
    possible: frozenset[str]
    """Every entity that the tagger's reading of these words may bring out."""
    certain: bool = False
    """Whether the form is the entity, whatever a tagger says."""


class CaptionScanner(Protocol):
    """Tells what captions may mention, as forms: strings that say which words stand there and how they are written."""

    def __call__(self, captions: Iterable[str]) -> pa.ListArray: ...

    def means(self, form: str) -> Meaning: ...


@dataclass(frozen=True, slots=True)
class _Word:
    """A token as the scan sees it. `opens`: compounds open with it; `lemmas`: as the last word of a compound."""

    lower: str
    form: str
    title: str
    opens: bool
    lemmas: tuple[str, ...]


_OTHER = _Word("", "", "", False, ())  # in no name of the lexicon; keeps the words beside it apart


class Scanner:
    """Finds the forms of a lexicon's names: the longest compounds first, single words where there is none.

    Whatever `EntityFinder` can find in a caption, however the tagger tags it, is among the possible entities of its forms.
    """

    def __init__(self, lexicon: Lexicon, tokenizer: Tokenizer) -> None:
        self._lexicon = lexicon
        self._lemmas = NounLemmas()
        compounds = [words for words in map(str.split, lexicon.names) if len(words) > 1]
        self._openings = frozenset(" ".join(words[:length]) for words in compounds for length in range(1, len(words)))
        self._inner = frozenset(word for words in compounds for word in words[:-1])
        self._last = frozenset(words[-1] for words in compounds)
        self._meanings = Remembered(self._meaning)
        self._cut = cut_with(tokenizer)
        self._words = Remembered(self._words_of)
        self._vocab = tokenizer.vocab

    def __call__(self, captions: Iterable[str]) -> pa.ListArray:
        """For every caption its forms, in order."""
        forms: list[str] = []
        ends = [0]
        with self._vocab.memory_zone():  # else every word ever cut stays in memory
            for caption in captions:
                text, lowered = for_tagging(caption)
                self._scan(list(chain.from_iterable(map(self._words.__getitem__, text.split()))), lowered, forms)
                ends.append(len(forms))
        return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(forms, pa.string()))

    def _scan(self, words: Sequence[_Word], lowered: bool, forms: list[str]) -> None:
        end = 0  # of the last mention
        for at, word in enumerate(words):
            if word.opens and (stop := self._compound(words, at)) > end:
                form = " ".join([part.lower for part in words[at:stop]])
                if at < end:
                    form += OVERLAP
                else:
                    end = stop
                if self.means(form).possible:
                    forms.append(form)
            elif word.form and at >= end:
                forms.append(word.title if lowered else word.form)

    def _compound(self, words: Sequence[_Word], at: int) -> int:
        """Where the longest compound ends that opens at word `at`; 0 if none does."""
        stop = 0
        opening = words[at].lower
        for after in range(at + 1, len(words)):
            word = words[after]
            if any(f"{opening} {lemma}" in self._lexicon.names for lemma in word.lemmas):
                stop = after + 1
            opening = f"{opening} {word.lower}"
            if opening not in self._openings:
                break
        return stop

    def means(self, form: str) -> Meaning:
        """What a form of this scanner stands for."""
        return self._meanings[form]

    def _meaning(self, form: str) -> Meaning:
        words = parted(form)[0].split(" ")
        spans = [(at, stop) for at in range(len(words)) for stop in range(at + 1, len(words) + 1)]
        names = [name for at, stop in spans for name in self._names(words[at:stop])]
        possible = frozenset(names) - {NOT_AN_ENTITY}
        whole = self._names(words)
        return Meaning(next((name for name in whole if name in possible), NOT_AN_ENTITY), possible)

    def _names(self, words: Sequence[str]) -> list[str]:
        """What these words are together if the last one is a noun; nothing where they are no name."""
        *opening, last = words
        *singulars, word = lemmas = self._lemmas(last)
        if not opening:
            return [name_of(lemmas, self._lexicon)]
        names = (self._lexicon.names.get(" ".join([*opening, form])) for form in (word, *singulars))
        return [name for name in names if name is not None][:1]

    def _words_of(self, part: str) -> tuple[_Word, ...]:
        """The words of a string without white space. Hyphens are none."""
        return tuple(self._word(token) for token in self._cut(part) if token != HYPHEN)

    def _word(self, token: str) -> _Word:
        lower = plain(token.lower())
        lemmas = self._lemmas(lower)
        form = lower if any(self._lexicon.names.get(lemma) for lemma in lemmas) and any(self._names([lower])) else ""
        last = tuple(lemma for lemma in lemmas if lemma in self._last)
        if not form and not last and lower not in self._inner:
            return _OTHER
        capital = form if not form or token.islower() else form + CAPITAL
        return _Word(lower, capital, form and form + TITLE, lower in self._openings, last)
