"""The usable samples of many tars, as flat arrays that all processes of a machine share."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise

import numpy as np

from owseg.left_out import MAX_SHARE, NAMED, BadSample, most, refuse_more
from owseg.partners import EntityLists
from storage.indexes import IndexFile, read
from storage.node_arrays import Allocate, node_arrays
from storage.tar_index import LISTED, SEVERAL, SEVERAL_LISTED, TOO_LARGE, TarIndex
from storage.tars import BLOCK

Place = tuple[int, int]
"""Offset and size of a file in its tar."""

_RAW, _ANY = "surrogateescape", "surrogatepass"
_FORGOTTEN, _USABLE, _LARGE, _NO_IMAGE, _EMPTY_IMAGE, _NO_CAPTION, _EMPTY_CAPTION, _NO_ENTITIES, _NO_TEXT = range(-1, 8)
_REASONS = (
    "",
    "has a file of 4 GiB or more",
    "has no image",
    "has an empty image",
    "has no caption",
    "has an empty caption",
    "carries no list of entities; curate the corpus (pipelines/filter.py) first",
    "has no .txt; if a field of its JSON is the caption, name that (train.caption_field)",
)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a reader asks of samples."""

    entities: bool = False
    """Each must have a list of entities."""
    caption_field: str = ""
    """Where a sample has no `key.txt`, this field of its JSON is the caption; "" = it has none."""
    max_bad_share: float = MAX_SHARE
    """Largest share of samples, 0..1, that may be unusable; 3 always may."""
    forgotten: frozenset[str] = frozenset()
    """Keys of samples that are left out since somebody asked for it: they are not bad."""

    @property
    def identity(self) -> str:
        """What tells apart what different wishes make of the same samples."""
        told = f"{self.entities} {self.caption_field!r}"
        return f"{told} without {sha256(repr(sorted(self.forgotten)).encode()).hexdigest()}" if self.forgotten else told


class Samples:
    """Key and place of each usable sample, in the order of the tars: some 36 bytes and the key's own."""

    def __init__(self, indexes: Sequence[IndexFile], wanted: Wanted) -> None:
        """Put the indexes behind each other. Raises InputError where more samples are bad than may be."""
        self._indexes, self._wanted = indexes, wanted
        self.total = sum(index.header.samples for index in indexes)
        """The samples in the tars, bad and forgotten ones among them."""
        digests = b"".join(index.header.digest for index in indexes)
        key = f"samples 1 {wanted.identity} {sha256(digests).hexdigest()}"
        arrays = node_arrays(key, self.total, self._merge)
        number, entities = arrays["counts"].tolist()
        self.keys, self.key_ends = arrays["keys"], arrays["key_ends"][: number + 1]
        """Sample i has the key keys[key_ends[i]:key_ends[i + 1]]."""
        self.tars, self.places = arrays["tars"][:number], arrays["places"][: 6 * number]
        """int32 [samples], and uint32 [6 * samples]: block and bytes of image, caption and JSON; 0, 0 for what is not read."""
        names = list(_texts(arrays["names"], arrays["name_ends"], _ANY))
        self.entities = EntityLists(names, arrays["entities"][:entities], arrays["entity_ends"][: number + 1], key)
        """Each sample's entities, those of all its captions; none where they were not asked for."""
        self.bad = list(self._bad(arrays))
        """Samples that are left out of all that follows."""
        if self.bad:
            refuse_more(self.bad, self.total, wanted.max_bad_share)

    def __len__(self) -> int:
        return len(self.tars)

    def key(self, index: int) -> str:
        """A sample's key."""
        return self.keys[self.key_ends[index] : self.key_ends[index + 1]].tobytes().decode(errors=_RAW)

    def place(self, index: int) -> tuple[int, Place, Place, Place]:
        """Tar number, and where in it a sample's image, caption and JSON lie; (0, 0) for what is not read of them."""
        image, image_bytes, caption, caption_bytes, about, about_bytes = self.places[6 * index : 6 * index + 6].tolist()
        return (
            int(self.tars[index]),
            (BLOCK * image, image_bytes),
            (BLOCK * caption, caption_bytes),
            (BLOCK * about, about_bytes),
        )

    def _bad(self, arrays: dict[str, np.ndarray]) -> Iterator[BadSample]:
        keys = _texts(arrays["bad_keys"], arrays["bad_key_ends"], _RAW)
        for key, tar, reason in zip(keys, arrays["bad_tars"].tolist(), arrays["bad_reasons"].tolist(), strict=True):
            yield BadSample(str(self._indexes[tar].tar), key, _REASONS[reason])

    def _merge(self, allocate: Allocate) -> None:
        merged = _Merged(allocate, self._indexes, self._wanted)
        for number, file in enumerate(self._indexes):
            merged.add(number, read(file))
        merged.finish()


class _Merged:
    """Arrays that are filled tar by tar; those that bad samples have no part in end up longer than what is in them."""

    def __init__(self, allocate: Allocate, indexes: Sequence[IndexFile], wanted: Wanted) -> None:
        self._allocate, self._indexes, self._wanted = allocate, indexes, wanted
        headers = [index.header for index in indexes]
        self._total = sum(header.samples for header in headers)
        self._tars = allocate("tars", np.int32, self._total)
        self._places = allocate("places", np.uint32, 6 * self._total)
        self._keys = allocate("keys", np.uint8, sum(header.key_bytes for header in headers))
        self._key_ends = allocate("key_ends", np.int64, self._total + 1)
        self._entities = allocate("entities", np.int32, wanted.entities * sum(header.entities for header in headers))
        self._entity_ends = allocate("entity_ends", np.int64, wanted.entities * self._total + 1)
        self._numbers: dict[str, int] = {}
        self._number = 0
        self._bad: list[tuple[int, str, int]] = []
        self._number_bad = 0

    def add(self, number: int, index: TarIndex) -> None:
        """The next tar's samples."""
        reasons = _reasons(index.records, self._wanted)
        if self._wanted.forgotten:
            reasons[[index.key(at) in self._wanted.forgotten for at in range(len(reasons))]] = _FORGOTTEN
        usable = reasons == _USABLE
        first, self._number = self._number, self._number + int(usable.sum())
        self._tars[first : self._number] = number
        self._places[6 * first : 6 * self._number] = _places(index.records, self._wanted)[usable].ravel()
        keys = _chosen(np.frombuffer(index.keys, np.uint8), index.records["key_end"], usable)
        _append(self._keys, self._key_ends, first, *keys)
        if self._wanted.entities:
            flat, ends = _chosen(index.entities, index.records["entity_end"], usable)
            global_of = self._renumber(index, flat, all_usable=bool(usable.all()))
            _append(self._entities, self._entity_ends, first, global_of[flat], ends)
        self._keep_bad(number, index, reasons)

    def _renumber(self, index: TarIndex, flat: np.ndarray, *, all_usable: bool) -> np.ndarray:
        """The number among all entities of each of a tar's own; names are numbered as usable samples name them first."""
        names, numbers = index.names(), self._numbers
        if all_usable:
            named: Sequence[str] = names
        else:
            _, appeared = np.unique(flat, return_index=True)
            named = [names[local] for local in flat[np.sort(appeared)].tolist()]
        for name in [name for name in named if name not in numbers]:
            numbers[name] = len(numbers)
        return np.array([numbers.get(name, 0) for name in names], np.int32)

    def _keep_bad(self, number: int, index: TarIndex, reasons: np.ndarray) -> None:
        """Of more than may be, a few are enough: they are named before all are refused."""
        bad = np.flatnonzero(reasons > _USABLE).tolist()
        self._number_bad += len(bad)
        too_many = self._number_bad > most(self._total, self._wanted.max_bad_share)
        for at in bad[:NAMED] if too_many else bad:
            self._bad.append((number, index.key(at), int(reasons[at])))

    def finish(self) -> None:
        """Write what is known at the end. Raises InputError where more samples are bad than may be."""
        if self._number_bad > len(self._bad):
            named = [BadSample(str(self._indexes[tar].tar), key, _REASONS[reason]) for tar, key, reason in self._bad]
            refuse_more(named, self._total, self._wanted.max_bad_share, self._number_bad)
        self._allocate("counts", np.int64, 2)[:] = self._number, self._entity_ends[self._number * self._wanted.entities]
        self._allocate("bad_tars", np.int32, len(self._bad))[:] = [tar for tar, _, _ in self._bad]
        self._allocate("bad_reasons", np.int32, len(self._bad))[:] = [reason for _, _, reason in self._bad]
        self._write_texts("bad_key", [key.encode(errors=_RAW) for _, key, _ in self._bad])
        self._write_texts("name", [name.encode(errors=_ANY) for name in self._numbers])

    def _write_texts(self, name: str, texts: Sequence[bytes]) -> None:
        self._allocate(f"{name}s", np.uint8, sum(map(len, texts)))[:] = np.frombuffer(b"".join(texts), np.uint8)
        self._allocate(f"{name}_ends", np.int64, len(texts) + 1)[1:] = np.cumsum([len(text) for text in texts], dtype=np.int64)


def _reasons(records: np.ndarray, wanted: Wanted) -> np.ndarray:
    """Number in _REASONS of why each sample cannot be used, as far as the index can tell; 0 where it can."""
    found = np.zeros(len(records), np.int8)
    if wanted.entities:
        found[records["flags"] & LISTED == 0] = _NO_ENTITIES
    if wanted.caption_field:
        by_field = (records["caption"] == 0) & (records["about_bytes"] > 0)
    else:
        by_field = np.zeros(len(records), bool)
    found[~by_field & (records["caption_bytes"] == 0)] = _EMPTY_CAPTION
    found[~by_field & (records["caption"] == 0)] = _NO_CAPTION
    if not wanted.caption_field:
        found[(records["caption"] == 0) & (records["about_bytes"] > 0)] = _NO_TEXT
    found[records["image_bytes"] == 0] = _EMPTY_IMAGE
    found[records["image"] == 0] = _NO_IMAGE
    found[np.max([records[f"{file}_bytes"] for file in ("image", "caption", "about")], axis=0) == TOO_LARGE] = _LARGE
    return found


def _places(records: np.ndarray, wanted: Wanted) -> np.ndarray:
    """uint32 [samples, 6]: block and bytes of image, caption and JSON; of the JSON only where a caption is read from it."""
    names = ("image", "image_bytes", "caption", "caption_bytes", "about", "about_bytes")
    found = np.stack([records[name] for name in names], axis=1)
    read = records["flags"] & (SEVERAL_LISTED if wanted.entities else SEVERAL) > 0
    if wanted.caption_field:
        read |= records["caption"] == 0
    found[~read, 4:] = 0
    return found


def _chosen(flat: np.ndarray, ends: np.ndarray, usable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The parts of usable samples in a flat array, one behind the other, and their ends."""
    lengths: np.ndarray = np.diff(ends.astype(np.int64), prepend=0)
    if not usable.all():
        flat = flat[np.repeat(usable, lengths)]
    return flat, lengths[usable].cumsum()


def _append(flat: np.ndarray, ends: np.ndarray, first: int, more: np.ndarray, more_ends: np.ndarray) -> None:
    """Put the parts of some samples behind those of the `first` before them."""
    at = int(ends[first])
    flat[at : at + len(more)] = more
    ends[first + 1 : first + 1 + len(more_ends)] = at + more_ends


def _texts(flat: np.ndarray, ends: np.ndarray, errors: str) -> Iterator[str]:
    """Texts that lie one behind the other."""
    joined, stops = flat.tobytes(), ends.tolist()
    for start, stop in pairwise(stops):
        yield joined[start:stop].decode(errors=errors)
