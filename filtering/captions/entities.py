"""Nouns of a caption → canonical entities."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import TypeVar

from spacy.language import Language
from spacy.lookups import load_lookups
from spacy.tokenizer import Tokenizer
from spacy.tokens import Doc, Token

from filtering.captions.lexicon import NOT_AN_ENTITY, Lexicon, attributes, given_names
from filtering.captions.tagger import COMMON_NOUNS, NOUNS
from filtering.captions.text import for_tagging

BATCH = 512
REMEMBERED = 1 << 17
HYPHEN = "-"
"""The token that parts a word and is passed over: "t-shirt", "t - shirt"."""
BEFORE_A_NOUN = frozenset({"DT", "JJ", "PRP$"})
IN_A_PHRASE = frozenset({"NN", "NNP", "JJ", "VBN", "VBG", "HYPH"})
OPENS = frozenset({"", "."})
"""Tags before the first word of a sentence."""
ONE = frozenset({"a", "an", "another", "each", "every", "one", "this"})
EDIBLE_OR_PLANTED = frozenset(
    {"blossom", "blossoms", "cake", "cakes", "drink", "garden", "grove", "juice", "leaf", "leaves", "orchard", "peel", "petal"}
    | {"petals", "pie", "plant", "plants", "seeds", "slice", "slices", "soda", "tree", "trees", "wedge", "wedges"}
)
"""What makes a thing of a colour's word before it: an orange tree."""

T = TypeVar("T")


class EntityFinder:
    """Finds what a caption says can be seen: common nouns, singular, under the lexicon's canonical names.

    Compounds of the lexicon come before their words. Of a proper name only the last word counts.
    """

    def __init__(self, nlp: Language, lexicon: Lexicon) -> None:
        self._nlp = nlp
        self._lexicon = lexicon
        self._lemmas = NounLemmas()
        self._tokens = Remembered(cut_with(nlp.tokenizer))

    def __call__(self, captions: Iterable[str]) -> list[list[str]]:
        """For every caption its entities, each once, in order of first mention."""
        with self._nlp.memory_zone():  # else every word ever seen stays in memory
            docs = self._nlp.pipe(map(self._doc, captions), batch_size=BATCH, as_tuples=True)
            return [self._entities(doc, lowered) for doc, lowered in docs]

    def _doc(self, caption: str) -> tuple[Doc, bool]:
        text, lowered = for_tagging(caption)
        parts = [self._tokens[part] for part in text.split()]
        spaces = [last for part in parts for last in [*[False] * (len(part) - 1), True]]
        return Doc(self._nlp.vocab, words=list(chain.from_iterable(parts)), spaces=spaces), lowered

    def _entities(self, doc: Doc, lowered: bool) -> list[str]:
        tokens = [token for token in doc if token.text != HYPHEN]
        found: dict[str, None] = {}
        at = 0
        while at < len(tokens):
            name, length = self._compound(tokens, at)
            if name is None and self._is_thing(tokens[at], lowered):
                name = name_of(self._lemmas(tokens[at].lower_), self._lexicon)
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
            opening = " ".join(plain(token.lower_) for token in tokens[at : at + length - 1])
            *singulars, word = self._lemmas(last.lower_)
            for form in (word, *singulars):
                name = self._lexicon.names.get(f"{opening} {form}")
                if name is not None:
                    return name, length
        return None, 1

    def _is_thing(self, token: Token, lowered: bool) -> bool:
        """Whether a single word may name a thing: a common noun, or what only seems to be a proper one.

        What is written in lower case is no proper noun, whatever the tagger says; nor can it be told where capitals say nothing
        (`lowered`). Elsewhere the last word after an article, an adjective or other names tells what is named: the Brooklyn
        *Bridge*, but not *Apple* iPhone; and a sentence may open with it: *Boy* is lying on grass.
        """
        if token.tag_ not in NOUNS or _is_attribute(token) or self._is_verb(token):
            return False
        if lowered or token.tag_ in COMMON_NOUNS or token.text.islower():
            return True
        before, after = _tag(token, -1), _tag(token, 1)
        return after not in NOUNS and (before in NOUNS | BEFORE_A_NOUN or (before in OPENS and _no_given_name(token)))

    def _is_verb(self, token: Token) -> bool:
        """Whether what looks like a plural must be a verb, as its article is a singular's: "a man waves"."""
        if (
            token.tag_ != "NNS"
            or _tag(token, 1) in NOUNS | {"POS"}
            or self._lemmas.verbs.isdisjoint(self._lemmas(token.lower_))
        ):
            return False
        at = token.i - 1
        while at >= 0 and token.doc[at].tag_ in IN_A_PHRASE:
            at -= 1
        return 0 <= at < token.i - 1 and token.doc[at].lower_ in ONE and token.doc[token.i - 1].tag_ in NOUNS


def _tag(token: Token, step: int) -> str:
    at = token.i + step
    return token.doc[at].tag_ if 0 <= at < len(token.doc) else ""


def _is_attribute(token: Token) -> bool:
    """Whether a word only says what the next one is made of or which colour it has: *orange* shirt, *suede* shoes."""
    return token.lower_ in attributes() and _tag(token, 1) in NOUNS and token.nbor().lower_ not in EDIBLE_OR_PLANTED


def _no_given_name(token: Token) -> bool:
    return token.text[1:].islower() and token.lower_ not in given_names()


def name_of(lemmas: Sequence[str], lexicon: Lexicon) -> str:
    """The canonical name of a single noun, given its `NounLemmas`.

    A word of the lexicon is read as it stands ("bus", "woods"), whatever number the tagger sees: the lexicon has plural and
    singular of a thing under one name. Other words are read as plurals.
    """
    for form in (lemmas[-1], *lemmas[:-1]):
        name = lexicon.names.get(form)
        if name is not None:
            return name
    return NOT_AN_ENTITY


def plain(word: str) -> str:
    """A word with the apostrophe that names are written with."""
    return word.replace("’", "'")


class Remembered(dict[str, T]):
    """A function of strings whose results are kept, up to `REMEMBERED` of them; then all are forgotten: memory stays flat."""

    def __init__(self, function: Callable[[str], T]) -> None:
        super().__init__()
        self._function = function

    def __missing__(self, text: str) -> T:
        if len(self) >= REMEMBERED:
            self.clear()
        result = self[text] = self._function(text)
        return result


def cut_with(tokenizer: Tokenizer) -> Callable[[str], tuple[str, ...]]:
    """Cuts what stands between white space into tokens, by spaCy's rules for these characters alone.

    spaCy cuts a whole text just so, save that a special case of its may reach over white space ("lovin 'cos"). To be called
    in a memory zone of the vocabulary.
    """
    special = frozenset(tokenizer.rules)

    def cut(part: str) -> tuple[str, ...]:
        if part.isascii() and part.isalpha() and part not in special:
            return (part,)  # no affix, no infix
        return tuple([token.text for token in tokenizer(part)])

    return cut


class NounLemmas:
    """spaCy's rule lemmatizer for nouns, on words instead of tokens: its tables, its order, no tagger needed."""

    def __init__(self) -> None:
        tables = load_lookups("en", ["lemma_rules", "lemma_exc", "lemma_index"])
        self._rules: list[list[str]] = tables.get_table("lemma_rules")["noun"]
        self._exceptions: Mapping[str, list[str]] = tables.get_table("lemma_exc")["noun"]
        self._known: frozenset[str] = frozenset(tables.get_table("lemma_index")["noun"])
        self.verbs: frozenset[str] = frozenset(tables.get_table("lemma_index")["verb"])
        """Verbs in their plain form."""

    def __call__(self, word: str) -> list[str]:
        """Possible singulars of a word in lower case, the likeliest first, the word itself last."""
        stems = [word[: -len(old)] + new for old, new in self._rules if word.endswith(old) and len(word) > len(old)]
        known = [stem for stem in stems if stem in self._known]
        return [*self._exceptions.get(word, []), *known, *(stem for stem in stems if stem not in known), word]
