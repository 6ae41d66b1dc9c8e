"""Balancing: captions that mention only very frequent entities are thinned out, as MetaCLIP does; the tail stays whole.

An entity with more captions than `per_entity` keeps each of them with probability p = per_entity / count; a caption stays if
one of its entities keeps it. The draws are hashes of seed, key and entity: the same in any order and on any machine, and a
caption that stays for one value of `per_entity` stays for every larger one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from filtering import InputError

Words64 = np.ndarray[Any, np.dtype[np.uint64]]


@dataclass(frozen=True, kw_only=True)
class Balance:
    """How far frequent entities are thinned out."""

    name: ClassVar[str] = "balanced"
    per_entity: int = 20_000
    """Captions that an entity keeps about (MetaCLIP's t, 20,000 there); entities with fewer keep all."""
    seed: int = 0
    """Another seed keeps other captions."""

    def __post_init__(self) -> None:
        if self.per_entity < 1:
            raise InputError(f"per_entity: must be at least 1, not {self.per_entity}")

    def rule(self, counts: Mapping[str, int]) -> "Balanced":
        """The rule for a corpus in which `counts[entity]` captions mention an entity."""
        return Balanced(balance=self, counts=counts)


@dataclass(frozen=True, kw_only=True)
class Balanced:
    """Refuses captions at random that mention very frequent entities alone. Reads the columns key and entities."""

    balance: Balance
    counts: Mapping[str, int] = field(repr=False)
    name: ClassVar[str] = Balance.name

    def __call__(self, table: pa.Table) -> pa.BooleanArray:
        column = table["entities"].combine_chunks()
        rows = pc.list_parent_indices(column).to_numpy()
        coded = pc.list_flatten(column).dictionary_encode()
        entities = coded.dictionary.to_pylist()
        chance = np.array([self.balance.per_entity / max(1, self.counts.get(entity, 0)) for entity in entities], np.float64)
        entity = _hashes([f"{self.balance.seed}\0{entity}" for entity in entities])
        key = _hashes(table["key"].to_pylist())
        of_mention = coded.indices.to_numpy()
        stays = _draws(key[rows] ^ entity[of_mention]) < chance[of_mention]
        keep = np.zeros(table.num_rows, bool)
        keep[rows[stays]] = True
        return pa.array(keep)


def _hashes(texts: list[str]) -> Words64:
    """64 independent-looking bits of each text."""
    return np.frombuffer(b"".join(blake2b(text.encode(), digest_size=8).digest() for text in texts), "<u8")


def _draws(bits: Words64) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Numbers in [0, 1): splitmix64's finaliser, so that the draws of one caption for its entities are independent."""
    for shift, multiplier in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(multiplier)
    return ((bits ^ (bits >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53
