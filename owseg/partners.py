"""Images that share an entity: what OVSegmentor's mask consistency compares an image with."""

from array import array
from collections.abc import Sequence

import numpy as np


class EntityLists:
    """A list of names for each sample, in flat arrays: 8 bytes for a sample and 4 for each of its names."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        """Number of each name, from 0 in the order of appearance."""
        self.flat, self.ends = array("i"), array("q", [0])
        """Sample i has the names flat[ends[i]:ends[i + 1]]."""

    def append(self, names: Sequence[str]) -> None:
        """The next sample's list; a repeated name counts once."""
        self.flat.extend(self.numbers.setdefault(name, len(self.numbers)) for name in dict.fromkeys(names))
        self.ends.append(len(self.flat))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def of(self, sample: int) -> list[int]:
        """Numbers of a sample's names."""
        return self.flat[self.ends[sample] : self.ends[sample + 1]].tolist()


class Partners:
    """Draws samples that share an entity with a given one; some 4 bytes for each entity of each sample, besides the lists."""

    def __init__(self, lists: EntityLists) -> None:
        self.lists, self.names = lists, list(lists.numbers)
        flat = np.asarray(lists.flat)
        samples = np.repeat(np.arange(len(lists), dtype=np.int32), np.diff(lists.ends))
        self.samples = samples[np.argsort(flat, kind="stable")]
        self.starts = np.concatenate([[0], np.bincount(flat, minlength=len(self.names)).cumsum()])
        """Entity e is named by the samples [starts[e]:starts[e + 1]], in ascending order."""

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
