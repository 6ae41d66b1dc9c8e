"""Which benchmark classes a list of entities contains: a corpus selected for what is tested later is no open-world corpus."""

from collections.abc import Iterator, Mapping, Sequence

from filtering.captions.entities import NounLemmas
from filtering.captions.lexicon import Lexicon, spelling

COMPOSED = "-"
"""COCO-Stuff writes kinds of a thing as "wall-brick", and "sky-other" or "door-stuff" for the rest of its kinds."""


def leaked(benchmarks: Mapping[str, Sequence[Sequence[str]]], lexicon: Lexicon) -> Mapping[str, Mapping[str, str]]:
    """For each benchmark its classes that are entities of the lexicon, and which: {benchmark: {class: entity}}.

    A class is an entity if one of its spellings as a whole is a name of the entity in the lexicon: singular or plural, with or
    without hyphens, or written as one word ("pottedplant"). Parts do not count ("traffic sign" is no sign), nor do kinds (a
    woman is no class "person"); but of a hyphened class both readings and its first word do ("wall-brick": brick wall, wall).
    A synonym that means another entity than its class stands as "class (synonym)".

    Args:
        benchmarks: per benchmark its classes, each as its spellings: the name, then synonyms.
        lexicon: the lexicon with the list's own names.
    """
    names = _Names(lexicon)
    return {benchmark: dict(_leaks(classes, names)) for benchmark, classes in benchmarks.items()}


def _leaks(classes: Sequence[Sequence[str]], names: "_Names") -> Iterator[tuple[str, str]]:
    for spellings in classes:
        found: dict[str, str] = {}
        for written in spellings:
            entity = names(written)
            if entity:
                found.setdefault(entity, written)
        for number, (entity, written) in enumerate(found.items()):
            yield f"{spellings[0]} ({written})" if number else spellings[0], entity


class _Names:
    """Class names → entities, "" for none."""

    def __init__(self, lexicon: Lexicon) -> None:
        self._names = lexicon.names
        self._lemmas = NounLemmas()
        self._joined: dict[str, str] = {}
        for written, name in lexicon.names.items():
            if " " in written:
                self._joined.setdefault(written.replace(" ", ""), name)

    def __call__(self, written: str) -> str:
        """The entity that a class name is."""
        thing, composed, kind = written.partition(COMPOSED)
        readings = (written, f"{kind} {thing}", thing) if composed else (written,)
        return next(filter(None, map(self._look_up, readings)), "")

    def _look_up(self, written: str) -> str:
        name = spelling(written)
        *opening, last = name.split() or [""]
        forms = (name, *(" ".join([*opening, lemma]) for lemma in self._lemmas(last)))
        found = (self._names[form] for form in forms if form in self._names)
        return next(found, "") or self._joined.get(name, "")
