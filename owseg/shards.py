"""WebDataset tars as random access to their samples: images, captions, and what `key.json` says of them.

A tar stores its members uncompressed, so an index of offsets gives random access with no unpacking.
"""

import json
import os
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from owseg import InputError
from owseg.left_out import MAX_SHARE, BadSample, most, refuse_more
from owseg.partners import EntityLists
from owseg.tars import DamagedTarError, members
from storage.copies import fetched, present

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
"""Of several images of a sample, the first of these counts."""
CAPTION, ABOUT = ".txt", ".json"
SIZES = "sizes.json"
"""What a folder of tars says of the samples in each."""
MARKERS = "_done"
"""The folder beside tars that this project's download wrote."""

Place = tuple[int, int]
"""Offset and size of a file in its tar."""


class Samples:
    """Key and place of each sample, in flat arrays: some 60 bytes a sample, which loader processes share.

    Python objects would take 400, and again in every loader process: a forked process copies what it counts references of.
    """

    def __init__(self) -> None:
        self.keys, self.ends = bytearray(), array("q", [0])
        """Sample i has the key keys[ends[i]:ends[i + 1]], in UTF-8."""
        self.places = array("q")
        """Tar number, and offset and size of image and caption: five numbers for each sample."""
        self.several, self.abouts = array("q"), array("q")
        """The samples with several captions, in ascending order, and offset and size of the JSON that has them."""

    def append(self, key: str, shard: int, image: Place, caption: Place, captions: Place | None = None) -> None:
        """The next sample; `captions` is where its JSON lies, if that has several."""
        if captions:
            self.several.append(len(self))
            self.abouts.extend(captions)
        self.keys += key.encode(errors="surrogateescape")
        self.ends.append(len(self.keys))
        self.places.extend((shard, *image, *caption))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def key(self, index: int) -> str:
        """A sample's key."""
        return self.keys[self.ends[index] : self.ends[index + 1]].decode(errors="surrogateescape")

    def place(self, index: int) -> tuple[int, Place, Place]:
        """Tar number, and where in it a sample's image and caption lie."""
        shard, *places = self.places[5 * index : 5 * (index + 1)]
        return shard, (places[0], places[1]), (places[2], places[3])

    def captions(self, index: int) -> Place | None:
        """Where the JSON of a sample with several captions lies; None for those that have one."""
        at = bisect_left(self.several, index)
        if at == len(self.several) or self.several[at] != index:
            return None
        return self.abouts[2 * at], self.abouts[2 * at + 1]


class Sample(NamedTuple):
    """What a tar has of a sample."""

    image: bytes
    """As it is encoded."""
    captions: list[str]
    entities: list[list[str]]
    """Of each caption; none where they were not asked for."""


class ShardReader:
    """Random access to the samples of WebDataset tars (`key.jpg`, `key.txt`), ordered by tar name and position."""

    def __init__(self, shards: Sequence[Path], *, entities: bool = False, max_bad_share: float = MAX_SHARE) -> None:
        """Index the tars, with what `key.json` has as "entities" where asked for.

        Raises InputError where a tar is unreadable, cut, or holds fewer samples than its record says, where there is no sample
        at all, or where more than `max_bad_share` of them lack an image, a caption or that list.
        """
        self.shards = sorted(shards)
        self.samples = Samples()
        self.with_entities, self.max_bad_share = entities, max_bad_share
        self.entities = EntityLists()
        """Each sample's entities, those of all its captions; empty where they were not asked for."""
        self.bad: list[BadSample] = []
        """Samples that are left out of all that follows."""
        for number, shard in enumerate(self.shards):
            self._index(number, fetched(shard))
        self.names = list(self.entities.numbers)
        if self.bad:
            refuse_more(self.bad, self.total, max_bad_share)
        if not len(self.samples):
            raise InputError("no training samples: the shards hold no image with a caption; check the download stage")

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def total(self) -> int:
        """The samples in the tars, bad ones among them."""
        return len(self.samples) + len(self.bad)

    @property
    def most_bad(self) -> int:
        """How many of them may be left out."""
        return most(self.total, self.max_bad_share)

    def read(self, index: int) -> Sample:
        """What the tar has of a sample.

        Raises InputError where the tar is not there any more as it was indexed, ValueError where the caption is no text.
        """
        shard, image, caption = self.samples.place(index)
        captions = self.samples.captions(index)
        path = self.shards[shard]
        try:
            with path.open("rb", buffering=0) as file:
                encoded, text = (os.pread(file.fileno(), size, at) for at, size in (image, caption))
                about = os.pread(file.fileno(), captions[1], captions[0]) if captions else b""
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); see to it, and start again to resume") from error
        if (len(encoded), len(text)) != (image[1], caption[1]):
            raise InputError(f"{path}: has been changed while it was trained on; start again")
        if about:
            return Sample(encoded, *_told(about, self.with_entities))
        try:
            told = text.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError("has a caption that is not UTF-8") from None
        if not told.strip(" \t\r\n\0"):
            raise ValueError("has an empty caption")
        numbers = self.entities.of(index) if self.with_entities else []
        return Sample(encoded, [told], [[self.names[number] for number in numbers]])

    def _index(self, number: int, shard: Path) -> None:
        groups = _groups(shard)
        found = [(key, files) for key, several in groups.items() for files in several if _is_sample(key, files, groups)]
        _refuse_fewer(shard, len(found))
        with ExitStack() as stack:
            file = stack.enter_context(shard.open("rb", buffering=0)).fileno() if found else -1
            for key, files in found:
                image = next((files[suffix] for suffix in IMAGE_SUFFIXES if suffix in files), None)
                about, caption = files.get(ABOUT), files.get(CAPTION)
                told = os.pread(file, about[1], about[0]) if about else b""
                several: list[str] = []
                entities: list[list[str]] = []
                if self.with_entities or b'"captions"' in told:
                    several, entities = _told(told, self.with_entities)
                if reason := _reason(image, caption, self.with_entities and not entities):
                    self.bad.append(BadSample(str(shard), key, reason))
                elif image and caption:
                    self.samples.append(key, number, image, caption, about if several else None)
                    if self.with_entities:
                        self.entities.append([name for names in entities for name in names])


def sample_of(name: str) -> tuple[str, str]:
    """The sample that a file in a tar belongs to, and what of it the file is: its suffix in lower case.

    The suffix of images, captions and JSON is what follows the last dot, as in "Track 2.0.jpg"; of other files, what follows
    the first. Hidden files, which systems leave, belong to none: "".
    """
    folder, slash, file = name.removeprefix("./").rpartition("/")
    if file.startswith(".") or not file:
        return "", ""
    stem, dot, suffix = file.rpartition(".")
    suffix = f".{suffix.lower()}"
    if not dot or suffix not in _SUFFIXES:
        stem, dot, suffix = file.partition(".")
        suffix = dot + suffix.lower()
    return f"{folder}{slash}{stem}", suffix


_SUFFIXES = frozenset((*IMAGE_SUFFIXES, CAPTION, ABOUT))
_Files = dict[str, Place]


def _groups(shard: Path) -> dict[str, list[_Files]]:
    """The files of each sample by suffix; a file that a sample has already begins another one of that name."""
    groups: dict[str, list[_Files]] = {}
    try:
        for name, offset, size in members(shard):
            sample, suffix = sample_of(name)
            if sample:
                same = groups.setdefault(sample, [{}])
                if suffix in same[-1]:
                    same.append({})
                same[-1][suffix] = (offset, size)
    except DamagedTarError as damage:
        found = sum(_is_sample(key, files, groups) for key, several in groups.items() for files in several)
        _refuse(shard, f"not a whole tar ({damage})", found)
    except OSError as error:
        raise InputError(f"{shard}: cannot be read ({error.strerror})") from error
    return groups


def _is_sample(key: str, files: _Files, groups: Mapping[str, object]) -> bool:
    """Whether files are a sample, if only half of one: "1.seg.png" is none beside "1.jpg", but a further file of that one."""
    image, caption = not files.keys().isdisjoint(IMAGE_SUFFIXES), CAPTION in files
    if image and caption:
        return True
    folder, slash, name = key.rpartition("/")
    first = f"{folder}{slash}{name.partition('.')[0]}"
    return (image or caption) and (first == key or first not in groups)


def _reason(image: Place | None, caption: Place | None, no_entities: bool) -> str:
    """Why a sample cannot be used, as far as the index can tell; empty where it can."""
    if not image or not image[1]:
        return "has an empty image" if image else "has no image"
    if not caption or not caption[1]:
        return "has an empty caption" if caption else "has no caption"
    return "carries no list of entities; curate the corpus (pipelines/filter.py) first" if no_entities else ""


def _told(about: bytes, with_entities: bool) -> tuple[list[str], list[list[str]]]:
    """The captions that a sample's JSON has, where they are several, and the entities of each (of its one, where it has one).

    There are no entities where they are not asked for, or are no lists of names.
    """
    try:
        found = json.loads(about)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        return [], []
    captions, lists, own = _names(found.get("captions")), found.get("caption_entities"), _names(found.get("entities"))
    if captions and len(captions) > 1 and all(caption.strip() for caption in captions):
        if not with_entities:
            return captions, [[] for _ in captions]
        entities = [names for some in lists if (names := _names(some)) is not None] if isinstance(lists, list) else []
        if len(entities) == len(captions):
            return captions, entities
    return [], [own] if with_entities and own is not None else []


def _names(value: Any) -> list[str] | None:
    """A list of strings; None for everything else."""
    return value if isinstance(value, list) and all(isinstance(name, str) for name in value) else None


def _refuse_fewer(shard: Path, found: int) -> None:
    """Raise InputError where a tar holds fewer samples than its record says."""
    recorded = next(_recorded(shard), 0)
    if found < recorded:
        _refuse(shard, "samples are missing", found)


def _refuse(shard: Path, what: str, found: int) -> None:
    recorded = next(_recorded(shard), None)
    of = f"{found} of {recorded} samples" if recorded is not None else f"{found} samples"
    cure = "run the download again with the same config, it makes it again"
    cure = cure if (shard.parent / MARKERS).is_dir() else "fetch or make it again"
    raise InputError(f"{shard}: {what}: {of} can be read; {cure}")


def _recorded(shard: Path) -> Iterator[int]:
    """What is recorded beside a tar of the number of its samples."""
    for file, key in ((shard.with_name(SIZES), shard.name), (shard.with_name(f"{shard.stem}_stats.json"), "successes")):
        if not present(file):
            continue
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(found, dict) and isinstance(found.get(key), int):
            yield found[key]
