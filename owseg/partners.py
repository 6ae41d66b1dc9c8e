"""Images that share an entity: what OVSegmentor's mask consistency compares an image with."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from storage.node_arrays import Allocate, node_arrays

_CHUNK = 1 << 18


@dataclass(frozen=True)
class EntityLists:
    """A list of names for each sample, in flat arrays: 8 bytes for a sample and 4 for each of its names."""

    names: list[str]
    """The name of each number, in the order in which samples name them."""
    flat: np.ndarray
    """int32: sample i has the names flat[ends[i]:ends[i + 1]], each once."""
    ends: np.ndarray
    """int64 [samples + 1]."""
    key: str = ""
    """What all of that depends on."""

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each name."""
        return {name: number for number, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.ends) - 1

    def of(self, sample: int) -> list[int]:
        """Numbers of a sample's names."""
        found: list[int] = self.flat[self.ends[sample] : self.ends[sample + 1]].tolist()
        return found


class Partners:
    """Draws samples that share an entity with a given one; some 4 bytes for each entity of each sample, besides the lists."""

    def __init__(self, lists: EntityLists) -> None:
        self.lists, self.names = lists, lists.names
        arrays = node_arrays(f"partners {lists.key}", len(lists.flat), self._make)
        self.samples, self.starts = arrays["samples"], arrays["starts"]
        """Entity e is named by the samples [starts[e]:starts[e + 1]], in ascending order."""

    def _make(self, allocate: Allocate) -> None:
        """Sort samples by entity: count first, then put those of some samples at a time behind those before them."""
        flat, ends = self.lists.flat, self.lists.ends
        starts = allocate("starts", np.int64, len(self.names) + 1)
        for first in range(0, len(flat), _CHUNK):
            starts[1:] += np.bincount(flat[first : first + _CHUNK], minlength=len(self.names))
        np.cumsum(starts, out=starts)
        samples, next_of = allocate("samples", np.int32, len(flat)), starts[:-1].copy()
        for first in range(0, len(self.lists), _CHUNK):
            some = ends[first : first + _CHUNK + 1]
            entities = flat[some[0] : some[-1]]
            order = np.argsort(entities, kind="stable")
            of = np.repeat(np.arange(first, first + len(some) - 1, dtype=np.int32), np.diff(some))
            named, begins, counts = np.unique(entities[order], return_index=True, return_counts=True)
            places = np.arange(len(order)) + np.repeat(next_of[named] - begins, counts)
            samples[places] = of[order]
            next_of[named] += counts

    def draw(self, sample: int, rng: np.random.Generator, own: Sequence[int] | None = None) -> tuple[int, str]:
        """Another sample, and an entity that both name; `own` are the sample's entities that count, by default all.

        Uniform over those entities that another one names too, then uniform over those others. A sample that is alone
        with all of them is its own partner; if it has none, the entity is "".
        """
        own = self.lists.of(sample) if own is None else own
        shared = [entity for entity in own if self.starts[entity + 1] - self.starts[entity] > 1]
        if not shared:
            return sample, self.names[rng.choice(own)] if own else ""
        entity = rng.choice(shared)
        others = self.samples[self.starts[entity] : self.starts[entity + 1]]
        drawn = rng.integers(len(others) - 1)  # the sample itself is left out
        return int(others[drawn + (drawn >= np.searchsorted(others, sample))]), self.names[entity]
