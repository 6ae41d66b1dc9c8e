"""The indexes of many tars: those that are there and fit are taken, the others are made once, for all who read these tars.

An index that does not fit its tar (cut, damaged, of another version, or of a tar that was replaced) is made anew, since all
that it says is in the tar. It goes beside the tar or, where that cannot be written, into a folder of the user's.
"""

import hashlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from storage import InputError
from storage.copies import at, fetched, pull_small, size_of
from storage.tar_index import (
    SUFFIX,
    Header,
    TarIndex,
    UnfitIndexError,
    build,
    fingerprint,
    index_path,
    read_header,
    read_index,
)

log = logging.getLogger(__name__)

SECONDS = 10.0
"""Between lines that tell how far the making of indexes is."""

Tell = Callable[[int, int, int], None]
"""Receives how many indexes are there now of how many that were missing, and the samples in those made here."""


class IndexFile(NamedTuple):
    """The index of a tar."""

    tar: Path
    file: Path
    header: Header


def indexes_of(tars: Sequence[Path], tell: Tell | None = None) -> list[IndexFile]:
    """The index of each tar, made where there is none that fits.

    Several processes may ask at the same time: each begins elsewhere among those that are missing, passes over what another
    has made by then, and what two of them make is the same. Raises InputError where a tar is unreadable, cut or damaged.
    """
    for folder in dict.fromkeys(tar.parent for tar in tars):
        pull_small(folder, f"*{SUFFIX}", "sizes.json", "*_stats.json")
    found = {tar: _fitting(tar) for tar in tars}
    missing = [tar for tar, index in found.items() if index is None]
    tell = tell or _Lines()
    begin, samples = secrets.randbelow(max(len(missing), 1)), 0
    for number, tar in enumerate([*missing[begin:], *missing[:begin]], start=1):
        found[tar] = index = _fitting(tar, tell=False) or _made(tar)
        samples += index.header.samples
        tell(number, len(missing), samples)
    return [index for index in found.values() if index is not None]


def read(index: IndexFile) -> TarIndex:
    """A whole index; it is made anew where it is damaged."""
    try:
        return read_index(index.file)
    except (UnfitIndexError, OSError) as error:
        made = _made(index.tar)
        if made.header._replace(digest=index.header.digest) != index.header:  # what others have counted by it is wrong
            raise InputError(f"{index.file}: was damaged, and has been made anew; start again") from error
        log.warning("%s: %s; it is made anew", index.file, error)
        return read_index(made.file)


def write_index(tar: Path, file: Path) -> None:
    """Write the index of a tar, whole or not at all; the same tar gives the same bytes."""
    content = build(tar)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def _fitting(tar: Path, *, tell: bool = True) -> IndexFile | None:
    """The index of a tar, as far as it is there and fits; `tell`: say in the log why one does not."""
    try:
        size = size_of(tar)
        if size is None:
            size = tar.stat().st_size  # says what is the matter
    except OSError as error:
        raise InputError(f"{tar}: cannot be read ({error.strerror})") from error
    for file in (index_path(tar), _cached(tar)):
        try:
            header = read_header(file)
        except FileNotFoundError:
            continue
        except (UnfitIndexError, OSError) as error:
            if tell:
                log.warning("%s: %s; another is made", file, error)
            continue
        if header.tar_bytes == size and _fingerprint(tar, size) in (header.fingerprint, None):
            return IndexFile(tar, file, header)
        if tell:
            log.warning("%s: tells of another tar than %s is now; another is made", file, tar.name)
    return None


def _fingerprint(tar: Path, size: int) -> bytes | None:
    """That of a tar; None of one that is only in an object store, which is looked at when it comes here."""
    if at(tar) and not tar.is_file():
        return None
    try:
        with tar.open("rb", buffering=0) as file:
            return fingerprint(file.fileno(), size)
    except OSError as error:
        raise InputError(f"{tar}: cannot be read ({error.strerror})") from error


def _made(tar: Path) -> IndexFile:
    """A new index, beside the tar where that can be. One that is as a download recorded it comes out the same."""
    beside, cached = index_path(tar), _cached(tar)
    for file in (beside, cached):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_index(fetched(tar), file)
            if workspace := at(tar):
                workspace.push_files([file])
                workspace.drop(tar)
            return IndexFile(tar, file, read_header(file))
        except OSError as error:
            reason = error
    told = f"{beside}: cannot be written, nor can {cached} ({reason.strerror}); make room or give the right to write to either"
    raise InputError(told) from reason


def _cached(tar: Path) -> Path:
    """Where the index of a tar lies that cannot be written beside it."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.sha256(os.fsencode(tar.absolute())).hexdigest()[:32]
    return root / "owseg" / "indexes" / f"{name}.index"


class _Lines:
    """Tells in the log, every few seconds, how far it is."""

    def __init__(self) -> None:
        self.began = self.told = time.monotonic()

    def __call__(self, made: int, missing: int, samples: int) -> None:
        now = time.monotonic()
        if now - self.told >= SECONDS:
            self.told = now
            rate = samples / (now - self.began)
            log.warning("indexes of tars, needed once: %d of %d made, %.0f samples/s", made, missing, rate)
