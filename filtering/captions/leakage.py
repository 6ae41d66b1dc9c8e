"""Which benchmark classes a list of entities contains: a corpus selected for what is tested later is no open-world corpus."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

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


def count_leaks(kept: Iterable[Path], leaks: Mapping[str, frozenset[str]]) -> dict[str, Any]:
    """Rows of parquet files (schema `CORPUS`) that mention at least one of the entities in `leaks`.

    Returns:
        {"captions": {benchmark: rows}, "leaked": rows that mention one of any benchmark}. Memory is bounded by a row group.
    """
    captions, any_of_them = dict.fromkeys(sorted(leaks), 0), 0
    for path in sorted(kept) if leaks else ():
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["entities"]):
                counted = _rows_that_mention(batch.column(0), [*(leaks[name] for name in captions), _all_of(leaks)])
                captions = {name: captions[name] + rows for name, rows in zip(captions, counted[:-1], strict=True)}
                any_of_them += counted[-1]
    return {"captions": captions, "leaked": any_of_them}


def _all_of(leaks: Mapping[str, frozenset[str]]) -> frozenset[str]:
    return frozenset[str]().union(*leaks.values())


def _rows_that_mention(entities: pa.ListArray, wanted: Sequence[frozenset[str]]) -> list[int]:
    """For each set of names the rows in which one of them stands: rows, not mentions."""
    mentions = pc.list_flatten(entities).dictionary_encode()
    row_of = pc.list_parent_indices(entities).to_numpy()
    codes, names = mentions.indices.to_numpy(), mentions.dictionary.to_pylist()
    inside = [np.array([name in some for name in names], bool) for some in wanted]
    return [len(np.unique(row_of[mask[codes]])) if len(codes) else 0 for mask in inside]


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
