"""Build two files of the lexicon from WordNet: `wordnet.tsv`, names of visible things that ImageNet-21k lacks, and
`adjectives.txt`, its names that are an adjective more often than a noun ("electric", a car) and are no entities.

    python tools/build_wordnet_names.py FOLDER

FOLDER holds WordNet 3.0's `data.noun`, `index.noun` and `cntlist.rev`. Taken are single words whose first sense is a visible
thing: animals, artifacts, parts of the body, food, natural objects, plants, weather, and people by what they do (agent nouns,
and kinds of athlete, traveller, worker, relative and the like). Left out are words that are a verb or an adjective more often,
colours, drugs and particles, and plurals of other nouns. What misleads nevertheless is in `stop.txt`.
"""

import argparse
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from build_lexicon import as_text, by_hand, one_spelling, usable

from filtering.captions.entities import NounLemmas
from filtering.captions.lexicon import FOLDER, spelling

ANIMAL, ARTIFACT, ATTRIBUTE, BODY, FOOD, OBJECT, PERSON, PHENOMENON, PLANT = 5, 6, 7, 8, 13, 17, 18, 19, 20
"""Numbers of WordNet's lexicographer files."""
VISIBLE = frozenset({ANIMAL, ARTIFACT, BODY, FOOD, OBJECT, PLANT})
PEOPLE = (
    "athlete", "child", "contestant", "cook", "creator", "farmer", "friend", "juvenile", "man", "musician", "officer",
    "performer", "player", "relative", "religious person", "rider", "serviceman", "spectator", "student", "swimmer",
    "traveler", "vocalist", "woman", "worker", "young person",
)  # fmt: skip
"""Kinds of these people are told by their looks or by what they do."""
AGENT = re.compile(r".{2,}(er|or|ist|eer|ian|man|woman|boy|girl|maid|groom|mate)")
HEADER = """\
# Words that ImageNet-21k lacks, by tools/build_wordnet_names.py; a second column is the canonical name. From WordNet 3.0,
# Copyright 2006 by Princeton University. All rights reserved. Its licence is in wordnet_licence.txt.
"""
HEADER_OF_ADJECTIVES = """\
# Names of imagenet21k.tsv that are an adjective more often than a noun, by tools/build_wordnet_names.py. From WordNet 3.0,
# Copyright 2006 by Princeton University. All rights reserved. Its licence is in wordnet_licence.txt.
"""


@dataclass(frozen=True)
class WordNet:
    """WordNet's nouns, as its database files hold them."""

    folder: Path

    @cached_property
    def synsets(self) -> dict[int, tuple[int, list[str], list[tuple[str, int]]]]:
        """Offset → lexicographer file, lemmas, (relation, offset) of the nouns that it points to."""
        found = {}
        for line in self._lines("data.noun"):
            fields = line.partition("|")[0].split()
            count = int(fields[3], 16)
            lemmas = [lemma.replace("_", " ") for lemma in fields[4 : 4 + 2 * count : 2]]
            pointers = fields[5 + 2 * count :]
            related = zip(pointers[::4], pointers[1::4], pointers[2::4], strict=False)
            found[int(fields[0])] = (int(fields[1]), lemmas, [(kind, int(at)) for kind, at, part in related if part == "n"])
        return found

    @cached_property
    def senses(self) -> dict[str, list[int]]:
        """Lemma → offsets of its synsets, the most frequent first."""
        entries = (line.split() for line in self._lines("index.noun"))
        return {fields[0].replace("_", " "): list(map(int, fields[-int(fields[2]) :])) for fields in entries}

    @cached_property
    def uses(self) -> Counter[tuple[str, str]]:
        """(lemma, part of speech) → how often it was met in WordNet's tagged texts."""
        found: Counter[tuple[str, str]] = Counter()
        for line in self._lines("cntlist.rev"):
            key, _, count = line.split()
            lemma, _, sense = key.partition("%")
            found[lemma, {"1": "noun", "2": "verb", "3": "adjective", "4": "adverb", "5": "adjective"}[sense[0]]] += int(count)
        return found

    def kinds_of(self, *lemmas: str, file: int) -> set[int]:
        """All synsets below those that hold one of `lemmas` in a lexicographer file."""
        found = {at for at, (number, among, _) in self.synsets.items() if number == file and not {*lemmas}.isdisjoint(among)}
        below: dict[int, list[int]] = {}
        for at, (_, _, related) in self.synsets.items():
            for kind, above in related:
                if kind == "@":
                    below.setdefault(above, []).append(at)
        queue = list(found)
        while queue:
            new = [at for at in below.get(queue.pop(), []) if at not in found]
            found.update(new)
            queue += new
        return found

    def _lines(self, name: str) -> Iterator[str]:
        text = (self.folder / name).read_text(encoding="latin-1")
        return (line for line in text.splitlines() if not line.startswith(" "))


def build(wordnet: WordNet, known: frozenset[str]) -> dict[str, str]:
    """Name → canonical name, for the words that `known` lacks (as the lexicon spells them), and their plurals there."""
    people = wordnet.kinds_of(*PEOPLE, file=PERSON)
    weather = wordnet.kinds_of("atmospheric phenomenon", file=PHENOMENON)
    colours = wordnet.kinds_of("chromatic color", "achromatic color", file=ATTRIBUTE)
    unseen = wordnet.kinds_of("drug", file=ARTIFACT) | wordnet.kinds_of("elementary particle", "ion", file=OBJECT)
    lemmas_of = NounLemmas()

    def is_visible(lemma: str, senses: list[int]) -> bool:
        file, among, related = wordnet.synsets[senses[0]]
        if lemma not in among or any(kind == "@i" for kind, _ in related):
            return False  # capitalised, or the name of a single thing
        if senses[0] in unseen or not colours.isdisjoint(senses):
            return False
        return (
            file in VISIBLE
            or (file == PERSON and (senses[0] in people or bool(AGENT.fullmatch(lemma))))
            or (file == PHENOMENON and senses[0] in weather)
        )

    def is_noun(lemma: str) -> bool:
        noun, verb, adjective = (wordnet.uses[lemma, part] for part in ("noun", "verb", "adjective"))
        return noun >= max(verb, adjective) and (noun > 0 or len(lemma) > 3)

    words = [
        lemma
        for lemma, senses in wordnet.senses.items()
        if re.fullmatch(r"[a-z](['-]?[a-z])+", lemma)
        and usable(lemma)
        and spelling(lemma) not in known
        and not any(form in wordnet.senses or form in known for form in lemmas_of(lemma)[:-1])
        and is_visible(lemma, senses)
        and is_noun(lemma)
    ]
    synsets = [wordnet.synsets[at][1] for at in {at for word in words for at in wordnet.senses[word]}]
    same = one_spelling({*words, *known, *by_hand()}, synsets)
    return {word: word for word in words} | {name: one for name, one in same.items() if not {name, one}.isdisjoint(words)}


def adjectives(wordnet: WordNet, known: frozenset[str]) -> list[str]:
    """The words among `known` that are an adjective more often than a noun, and not wanted by hand."""
    return sorted(
        word for word in known - by_hand() if " " not in word and wordnet.uses[word, "adjective"] > wordnet.uses[word, "noun"]
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wordnet", type=Path, help="folder with data.noun, index.noun and cntlist.rev")
    args = parser.parse_args()
    wordnet = WordNet(args.wordnet)
    lines = (FOLDER / "imagenet21k.tsv").read_text(encoding="utf-8").splitlines()
    known = frozenset(spelling(line.partition("\t")[0]) for line in lines)
    names = build(wordnet, known)
    (FOLDER / "wordnet.tsv").write_text(HEADER + as_text(names), encoding="utf-8")
    found = adjectives(wordnet, known)
    (FOLDER / "adjectives.txt").write_text(HEADER_OF_ADJECTIVES + "\n".join(found) + "\n", encoding="utf-8")
    print(f"{FOLDER}: {len(names)} names, {len(found)} adjectives")


if __name__ == "__main__":
    main()
