"""Near-duplicate captions: MinHash finds rows that may be alike, the sets of their words prove it.

A caption is the set of its shingles (its words; or runs of `ngram` words, which heed their order). Two captions are near
duplicates if the Jaccard similarity of their sets, shared shingles by all shingles, reaches the threshold.

    sign     every caption gets a MinHash signature, cut into bands; captions that agree in a band may be alike. Beside each
             band goes the set itself: of a caption it is smaller than a signature, and exact.
    confirm  each row is compared with those of smaller key in its bands; what is similar to one of them is dropped.

Both see one part of the corpus at a time and depend on no order: whatever part the rows of a band meet in, the answer is the
same.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasketch import MinHash
from datasketch.hashfunc import sha1_hash32

from filtering import InputError
from filtering.captions.words import normalised_of

Hashes = np.ndarray[Any, np.dtype[np.uint32]]

SIGNED = pa.schema([("band", pa.int64()), ("key", pa.string()), ("shingles", pa.binary()), ("home", pa.int32())])
"""A row per caption and band: captions of equal `band` may be alike. `shingles`: the sorted 32-bit hashes of the set;
`home`: the shard of the corpus that the caption is in."""
REPEATED = pa.schema([("key", pa.string()), ("home", pa.int32())])
"""Rows to drop."""

RECALL = 0.95
"""Share of the pairs at the very threshold that must meet in a band; of more similar pairs more do."""

COMPARED = 64
"""Rows of a band, the ones with the smallest keys, that the others are compared with: work stays linear in a crowd."""

LARGEST_SET = 256
"""Shingles of a caption that are compared (those with the smallest hashes); few captions have more."""

BATCH_ROWS = 1 << 14
"""Captions that are signed together: memory stays flat."""


@dataclass(frozen=True, kw_only=True)
class NearDuplicates:
    """Which captions count as near duplicates, and how they are found."""

    threshold: float = 0.8
    """Smallest Jaccard similarity of two captions' words that makes them near duplicates (above 0, up to 1)."""
    permutations: int = 40
    """Length of the MinHash signatures: more find more of the pairs and cost time and disk (8 to 256)."""
    ngram: int = 1
    """Words per shingle: 1 compares the words whatever their order; 2 or 3 heed the order and find fewer pairs."""
    seed: int = 1
    """Seed of the MinHash permutations."""

    def __post_init__(self) -> None:
        for key, right, rule in (
            ("threshold", 0 < self.threshold <= 1, "must lie above 0 and be at most 1"),
            ("permutations", 8 <= self.permutations <= 256, "must lie between 8 and 256"),
            ("ngram", 1 <= self.ngram <= 5, "must lie between 1 and 5"),
            ("seed", 0 <= self.seed < 1 << 32, "must lie between 0 and 2^32 - 1"),
        ):
            if not right:
                raise InputError(f"{key}: {rule}, not {getattr(self, key)}")

    @cached_property
    def rows(self) -> int:
        """Hash values per band: as many as find `RECALL` of the pairs at the threshold.

        A pair of similarity s agrees in one value with probability s, in a band of r values with s^r, and in one of b bands at
        least with 1 - (1 - s^r)^b. Longer bands mean fewer bands to write and fewer rows in them that are not alike.
        """
        long_enough = [
            rows
            for rows in range(1, self.permutations + 1)
            if 1 - (1 - self.threshold**rows) ** (self.permutations // rows) >= RECALL
        ]
        return max(long_enough, default=1)

    @cached_property
    def bands(self) -> int:
        """Bands per signature."""
        return self.permutations // self.rows


def signatures(captions: pa.ChunkedArray | pa.Array, config: NearDuplicates) -> Hashes:
    """The MinHash values of captions, uint32 [captions, permutations]: those of datasketch's `MinHash` over the shingles."""
    return _signatures(*_shingles(captions, config.ngram), config)


def bands(signatures: Hashes, config: NearDuplicates) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The bands of signatures, int64 [captions, bands]: each a hash of its values and of its number."""
    values = signatures[:, : config.bands * config.rows].reshape(-1, config.bands, config.rows).astype(np.uint64)
    hashed = np.broadcast_to(np.arange(config.bands, dtype=np.uint64), values.shape[:2])
    for row in range(config.rows):
        hashed = _mixed64(hashed) ^ values[:, :, row]
    return _mixed64(hashed).view(np.int64)


def sign(table: pa.Table, config: NearDuplicates, home: int = 0) -> pa.Table:
    """The bands of all captions of `table` (columns key and caption), shard `home`, as a table of schema `SIGNED`."""
    parts = [_sign(table.slice(start, BATCH_ROWS), config, home) for start in range(0, table.num_rows, BATCH_ROWS)]
    return pa.concat_tables([SIGNED.empty_table(), *parts])


def _sign(table: pa.Table, config: NearDuplicates, home: int) -> pa.Table:
    hashes, ends = _shingles(table["caption"], config.ngram)
    offsets = np.concatenate([[0], ends]).astype(np.int32) * np.int32(hashes.itemsize)
    sets = pa.Array.from_buffers(pa.binary(), len(ends), [None, pa.py_buffer(offsets), pa.py_buffer(hashes)])
    rows = pa.array(np.repeat(np.arange(len(ends)), config.bands))
    band = bands(_signatures(hashes, ends, config), config).ravel()
    homes = pa.array(np.full(len(band), home, np.int32))
    return pa.table([band, table["key"].take(rows), sets.take(rows), homes], schema=SIGNED)


def confirm(table: pa.Table, config: NearDuplicates) -> pa.Table:
    """The rows to drop (schema `REPEATED`), sorted by key.

    Judges by rows of schema `SIGNED` in any order; rows of equal band must be together.
    A row is dropped if one with a smaller key in the same band is similar, dropped itself or not. Of each band the `COMPARED`
    smallest keys are compared with.
    """
    _, band, rows = np.unique(table["band"].to_numpy(), return_inverse=True, return_counts=True)
    company = table.filter(pa.array(rows[band] > 1)).sort_by([("band", "ascending"), ("key", "ascending")])
    dropped: dict[str, int] = {}
    columns = (company[name].to_pylist() for name in SIGNED.names)
    for _, group in groupby(zip(*columns, strict=True), key=lambda row: row[0]):
        smaller: dict[str, frozenset[int]] = {}
        for _, key, packed, home in group:
            shingles = frozenset(memoryview(packed).cast("I"))
            asked = key not in dropped and key not in smaller
            if asked and any(_similar(shingles, other, config.threshold) for other in smaller.values()):
                dropped[key] = home
            if len(smaller) < COMPARED:
                smaller[key] = shingles
    keys = sorted(dropped)
    return pa.table([keys, [dropped[key] for key in keys]], schema=REPEATED)


@dataclass(frozen=True)
class NearDuplicate:
    """Refuses captions that say nearly the same as another kept one."""

    dropped: pa.Array
    """Keys."""
    name: ClassVar[str] = "near_duplicate"

    def __call__(self, table: pa.Table) -> pa.BooleanArray:
        return pc.invert(pc.is_in(table["key"], value_set=self.dropped))


def _similar(one: frozenset[int], other: frozenset[int], threshold: float) -> bool:
    """Whether the Jaccard similarity reaches `threshold`. Sets of very different sizes need no comparison."""
    if min(len(one), len(other)) / max(len(one), len(other)) < threshold:
        return False
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared) >= threshold


def _shingles(captions: pa.ChunkedArray | pa.Array, ngram: int) -> tuple[Hashes, np.ndarray[Any, np.dtype[np.int64]]]:
    """The sets of captions one after another, each sorted and at most `LARGEST_SET` long, and where each set ends."""
    found = pc.split_pattern(normalised_of(captions), " ")
    if ngram > 1:
        found = pa.array([_runs(one, ngram) for one in found.to_pylist()], found.type)
    coded = found.flatten().dictionary_encode()
    hashes = np.array([sha1_hash32(shingle.encode()) for shingle in coded.dictionary.to_pylist()], np.uint64)
    rows = np.repeat(np.arange(len(found), dtype=np.uint64), pc.list_value_length(found).to_numpy())
    pairs = np.sort(rows << np.uint64(32) | hashes[coded.indices.to_numpy()])  # by row, then by hash
    pairs = pairs[np.concatenate([[True], pairs[1:] != pairs[:-1]])]
    ends = np.searchsorted(pairs, np.arange(1, len(found) + 1, dtype=np.uint64) << np.uint64(32))
    lengths = np.diff(ends, prepend=0)
    pairs = pairs[np.arange(len(pairs)) - np.repeat(ends - lengths, lengths) < LARGEST_SET]
    return pairs.astype(np.uint32), np.cumsum(np.minimum(lengths, LARGEST_SET))


def _runs(found: list[str], ngram: int) -> list[str]:
    """All runs of `ngram` words; a shorter caption is one run."""
    return [" ".join(found[at : at + ngram]) for at in range(max(1, len(found) - ngram + 1))]


def _signatures(hashes: Hashes, ends: np.ndarray[Any, np.dtype[np.int64]], config: NearDuplicates) -> Hashes:
    """As `MinHash.update_batch` does for one set, for all sets at once: one permutation after another, least value per set."""
    multipliers, addends = MinHash(num_perm=config.permutations, seed=config.seed).permutations
    mixed = _mixed32(hashes)
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    values = np.empty((len(ends), config.permutations), np.uint32)
    for number, (multiplier, addend) in enumerate(zip(multipliers, addends, strict=True)):
        values[:, number] = np.minimum.reduceat(mixed * multiplier + addend, starts)
    return values


def _mixed32(values: Hashes) -> Hashes:
    """The finaliser of MurmurHash3 for 32 bits, which datasketch applies to a hash before it permutes it."""
    for shift, multiplier in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        values = (values ^ (values >> np.uint32(shift))) * np.uint32(multiplier)
    return values ^ (values >> np.uint32(16))


def _mixed64(values: np.ndarray[Any, np.dtype[np.uint64]]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """The finaliser of MurmurHash3 for 64 bits."""
    for shift, multiplier in ((33, 0xFF51AFD7ED558CCD), (33, 0xC4CEB9FE1A85EC53)):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(multiplier)
    return values ^ (values >> np.uint64(33))
