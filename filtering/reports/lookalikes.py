"""Images that look alike, found by their perceptual hashes: how many there are, and in how many groups.

Two images look alike if their 64-bit hashes differ in at most d bits. Such hashes, cut into d + 2 blocks, agree in at least two
of them, so only hashes that agree in some two blocks are compared (after Manku, Jain and Das Sarma, "Detecting near-duplicates
for web crawling", WWW 2007). Two blocks rather than one keep what is compared short where many hashes have a block in common.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]

DISTANCE = 3
LARGEST = 10
_BITS = 64
_AT_ONCE = 2**18


@dataclass(frozen=True, kw_only=True)
class Lookalikes:
    """`near_duplicates` images look like an earlier one; `groups` of two or more images are held together by looking alike.

    `largest`: (images, hash of the group's first image) of the largest groups.
    """

    images: int
    near_duplicates: int
    groups: int
    largest: tuple[tuple[int, int], ...]


def tally(hashes: Hashes, distance: int = DISTANCE) -> Lookalikes:
    """Count the lookalikes among the images whose `hashes` (n,) stand in the order in which images count as earlier.

    Exact for any `distance` from 0 to 30 bits, small ones are fast. Takes about 100 bytes of memory per image.
    """
    values, first, images = np.unique(hashes, return_index=True, return_counts=True)  # blank images are one value
    group_of = np.arange(len(values))
    repeats = np.zeros(len(values), bool)
    for one, other in _in_bulk(_alike(values, distance)):
        repeats[np.where(first[one] < first[other], other, one)] = True
        group_of = _join(group_of, one, other)
    sizes = np.bincount(group_of, weights=images, minlength=len(values)).astype(np.int64)
    earliest = np.full(len(values), len(hashes))
    np.minimum.at(earliest, group_of, first)
    largest = np.lexsort((earliest, -sizes))[:LARGEST]
    return Lookalikes(
        images=len(hashes),
        near_duplicates=int(len(hashes) - len(values) + repeats.sum()),
        groups=int((sizes > 1).sum()),
        largest=tuple((int(sizes[at]), int(hashes[earliest[at]])) for at in largest if sizes[at] > 1),
    )


def _alike(values: Hashes, distance: int) -> Iterator[tuple[Indices, Indices]]:
    """Indices of pairs of the distinct `values` that differ in at most `distance` bits; a pair may come more than once."""
    edges = [round(_BITS * at / (distance + 2)) for at in range(distance + 3)]
    blocks = [(1 << end) - (1 << start) for start, end in pairwise(edges)]
    for one, other in combinations(blocks, 2):
        shared = values & np.uint64(one | other)
        order = np.argsort(shared)
        ends = _ends(shared[order])
        ordered = values[order]
        for start in range(0, len(values), _AT_ONCE):
            at = np.arange(start, min(start + _AT_ONCE, len(values)))
            step = 1
            while len(at := at[ends[at] > at + step]):  # each with the one `step` places behind it, while that agrees too
                alike = at[np.bitwise_count(ordered[at] ^ ordered[at + step]) <= distance]
                if len(alike):
                    yield order[alike], order[alike + step]
                step += 1


def _ends(ordered: Hashes) -> Indices:
    """For each place of a sorted array, the place behind the last one of the same value."""
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], [True] * bool(len(ordered)))) + 1
    return np.repeat(ends, np.diff(ends, prepend=0))


def _in_bulk(pairs: Iterator[tuple[Indices, Indices]]) -> Iterator[tuple[Indices, Indices]]:
    """The same pairs, a million or so at a time: joining groups has a price per call."""
    waiting: list[tuple[Indices, Indices]] = []
    number = 0
    for pair in pairs:
        waiting.append(pair)
        number += len(pair[0])
        if number >= 2**20:
            yield _joined(waiting)
            waiting, number = [], 0
    if waiting:
        yield _joined(waiting)


def _joined(pairs: list[tuple[Indices, Indices]]) -> tuple[Indices, Indices]:
    ones, others = zip(*pairs, strict=True)
    return np.concatenate(ones), np.concatenate(others)


def _join(group_of: Indices, one: Indices, other: Indices) -> Indices:
    """The groups, each named by its smallest member, once all pairs (one, other) are in the same group."""
    while True:
        low, high = np.minimum(group_of[one], group_of[other]), np.maximum(group_of[one], group_of[other])
        if np.array_equal(low, high):
            return group_of
        group_of = group_of.copy()
        np.minimum.at(group_of, high, low)
        while not np.array_equal(further := group_of[group_of], group_of):
            group_of = further
