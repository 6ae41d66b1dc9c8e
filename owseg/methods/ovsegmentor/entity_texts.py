"""Questions and answers of masked entity completion: a caption without its entities, and what they were."""

import random
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from owseg.entity_labels import drawn, label_of, padded
from owseg.text import Tokenizer, prompt_templates

_PEOPLE = "man men woman women girl boy lady kid child children baby student bride groom couple prince princess"
_NAMES = """
    people car bus truck motorcycle train bicycle boat aeroplane cup bottle bowl knife spoon glass fork chair table bench clock
    laptop light vase plant remote microwave toaster oven mouse keyboard sofa monitor tv flower refrigerator house bag umbrella
    book backpack phone shirt tie suitcase box sink bed toilet cat dog horse bird cow sheep elephant bear zebra giraffe ball
    racket skateboard skis snowboard surfboard kite pizza cake apple banana sandwich orange carrot donut
"""
SYNONYMS = {
    **dict.fromkeys(_PEOPLE.split(), "people"),
    "airplane": "aeroplane",
    "motorbike": "motorcycle",
    "bike": "bicycle",
    "desk": "table",
    "couch": "sofa",
    "building": "house",
    "hotel": "house",
    "t-shirt": "shirt",
    "handbag": "bag",
}
"""Word → entity, as official OVSegmentor merges its 100 words into 73 names."""
NAMES = tuple(_NAMES.split())
"""Those names, in official order."""
ALSO = {
    "person": ("people", "actor", "actress", "celebrity", "politician"),
    "people": ("person", "guy", "gentleman", "actor", "actress", "celebrity", "politician"),
    "man": ("guy", "gentleman"),
    "woman": ("lady",),
    "child": ("kid",),
    "airplane": ("aeroplane", "plane"),
    "aeroplane": ("plane",),
    "motorcycle": ("motorbike",),
    "tv": ("television",),
    "skis": ("ski",),
    "phone": ("cellphone", "smartphone"),
    "clothing": ("clothes",),
    "mother": ("mom",),
}
"""What captions write for a name that curation stores, beside plurals and `SYNONYMS`."""
IRREGULAR = {
    "man": "men",
    "child": "children",
    "mouse": "mice",
    "goose": "geese",
    "foot": "feet",
    "tooth": "teeth",
    "ox": "oxen",
    "cactus": "cacti",
}
"""Ends of nouns → of their plurals."""
PROMPT = "A photo of "
"""What opens the text of an entity that two images share (official)."""
MOST_LABELS = 8
"""Entities of an image that the multi-label loss knows."""

_WORD = re.compile(r"<PERSON>|[^\W_]+")  # CC12M's stand-in for names is no person whom a caption mentions
_GAP = " \t\n-'’"
"""What may lie between the words of one mention."""


class EntityTexts:
    """Makes the texts of a batch from its captions and their entities.

    Exact form: each mention of one of the entities that curation stored is one masked word, whatever the case, the number or
    the punctuation around; a possessive's ending stays. A synonym beyond `SYNONYMS` and `ALSO`, by which curation knew the
    entity, stays too. The answer is a whole template, filled with the stored entities. A caption without entities is a
    question as it stands, and its answer the template up to where they would be.

    Official form, with the quirks of the released code:
    - What is stored is not asked: each caption is searched for `NAMES` again (and, so that other lists serve too, for what is
      stored).
    - Words lie between single spaces, and only full stops are taken off: "dog," is not found.
    - The letter s and the apostrophe are stripped from both ends of every word, which was meant for possessives. Found or not,
      words stay so in the question: "sitting" is "itting", and lower-case "sheep" or "bus" is never found. As this leaves
      "babie" and "knive", only plurals in a bare -s and those without one are found.
    - "skis" is never found, as its lemma is "ski", nor is "t-shirt", whose synonym is spelt with a capital.
    - Apostrophes are dropped from the question.
    - The answer is a template's beginning and the entities found; what follows in the template is dropped. Their order is
      arbitrary in the official code; here it is that of first mention.
    """

    def __init__(self, tokenize: Tokenizer, mask_word: str, *, official: bool, labels: bool = False) -> None:
        """labels: make the texts of the multi-label loss, too."""
        self._tokenize, self._mask_word, self._official, self._labels = tokenize, mask_word, official, labels
        self._templates = prompt_templates("imagenet80")

    def __call__(
        self, captions: list[str], entities: list[list[str]], shared: list[str] | None, randoms: list[random.Random]
    ) -> dict[str, Tensor]:
        """Tokens [B, L] of the questions and answers and, where `shared` gives an entity for each, of its "prompt".

        With labels also those of "label", a template filled with one entity of each image, and as "labels" [B, M] numbers that
        stand for the image's entities, that one first, filled up with -1. Draws of each sample's own `randoms` once for its
        caption, and for its label.
        """
        texts = [self.question_and_answer(*sample) for sample in zip(captions, entities, randoms, strict=True)]
        found = {
            "question": self._tokenize([question for question, _ in texts]),
            "answer": self._tokenize([answer for _, answer in texts]),
        }
        if shared is not None:
            found["prompt"] = self._tokenize([PROMPT + entity for entity in shared])
        if self._labels:
            names = [drawn(*sample) for sample in zip(entities, randoms, strict=True)]
            found["label"] = self._tokenize([self._filled(some[:1], own) for some, own in zip(names, randoms, strict=True)])
            found["labels"] = torch.tensor([padded([label_of(name) for name in some], MOST_LABELS) for some in names])
        return found

    def _filled(self, entities: Sequence[str], own: random.Random) -> str:
        """A template with the entities in their place; what comes before it where there are none."""
        prefix, suffix = own.choice(self._templates).split("{}")
        named = " and ".join(dict.fromkeys(filter(None, entities)))
        return f"{prefix}{named}{suffix}" if named else prefix.rstrip()

    def question_and_answer(self, caption: str, entities: Sequence[str], own: random.Random) -> tuple[str, str]:
        """The two texts of one caption, drawn of its own random numbers."""
        if self._official:
            question, found = self._official_question(caption, entities)
            return question, own.choice(self._templates).split("{}")[0] + " and ".join(found)
        return self._question(caption, entities), self._filled(entities, own)

    def _question(self, caption: str, entities: Sequence[str]) -> str:
        openings: dict[str, list[tuple[str, ...]]] = {}
        for entity in entities:
            for form in mentions(entity):
                openings.setdefault(form[0], []).append(form)
        words = list(_WORD.finditer(caption)) if openings else []
        parts, end, after = [], 0, 0
        for at, word in enumerate(words):
            forms = openings.get(word[0].lower())
            if forms is None or at < after:  # most words; and those that a longer mention took in
                continue
            length = max(len(form) if _stands(form, caption, words[at : at + len(form)]) else 0 for form in forms)
            if length:
                after = at + length
                parts += [caption[end : word.start()], self._mask_word]
                end = words[after - 1].end()
        return "".join(parts) + caption[end:]

    def _official_question(self, caption: str, entities: Sequence[str]) -> tuple[str, list[str]]:
        stored = {form: entity for entity in entities for form in _forms(entity.lower())}
        found: dict[str, None] = {}
        words = []
        for word in caption.split(" "):
            word = word.strip().replace(".", "").strip("'s")
            name = _OFFICIAL.get(word.lower()) or stored.get(word.lower())
            if name:
                found[name] = None
            words.append(self._mask_word if name else word)
        return " ".join(words).replace("'", ""), list(found)


@lru_cache(maxsize=1 << 15)
def mentions(entity: str) -> frozenset[tuple[str, ...]]:
    """The forms in which a caption may mention an entity, each as its words in lower case."""
    name = entity.lower()
    nouns = (entity, *ALSO.get(name, ()), *(word for word, canonical in SYNONYMS.items() if canonical == name))
    split = ([word.lower() for word in _WORD.findall(noun)] for noun in nouns)
    return frozenset((*words[:-1], form) for words in split if words for form in _forms(words[-1]))


@lru_cache(maxsize=1 << 15)
def _forms(noun: str) -> frozenset[str]:
    """A noun in lower case and what its plural may look like. A form too many does no harm: captions do not have it."""
    found = {noun, f"{noun}s"}
    if noun.endswith(("s", "x", "z", "ch", "sh", "o")):
        found.add(f"{noun}es")
    if noun.endswith("y"):
        found.add(f"{noun[:-1]}ies")
    if noun.endswith(("f", "fe")):
        found.add(f"{noun.removesuffix('e')[:-1]}ves")
    found.update(noun.removesuffix(end) + plural for end, plural in IRREGULAR.items() if noun.endswith(end))
    return frozenset(found)


def _stands(form: tuple[str, ...], caption: str, words: list[re.Match[str]]) -> bool:
    """Whether these words of a caption are a form of an entity, with nothing but spaces, hyphens or apostrophes between.

    The first is known to be its first.
    """
    if len(words) < len(form) or any(word[0].lower() != part for word, part in zip(words[1:], form[1:], strict=True)):
        return False
    return not any(caption[a.end() : b.start()].strip(_GAP) for a, b in pairwise(words))


_OFFICIAL = {
    form: SYNONYMS.get(word, word)
    for word in (*NAMES, *SYNONYMS)
    if word not in ("skis", "t-shirt")  # out of its reach, see EntityTexts
    for form in _forms(word)
}
