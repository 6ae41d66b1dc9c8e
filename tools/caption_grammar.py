"""Sentences and titles as captions have them, written by a small grammar, with their Penn Treebank tags.

A treebank of mails, reviews and news has few people who climb, slide and wave in the present tense, and no sentence that begins
"Boy is lying"; so a tagger that learned from it alone takes the verbs for things and the boy for a name. The grammar knows what
every word is. It puts words that are both noun and verb (slide, wave, watch), or noun and colour (orange, light), in each role.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

Word = tuple[str, str]
"""(word, tag)"""
Sentence = list[tuple[str, str, bool]]
"""(word, tag, followed by a space) for every token, as in `train_tagger`."""


def _words() -> dict[str, list[str]]:
    """The lists of `caption_words.txt` by name."""
    text = (Path(__file__).parent / "caption_words.txt").read_text(encoding="utf-8")
    lists = (part.partition(":") for part in text.split("\n\n")[1:])
    return {name: words.split() for name, _, words in lists}


WORDS = _words()
IRREGULAR = {
    "man": "men", "woman": "women", "child": "children", "person": "people", "gentleman": "gentlemen", "fisherman": "fishermen",
    "lady": "ladies", "knife": "knives", "leaf": "leaves", "fish": "fish", "sheep": "sheep",
}  # fmt: skip
PARTICIPLES = {"lie": "lying"}


def s_form(word: str) -> str:
    """The plural of a noun, the third person of a verb."""
    if word in IRREGULAR:
        return IRREGULAR[word]
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    return word[:-1] + "ies" if word.endswith("y") and word[-2] not in "aeiou" else word + "s"


def ing_form(word: str) -> str:
    """The present participle of a verb."""
    if word in PARTICIPLES or word in WORDS["doubled"]:
        return PARTICIPLES.get(word, word + word[-1] + "ing")
    return (word[:-1] if word.endswith("e") and not word.endswith(("ee", "oe")) else word) + "ing"


class CaptionGrammar:
    """Draws captions. The same lot gives the same captions."""

    def __init__(self, lot: random.Random) -> None:
        self._lot = lot
        self._kinds: Sequence[tuple[float, Callable[[], list[Word]]]] = (
            (0.35, self.clause), (0.22, self.telegram), (0.15, self.scene), (0.23, self.title), (0.05, self.named),
        )  # fmt: skip

    def captions(self, number: int) -> list[Sentence]:
        """`number` captions, in the ways in which people write them: with or without capital and final stop."""
        shares, kinds = zip(*self._kinds, strict=True)
        return [self._written(kind()) for kind in self._lot.choices(kinds, shares, k=number)]

    def _written(self, words: list[Word]) -> Sentence:
        tokens = [(part, tag) for word, tag in words for part, tag in self._parts(word, tag)]
        if self._lot.random() < 0.3:
            tokens = [(part.lower(), tag) for part, tag in tokens]
        elif self._lot.random() < 0.7:
            tokens[0] = (tokens[0][0][0].upper() + tokens[0][0][1:], tokens[0][1])
        if self._lot.random() < 0.5:
            tokens.append((".", "."))
        return [(word, tag, True) for word, tag in tokens]

    @staticmethod
    def _parts(word: str, tag: str) -> list[Word]:
        *opening, last = word.split("-")
        return [*((part, "NN") for part in opening), (last, tag)]

    def _any(self, words: Sequence[str]) -> str:
        return self._lot.choice(words)

    def _chance(self, share: float) -> bool:
        return self._lot.random() < share

    # ---- phrases

    def modifiers(self) -> list[Word]:
        """Adjectives and colours before a noun."""
        if self._chance(0.25):
            shade: list[Word] = [(self._any(WORDS["shades"]), "JJ")] if self._chance(0.3) else []
            more: list[Word] = [("and", "CC"), (self._any(WORDS["colours"]), "JJ")] if self._chance(0.2) else []
            return [*shade, (self._any(WORDS["colours"]), "JJ"), *more]
        return [(self._any(WORDS["adjectives"]), "JJ")] if self._chance(0.3) else []

    def noun(self, words: Sequence[str], plural: bool, kind: float = 0.15) -> list[Word]:
        """A noun with what stands before it, without article."""
        noun = self._any(words)
        opening: list[Word] = [(self._any(WORDS["kinds"]), "NN")] if words is WORDS["things"] and self._chance(kind) else []
        return [*self.modifiers(), *opening, (s_form(noun), "NNS") if plural else (noun, "NN")]

    def _with_article(self, words: list[Word]) -> list[Word]:
        article = self._any(["a", "a", "the", "his", "her", "another", "one"])
        if article == "a" and words[0][0][0] in "aeiou":
            article = "an"
        return [(article, {"his": "PRP$", "her": "PRP$", "one": "CD"}.get(article, "DT")), *words]

    def phrase(self, words: Sequence[str], *, bare: bool = False) -> tuple[list[Word], bool]:
        """A noun phrase, and whether it is a plural."""
        plural = self._chance(0.3)
        noun = self.noun(words, plural)
        if bare:
            return noun, plural
        if not plural:
            return self._with_article(noun), False
        number = self._any(WORDS["numbers"])
        opening = self._lot.random()
        if opening < 0.5:
            return [(number, {"several": "JJ", "many": "JJ", "some": "DT"}.get(number, "CD")), *noun], True
        return ([("the", "DT"), *noun] if opening < 0.65 else noun), True

    def place(self) -> list[Word]:
        """Where it is."""
        if self._chance(0.5):
            noun: list[Word] = (
                [("the", "DT"), (self._any(WORDS["places"]), "NN")]
                if self._chance(0.6)
                else [(self._any(WORDS["places"]), "NN")]
            )
        else:
            noun = self.phrase(WORDS["things"])[0]
        return [(self._any(WORDS["prepositions"]), "IN"), *noun]

    def doing(self, form: Callable[[str], str], tag: str) -> list[Word]:
        """A verb with what follows it."""
        if self._chance(0.5):
            verb: list[Word] = [
                (form(self._any(WORDS["verbs_with_object"])), tag),
                *self.phrase(WORDS["things"] + WORDS["animals"])[0],
            ]
            return [*verb, *(self.place() if self._chance(0.5) else [])]
        verb = [(form(self._any(WORDS["verbs"])), tag)]
        if self._chance(0.15):
            verb.append((self._any(WORDS["adverbs"]), "RB"))
        return [*verb, *(self.place() if self._chance(0.85) else []), *(self.place() if self._chance(0.25) else [])]

    def subject(self, *, bare: bool = False) -> tuple[list[Word], bool]:
        """Who does it, and whether they are several."""
        words, plural = self.phrase(
            WORDS["people"] if self._chance(0.75) else WORDS["animals"] if self._chance(0.8) else WORDS["things"], bare=bare
        )
        form = self._lot.random()
        if form < 0.15:
            words += [("in", "IN"), *self._with_article(self.noun(WORDS["things"], False))]
        elif form < 0.22:
            words += [("in", "IN"), (self._any(WORDS["colours"]), "NN")]
        elif form < 0.32:
            words += [("and", "CC"), *self.phrase(WORDS["people"] + WORDS["animals"], bare=bare)[0]]
            plural = True
        return words, plural

    # ---- captions

    def _predicate(self, plural: bool) -> list[Word]:
        form = self._lot.random()
        if form < 0.55:
            doing = self.doing((lambda verb: verb) if plural else s_form_of_verb, "VBP" if plural else "VBZ")
        elif form < 0.8:
            doing = [("are", "VBP") if plural else ("is", "VBZ"), *self.doing(ing_form, "VBG")]
        else:
            doing = self.doing(ing_form, "VBG")
        more = self._lot.random()
        if more < 0.08:
            return [*doing, ("while", "IN"), *self.subject()[0], *self.doing(ing_form, "VBG")]
        if more < 0.16 and form < 0.55:
            verb: list[Word] = self.doing((lambda verb: verb) if plural else s_form_of_verb, "VBP" if plural else "VBZ")
            return [*doing, ("and", "CC"), *verb]
        return doing

    def clause(self) -> list[Word]:
        """A man climbs a wall."""
        subject, plural = self.subject()
        return [*subject, *self._predicate(plural)]

    def telegram(self) -> list[Word]:
        """Boy is lying on grass. Man in red shirt climbs."""
        subject, plural = self.subject(bare=True)
        return [*subject, *self._predicate(plural)]

    def named(self) -> list[Word]:
        """Mark slides down the hill."""
        return [(self._any(WORDS["names"]), "NNP"), *self._predicate(False)]

    def scene(self) -> list[Word]:
        """Waves on a beach; a light and an orange on the table."""
        words = self.phrase(WORDS["things"])[0]
        if self._chance(0.3):
            words += [("and", "CC"), *self.phrase(WORDS["things"] + WORDS["animals"])[0]]
        if self._chance(0.2):
            words = [("there", "EX"), ("is", "VBZ"), *words]
        return [*words, *self.place()]

    def brand(self) -> list[Word]:
        """What stands before the name of a product: mostly nothing, or made-up names."""
        number = self._lot.choices([0, 1, 2], [0.6, 0.3, 0.1])[0]
        syllables = [f"{first}{vowel}" for first in "bdfgklmnprstvz" for vowel in "aeiou"]
        made_up = ["".join(self._lot.choices(syllables, k=self._lot.randint(2, 3))) for _ in range(number)]
        return [((name + self._any(["", "n", "x", "s", "r"])).capitalize(), "NNP") for name in made_up]

    def title(self) -> list[Word]:
        """Bolora leather watches for men, light blue."""
        words = [*self.brand(), *self.noun(WORDS["things"], self._chance(0.5), kind=0.6)]
        ending = self._lot.random()
        if ending < 0.25:
            words += [("for", "IN"), (s_form(self._any(WORDS["people"] + WORDS["animals"])), "NNS")]
        elif ending < 0.4:
            words += [("with", "IN"), *self.noun(WORDS["things"], self._chance(0.5))]
        elif ending < 0.5:
            words += [
                (",", ","),
                *([(self._any(WORDS["shades"]), "JJ")] if self._chance(0.4) else []),
                (self._any(WORDS["colours"]), "JJ"),
            ]
        elif ending < 0.6:
            words += [("and", "CC"), *self.noun(WORDS["things"], self._chance(0.5))]
        return words


def s_form_of_verb(verb: str) -> str:
    """The third person: as a plural, but never irregular ("fishes")."""
    return "fishes" if verb == "fish" else s_form(verb)
