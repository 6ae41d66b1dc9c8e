"""Where the bytes of tars come from: one small protocol, and the local file behind it."""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from storage import InputError
from storage.indexes import IndexFile
from storage.tar_index import fingerprint


class OpenTar(Protocol):
    """A tar that is open."""

    def read(self, offset: int, size: int) -> bytes:
        """So many bytes from there on; fewer where the tar ends."""
        ...


Range = tuple[IndexFile, int, int]
"""A tar, and offset and bytes in it."""


class OpenTars(Protocol):
    """Where tars are."""

    far: bool
    """Whether it is of use to say what is read next."""

    def __call__(self, index: IndexFile, /) -> AbstractContextManager[OpenTar]:
        """The tar of an index. Raises InputError where it cannot be read, or is not the one that was indexed."""
        ...

    def expect(self, ranges: Sequence[Range], /) -> None:
        """These are read next, by this process."""

    def prefetch(self, tars: Sequence[IndexFile], /) -> None:
        """These are read from now on, first the first."""


class LocalTars:
    """Tars on a disk; each is looked at once in each process, whether it is the one that its index tells of."""

    far = False

    def __init__(self) -> None:
        self._fitting: set[Path] = set()

    def expect(self, ranges: Sequence[Range]) -> None:
        """Nothing: they are here."""

    def prefetch(self, tars: Sequence[IndexFile]) -> None:
        """Nothing, too."""

    @contextmanager
    def __call__(self, index: IndexFile) -> Iterator[OpenTar]:
        """The open tar."""
        try:
            with index.tar.open("rb", buffering=0) as file:
                if index.tar not in self._fitting:
                    _check(index, file.fileno())
                    self._fitting.add(index.tar)
                yield _LocalTar(file.fileno())
        except OSError as error:
            raise InputError(f"{index.tar}: cannot be read ({error.strerror}); see to it, and start again to resume") from error


class _LocalTar:
    def __init__(self, file: int) -> None:
        self._file = file

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._file, size, offset)


def _check(index: IndexFile, file: int) -> None:
    size = os.fstat(file).st_size
    if size != index.header.tar_bytes:
        raise InputError(f"{index.tar}: has been changed while it was trained on; start again")
    if fingerprint(file, size) != index.header.fingerprint:
        raise InputError(f"{index.file}: is the index of another tar than {index.tar}; delete it, and start again")
