"""Lookalikes against the plain comparison of all pairs, on random hashes and on planted ones."""

import numpy as np
import pytest

from filtering.reports.lookalikes import Hashes, Lookalikes, tally


def by_hand(hashes: list[int], distance: int) -> tuple[int, list[int]]:
    """Images that look like an earlier one, and the sizes of the groups in falling order: all pairs, one by one."""
    groups: list[list[int]] = []
    near = 0
    for value in hashes:
        touched = [group for group in groups if any((value ^ other).bit_count() <= distance for other in group)]
        near += bool(touched)
        groups = [group for group in groups if group not in touched] + [[value, *(one for group in touched for one in group)]]
    return near, sorted((len(group) for group in groups if len(group) > 1), reverse=True)


def planted(seed: int) -> list[int]:
    """Strangers, families that stray from each other bit by bit, copies, and blank images, in random order."""
    random = np.random.default_rng(seed)
    hashes = [int(value) for value in random.integers(0, 2**64 - 1, 300, dtype=np.uint64)]
    for _ in range(20):
        value = int(random.integers(0, 2**64 - 1, dtype=np.uint64))
        for _ in range(int(random.integers(1, 8))):
            for bit in random.choice(64, int(random.integers(0, 6)), replace=False).tolist():
                value ^= 1 << bit
            hashes.append(value)
    hashes += [0] * 40 + [2**64 - 1] * 3 + [1, 2**63, 0b1110000]
    random.shuffle(hashes)
    return hashes


@pytest.mark.parametrize("distance", [0, 1, 3, 6])
@pytest.mark.parametrize("seed", range(3))
def test_as_many_as_by_hand(seed: int, distance: int) -> None:
    hashes = planted(seed)
    found = tally(np.array(hashes, np.uint64), distance)
    near, sizes = by_hand(hashes, distance)
    assert found.near_duplicates == near
    assert found.groups == len(sizes)
    assert [size for size, _ in found.largest] == sizes[:10]
    assert found.images == len(hashes)


def test_crowded_hashes_as_by_hand() -> None:
    """Hashes that differ in their last 14 bits alone: every pair has most blocks in common, and groups chain far."""
    hashes = [int(value) | 0xABCD << 40 for value in np.random.default_rng(0).integers(0, 2**14, 600)]
    found = tally(np.array(hashes, np.uint64), 2)
    near, sizes = by_hand(hashes, 2)
    assert (found.near_duplicates, found.groups) == (near, len(sizes))
    assert [size for size, _ in found.largest] == sizes[:10]


@pytest.mark.parametrize("bit", range(64))
def test_no_place_of_a_difference_is_missed(bit: int) -> None:
    """Two hashes that differ in three bits, wherever these lie, look alike; with a fourth they do not."""
    value = 0x0123456789ABCDEF
    three = value ^ (1 << bit) ^ (1 << (bit + 21) % 64) ^ (1 << (bit + 43) % 64)
    four = three ^ (1 << (bit + 1) % 64)
    assert tally(np.array([value, three], np.uint64)).near_duplicates == 1
    assert tally(np.array([value, four], np.uint64)).near_duplicates == 0


def test_a_chain_is_one_group_and_its_first_image_its_example() -> None:
    chain = [0b111111, 0b111, 0, 0b111111111]
    found = tally(np.array([2**63 - 1, *chain, 2**63 - 1], np.uint64))
    assert found == Lookalikes(images=6, near_duplicates=4, groups=2, largest=((4, 0b111111), (2, 2**63 - 1)))


@pytest.mark.parametrize("hashes", [[], [7]])
def test_too_few_to_look_alike(hashes: list[int]) -> None:
    values: Hashes = np.array(hashes, np.uint64)
    assert tally(values) == Lookalikes(images=len(hashes), near_duplicates=0, groups=0, largest=())


def test_a_million_blank_images_are_one_group() -> None:
    others = np.array([0b1, 0b11, 2**63, 0b11110000], np.uint64)  # a bit away, a bit further, a bit away, a stranger
    found = tally(np.concatenate([np.zeros(10**6, np.uint64), others]), 1)
    assert (found.near_duplicates, found.groups, found.largest) == (10**6 - 1 + 3, 1, ((10**6 + 3, 0),))
