"""The samples of a WebDataset tar, streamed: nothing is unpacked to disk, whatever the members are called."""

import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Self

from filtering import InputError
from filtering.samples import IMAGE_KINDS, TEXT_KINDS
from filtering.sources import first_line, open_unpacked

MAX_HELD = 64 << 20  # bytes of members that wait in memory until it is clear whose they are; larger members are left empty


class _Header(tarfile.TarInfo):
    """A tar header that must be whole: `tarfile` takes a damaged or missing one for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the blocks of zeros that end an archive
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error
        if header.size < 0:
            raise tarfile.ReadError("a member has a negative size")
        return header


@dataclass(frozen=True)
class Member:
    """A file of the sample `sample`; `kind` is what follows its name's last dot, in lower case ("jpg", "txt")."""

    sample: str
    kind: str
    size: int
    _read: Callable[[int], bytes]

    def read(self, most: int) -> bytes:
        """The first `most` bytes; to be read before the next member is asked for."""
        return self._read(most)

    @property
    def family(self) -> str:
        """The sample's name up to its first dot."""
        folder, slash, name = self.sample.rpartition("/")
        return f"{folder}{slash}{name.partition('.')[0]}"


Sample = tuple[str, Iterator[Member]]


@contextmanager
def open_tar(path: str) -> Iterator[Iterator[Sample]]:
    """The samples of a tar (also packed), each with its name and its files: neighbours with the same name up to the last dot.

    So "Track 2.0.jpg" and "Track 2.1.jpg" are two samples. What makes no sample of its own, without image or without text, and
    extends the name of another one belongs to that: "a.seg.png" stands beside "a.jpg" and is passed over. Names are
    compared among neighbours that are alike up to the first dot.

    Samples are streamed, so a sample's files must be read before the next one is asked for.

    Raises:
        InputError: the tar is damaged or cut short; what comes before the damage is read.
    """
    with open_unpacked(path) as file:
        try:
            with tarfile.open(fileobj=file, mode="r|", tarinfo=_Header, encoding="utf-8", errors="replace") as tar:
                yield _samples(_members(tar))
        except (tarfile.TarError, EOFError) as error:
            raise InputError(
                f"filter.source.path: the tar {path} is damaged or cut short ({first_line(error)}); "
                "fetch it again or take it away"
            ) from error


def split_name(name: str) -> tuple[str, str]:
    """The sample, with its folder, that a file of a tar belongs to, and the file's kind; "" and "" for one that has none."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    stem, _, kind = file.rpartition(".")
    return (f"{folder}{slash}{stem}", kind.lower()) if stem and not stem.startswith(".") else ("", "")


def _members(tar: tarfile.TarFile) -> Iterator[Member]:
    """The plain files: no links, devices, folders or sparse files (whose size could be anything), no hidden files."""
    while (header := _next_header(tar)) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # it would remember every one
        sample, kind = split_name(header.name)
        if sample and header.isreg() and not header.issparse():
            yield Member(sample, kind, header.size, _reader(tar, header))


def _next_header(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    try:
        return tar.next()
    except (ValueError, OverflowError, LookupError) as error:  # of extended headers that are none
        raise tarfile.ReadError(f"a header is not readable: {first_line(error)}") from error


def _reader(tar: tarfile.TarFile, header: tarfile.TarInfo) -> Callable[[int], bytes]:
    def read(most: int) -> bytes:
        content = tar.extractfile(header)
        return content.read(most) if content else b""

    return read


def _samples(members: Iterator[Member]) -> Iterator[Sample]:
    for name, family in groupby(members, lambda member: member.family):
        yield from _Family(name, family).samples()


class _Family:
    """Neighbours whose names are alike up to the first dot: mostly one sample, whose name has no other dot, and is streamed.

    Members with longer names are held in memory until it is clear whether they are samples.
    """

    def __init__(self, name: str, members: Iterator[Member]) -> None:
        self._name = name
        self._members = members
        self._next: Member | None = None
        self._there: set[str] = set()
        self._held: list[list[Member]] = []
        self._latest: dict[str, list[Member]] = {}
        self._bytes = 0

    def samples(self) -> Iterator[Sample]:
        while (member := self._take()) is not None:
            if member.sample == self._name:
                self._there.add(self._name)
                files = self._streamed(member)
                yield self._name, files
                for _ in files:  # whatever was not asked for
                    pass
            else:
                last = self._held[-1] if self._held else []
                if len(self._held) == 1 and last[0].sample != member.sample and _is_whole(last):  # of more the rest may follow
                    self._release(last)
                    yield last[0].sample, iter(last)
                self._hold(member)
            if self._bytes > MAX_HELD:
                yield from self._held_samples(self._held[:-1])  # of the last one more may follow
        yield from self._held_samples(self._held)

    def _take(self) -> Member | None:
        member, self._next = self._next or next(self._members, None), None
        return member

    def _streamed(self, member: Member) -> Iterator[Member]:
        """The files of a sample of the family's own name; a second image is that of another sample, even of the same name."""
        kinds = {member.kind}
        yield member
        while self._bytes <= MAX_HELD and (found := self._take()) is not None:
            if found.sample != self._name:
                self._hold(found)
            elif found.kind in kinds:
                self._next = found
                return
            else:
                kinds.add(found.kind)
                yield found

    def _hold(self, member: Member) -> None:
        wanted = member.kind in IMAGE_KINDS | TEXT_KINDS and member.size <= MAX_HELD
        content = member.read(member.size) if wanted else b""
        self._bytes += len(content) + _OVERHEAD
        self._there.add(member.sample)
        files = self._latest.get(member.sample)
        if files is None or any(file.kind == member.kind for file in files):
            files = self._latest[member.sample] = []
            self._held.append(files)
        files.append(Member(member.sample, member.kind, member.size, lambda most: content[:most]))

    def _release(self, files: list[Member]) -> None:
        self._held.remove(files)
        if self._latest.get(files[0].sample) is files:
            del self._latest[files[0].sample]
        self._bytes -= sum(len(file.read(MAX_HELD)) + _OVERHEAD for file in files)

    def _held_samples(self, ended: Sequence[list[Member]]) -> Iterator[Sample]:
        """Of what is held those with an image and a text, and of the others those that do not belong to another sample."""
        for files in list(ended):
            self._release(files)
            name = files[0].sample
            if _is_whole(files) or _prefixes(name).isdisjoint(self._there):
                yield name, iter(files)


_OVERHEAD = 1 << 10  # bytes that a held member takes beside its content


def _prefixes(name: str) -> set[str]:
    """A sample's name up to each of its dots but those of its folders."""
    start = name.rfind("/") + 1
    return {name[:at] for at in range(start, len(name)) if name[at] == "."}


def _is_whole(files: list[Member]) -> bool:
    kinds = {file.kind for file in files}
    return not kinds.isdisjoint(IMAGE_KINDS) and not kinds.isdisjoint(TEXT_KINDS)
