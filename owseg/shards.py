"""WebDataset tars as random access to their samples: images, captions, and what `key.json` says of them.

A tar stores its members uncompressed, so an index of offsets gives random access with no unpacking.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from owseg import InputError
from owseg.left_out import MAX_SHARE, most
from owseg.samples import Place, Samples, Wanted
from storage.indexes import indexes_of
from storage.tar_reads import LocalTars, OpenTar, OpenTars
from storage.tar_samples import parsed, refuse_fewer, told_by

NEAR = 1 << 16
"""Files of a sample that are fewer bytes apart are read at once, with what lies between them."""


class Sample(NamedTuple):
    """What a tar has of a sample."""

    image: bytes
    """As it is encoded."""
    captions: list[str]
    entities: list[list[str]]
    """Of each caption; none where they were not asked for."""


class ShardReader:
    """Random access to the samples of WebDataset tars (`key.jpg`, `key.txt`), ordered by tar name and position."""

    def __init__(
        self,
        shards: Sequence[Path],
        *,
        entities: bool = False,
        caption_field: str = "",
        max_bad_share: float = MAX_SHARE,
        forgotten: frozenset[str] = frozenset(),
        open_tars: OpenTars | None = None,
    ) -> None:
        """Read the tars' indexes, made where there are none, with what `key.json` has as "entities" where asked for.

        Samples whose keys are among those `forgotten` are as if they were not there.

        Raises InputError where a tar is unreadable, cut, or holds fewer samples than its record says, where there is no sample
        at all, or where more than `max_bad_share` of them lack an image, a caption or that list.
        """
        self.shards = sorted(shards)
        self.indexes = indexes_of(self.shards)
        for index in self.indexes:
            refuse_fewer(index.tar, index.header.samples)
        self.with_entities, self.caption_field, self.max_bad_share = entities, caption_field, max_bad_share
        wanted = Wanted(entities=entities, caption_field=caption_field, max_bad_share=max_bad_share, forgotten=forgotten)
        self.samples = Samples(self.indexes, wanted)
        self.entities, self.bad, self.total = self.samples.entities, self.samples.bad, self.samples.total
        self._open = open_tars or LocalTars()
        if not len(self.samples):
            raise InputError("no training samples: the shards hold no image with a caption; check the download stage")

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def most_bad(self) -> int:
        """How many of them may be left out."""
        return most(self.total, self.max_bad_share)

    def expect(self, indices: Sequence[int]) -> None:
        """These samples are read next, by this process."""
        if not self._open.far:
            return
        ranges = []
        for index in indices:
            shard, *places = self.samples.place(index)
            start, stop = _extent(places)
            ranges.append((self.indexes[shard], start, stop - start))
        self._open.expect(ranges)

    def prefetch(self, indices: np.ndarray) -> None:
        """These samples are read from now on, in this order."""
        if not self._open.far:
            return
        tars, first = np.unique(self.samples.tars[indices], return_index=True)
        self._open.prefetch([self.indexes[number] for number in tars[np.argsort(first)].tolist()])

    def read(self, index: int, *, pixels: bool = True) -> Sample:
        """What the tar has of a sample; without `pixels` no byte of its image.

        Raises InputError where the tar is not there any more as it was indexed, ValueError where the caption is no text.
        """
        shard, image, caption, about = self.samples.place(index)
        image = image if pixels else (0, 0)
        with self._open(self.indexes[shard]) as tar:
            encoded, text, told = _read(tar, (image, caption, about))
        if (len(encoded), len(text), len(told)) != (image[1], caption[1], about[1]):
            raise InputError(f"{self.shards[shard]}: has been changed while it was trained on; start again")
        if about[1]:
            says = told_by(told)
            if says.captions and (says.lists or not self.with_entities):
                return Sample(encoded, says.captions, says.lists if self.with_entities else [[] for _ in says.captions])
            if not caption[0]:
                text = _field(told, self.caption_field)
        try:
            shown = text.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError("has a caption that is not UTF-8") from None
        if not shown.strip(" \t\r\n\0"):
            raise ValueError("has an empty caption")
        numbers = self.entities.of(index) if self.with_entities else []
        return Sample(encoded, [shown], [[self.entities.names[number] for number in numbers]])


def _extent(places: Sequence[Place]) -> tuple[int, int]:
    """Where the first of some files begins and the last one ends."""
    some = [place for place in places if place[1]]
    return min(at for at, _ in some), max(at + size for at, size in some)


def _read(tar: OpenTar, places: Sequence[Place]) -> list[bytes]:
    """The files at some places: those near each other by one request."""
    start, stop = _extent(places)
    some = [place for place in places if place[1]]
    if stop - start - sum(size for _, size in some) > NEAR:
        return [tar.read(at, size) if size else b"" for at, size in places]
    found = tar.read(start, stop - start)
    return [found[at - start : at - start + size] if size else b"" for at, size in places]


def _field(about: bytes, name: str) -> bytes:
    """The caption that a sample's JSON has in a field."""
    caption = parsed(about).get(name)
    if not isinstance(caption, str):
        raise ValueError(f"has neither a .txt nor a text in the field {name!r} of its JSON")
    return caption.encode(errors="replace")
