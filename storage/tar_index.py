"""The index beside a tar: where each sample's files lie and what entities it names, in one flat binary file.

`00000.tar` has `00000.index`. All numbers are little-endian; the file is, in this order and without gaps,

    header      magic, version, size of the tar, lengths of what follows, the tar's fingerprint, SHA-256 of the file itself
    records     one for each sample, in the tar's order (RECORD): offsets in blocks of 512 bytes, sizes in bytes
    entities    uint32 [entities]: numbers of the samples' entities, one sample's after the other's
    name_ends   uint32 [names]: where each name ends in `names`
    keys        UTF-8, one sample's after the other's
    names       the tar's own table of entities, in the order in which its samples name them

It depends on nothing but the tar. Samples that cannot be used are in it, too: what a reader makes of them is its own affair.
"""

import hashlib
import os
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from storage import InputError
from storage.tar_samples import Found, Told, samples_of, told_by
from storage.tars import BLOCK, Member

VERSION = 1
SUFFIX = ".index"
_MAGIC = b"tarindex"
_HEADER = struct.Struct("<8sQ6Q32s32s")
RECORD = np.dtype(
    [
        *((name, "<u4") for name in ("image", "image_bytes", "caption", "caption_bytes", "about", "about_bytes")),
        *((name, "<u4") for name in ("key_end", "entity_end", "flags")),
    ]
)
"""Block 0, where a tar's first header lies, stands for a file that is not there. `key_end` and `entity_end` say where a
sample's part of keys and entities ends; it begins where that of the sample before it ends."""
SEVERAL, SEVERAL_LISTED, LISTED = 1, 2, 4
"""Flags: the JSON has several captions; it has them with entities for each; it has entities."""
TOO_LARGE = 2**32 - 1
"""The size that stands for a file of 4 GiB and more, and for one that begins at 2 TiB or behind."""
_PROBES, _PROBE = 16, 4096
_RAW, _ANY = "surrogateescape", "surrogatepass"
"""How text that is no UTF-8 is kept: names of files as their bytes, words of JSON as they are."""


class UnfitIndexError(InputError):
    """A file that is no whole index of this version, or that of another tar."""


class Header(NamedTuple):
    """What an index says of itself and of its tar."""

    tar_bytes: int
    samples: int
    entities: int
    names: int
    key_bytes: int
    name_bytes: int
    fingerprint: bytes
    """`fingerprint` of the tar."""
    digest: bytes
    """SHA-256 of the index, with zeros in this place."""

    @property
    def bytes(self) -> int:
        """Size of the whole file."""
        numbers = self.samples * RECORD.itemsize + 4 * (self.entities + self.names)
        return _HEADER.size + numbers + self.key_bytes + self.name_bytes


@dataclass(frozen=True)
class TarIndex:
    """An index in memory. Sample i has the key keys[ends[i - 1]:ends[i]] with ends = records["key_end"], and so on."""

    header: Header
    records: np.ndarray
    entities: np.ndarray
    name_ends: np.ndarray
    keys: bytes
    name_bytes: bytes

    def names(self) -> list[str]:
        """The tar's entities by number."""
        ends = self.name_ends.tolist()
        return [self.name_bytes[start:end].decode(errors=_ANY) for start, end in zip([0, *ends], ends, strict=False)]

    def key(self, sample: int) -> str:
        """A sample's key."""
        start = int(self.records["key_end"][sample - 1]) if sample else 0
        return self.keys[start : int(self.records["key_end"][sample])].decode(errors=_RAW)


def index_path(tar: Path) -> Path:
    """Where the index of a tar lies, if it lies beside it."""
    return tar.with_suffix(SUFFIX)


def read_header(file: Path) -> Header:
    """The header of an index. Raises UnfitIndexError where the file is none of this version, or not whole; or OSError."""
    with file.open("rb") as opened:
        return _header(opened.read(_HEADER.size), os.fstat(opened.fileno()).st_size)


def read_index(file: Path) -> TarIndex:
    """A whole index, its digest compared. Raises as `read_header` does."""
    return parse(file.read_bytes())


def parse(content: bytes) -> TarIndex:
    """The index whose file has this content. Raises UnfitIndexError where it is none of this version, or damaged."""
    header = _header(content[: _HEADER.size], len(content))
    if _digest(content) != header.digest:
        raise UnfitIndexError("is damaged: its bytes are not those that were written")
    records = np.frombuffer(content, RECORD, header.samples, _HEADER.size)
    numbers = np.frombuffer(content, "<u4", header.entities + header.names, _HEADER.size + records.nbytes)
    texts = content[_HEADER.size + records.nbytes + numbers.nbytes :]
    keys, names = texts[: header.key_bytes], texts[header.key_bytes :]
    return TarIndex(header, records, numbers[: header.entities], numbers[header.entities :], keys, names)


def fingerprint(tar: int, size: int) -> bytes:
    """SHA-256 of some parts of an open tar (a file descriptor): tells it from others of its size without reading it all."""
    found = hashlib.sha256(size.to_bytes(8, "little"))
    for number in range(_PROBES):
        found.update(os.pread(tar, _PROBE, size * number // _PROBES // BLOCK * BLOCK))
    return found.digest()


def build(tar: Path) -> bytes:
    """The content of a tar's index. Raises InputError where the tar is unreadable, cut or damaged."""
    found = samples_of(tar)
    with tar.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        told = [_told(file.fileno(), sample.about) for sample in found]
        return encode(found, told, size, fingerprint(file.fileno(), size))


def _told(file: int, about: Member | None) -> Told:
    content = os.pread(file, about.size, about.offset) if about else b""
    if b'"captions"' in content or b'"entities"' in content:  # JSON of other tools says neither, and is long
        return told_by(content)
    return Told([], [], None)


def encode(found: Sequence[Found], told: Sequence[Told], tar_bytes: int, probes: bytes) -> bytes:
    """The content of an index of a tar of so many bytes and this fingerprint, which holds these samples."""
    records, keys = array("I"), bytearray()
    numbers: dict[str, int] = {}
    entities, name_ends, names = array("I"), array("I"), bytearray()
    for (key, image, caption, about), says in zip(found, told, strict=True):
        keys += key.encode(errors=_RAW)
        listed = says.entities()
        entities.extend(numbers.setdefault(name, len(numbers)) for name in listed or ())
        flags = SEVERAL * bool(says.captions) | SEVERAL_LISTED * bool(says.lists) | LISTED * (listed is not None)
        records.extend((*_place(image), *_place(caption), *_place(about), len(keys), len(entities), flags))
    for name in numbers:
        names += name.encode(errors=_ANY)
        name_ends.append(len(names))
    body = [np.frombuffer(part, np.uint32).astype("<u4").tobytes() for part in (records, entities, name_ends)]
    header = (_MAGIC, VERSION, tar_bytes, len(found), len(entities), len(numbers), len(keys), len(names), probes)
    content = b"".join([_HEADER.pack(*header, bytes(32)), *body, keys, names])
    return _HEADER.pack(*header, _digest(content)) + content[_HEADER.size :]


def _place(file: Member | None) -> tuple[int, int]:
    if file is None:
        return 0, 0
    block = file.offset // BLOCK
    return (block, min(file.size, TOO_LARGE)) if block < TOO_LARGE else (1, TOO_LARGE)


def _header(content: bytes, size: int) -> Header:
    if len(content) < _HEADER.size or not content.startswith(_MAGIC):
        raise UnfitIndexError("is no index of a tar" if content else "is empty")
    _, version, *rest = _HEADER.unpack(content)
    if version != VERSION:
        raise UnfitIndexError(f"is an index of version {version}, not {VERSION}")
    header = Header(*rest)
    if header.bytes != size:
        raise UnfitIndexError(f"is not whole: it has {size} of {header.bytes} bytes")
    return header


def _digest(content: bytes) -> bytes:
    digest = hashlib.sha256(content[: _HEADER.size - 32])
    digest.update(bytes(32))
    digest.update(memoryview(content)[_HEADER.size :])
    return digest.digest()
