"""Tars of an object store on a machine's own disk.

Whole ones come in the order in which they are needed; until one is here, what is read of it comes from the store in ranges.

Samples are visited in a random order over all tars, so nothing is won by putting one out for the next: once the room is used
up, the rest is read in ranges. Room is made by the tars of other trainings, the least recently used first.
"""

import fcntl
import hashlib
import json
import logging
import multiprocessing as mp
import multiprocessing.queues
import os
import pickle
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from storage import InputError
from storage.client import in_effect
from storage.copies import at
from storage.indexes import IndexFile
from storage.tar_index import fingerprint
from storage.tar_reads import LocalTars, OpenTar, OpenTars, Range
from storage.workspace import Workspace

logger = logging.getLogger(__name__)

RANGES_AT_ONCE, TARS_AT_ONCE = 16, 2
SECONDS_BETWEEN_USES = 60.0
POLL_SECONDS = 0.002
OLD_SECONDS = 3600.0
LONGEST_MISTAKE = 600


def tars_of(shards: Sequence[Path]) -> OpenTars:
    """Where shards are: on a disk, or in an object store with this machine's disk before it."""
    workspace = at(shards[0]) if shards else None
    return CachedTars(workspace, in_effect().cache_gb * 1e9) if workspace else LocalTars()


class CachedTars:
    """The tars of one training. Made before loader processes are forked, which ask this one for what is not on the disk."""

    far = True

    def __init__(self, workspace: Workspace, most_bytes: float) -> None:
        self._store, self._root = workspace.store, workspace.root
        self._folder = workspace.root.parent / "tars" / workspace.root.name
        self._all, self._most = self._folder.parent, most_bytes
        self._local = LocalTars()
        self._owner = os.getpid()
        self._asked: mp.queues.SimpleQueue[Any] = mp.SimpleQueue()
        self._numbers = count()
        self._threads = ThreadPoolExecutor(RANGES_AT_ONCE, "ranges")
        self._ahead: dict[Range, bytes] = {}
        self._used: dict[Path, float] = {}
        self._over = threading.Event()
        self._wrong = mp.RawArray("c", LONGEST_MISTAKE)  # which loader processes share
        self._folder.mkdir(parents=True, exist_ok=True)
        for reply in self._folder.glob(".reply-*"):  # that a killed loader process left
            with suppress(FileNotFoundError):
                if time.time() - reply.stat().st_mtime > OLD_SECONDS:
                    reply.unlink()
        threading.Thread(target=self._serve, name="ranges", daemon=True).start()

    @contextmanager
    def __call__(self, index: IndexFile) -> Iterator[OpenTar]:
        """The open tar: the one on the disk, or its ranges in the store. Raises InputError where any tar was found wrong."""
        if self._wrong.value:
            raise InputError(self._wrong.value.decode())
        file = self._file(index)
        if file.exists():
            with suppress(FileNotFoundError), self._local(index._replace(tar=file)) as tar:
                self._note_use(file)
                yield tar
                return
        yield _Ranged(self, index)

    def expect(self, ranges: Sequence[Range]) -> None:
        """These ranges are read next, in this process: those that are not on the disk are fetched at the same time."""
        wanted = [one for one in ranges if not self._file(one[0]).exists()]
        self._ahead = dict(zip(wanted, self._fetched(wanted), strict=True))

    def read(self, index: IndexFile, offset: int, size: int) -> bytes:
        """A range from the store."""
        for (tar, start, length), content in self._ahead.items():
            if tar is index and start <= offset and offset + size <= start + length:
                return content[offset - start : offset - start + size]
        return self._fetched([(index, offset, size)])[0]

    def prefetch(self, tars: Sequence[IndexFile]) -> None:
        """Bring these tars to the disk, in this order, while work goes on. What an earlier call asked for is left."""
        self._over.set()
        self._over = threading.Event()
        threading.Thread(target=self._prefetch, args=(list(tars), self._over), name="tars", daemon=True).start()

    # ---- ranges

    def _fetched(self, ranges: Sequence[Range]) -> list[bytes]:
        if not ranges:
            return []
        if os.getpid() == self._owner:
            return list(self._threads.map(self._from_store, ranges))
        reply = self._folder / f".reply-{os.getpid()}-{next(self._numbers)}"
        self._asked.put((reply, list(ranges)))
        end = time.monotonic() + self._store.config.patience + 60.0
        while not reply.exists():
            if time.monotonic() > end:
                raise InputError(f"{self._store.url}: nothing was read from it for {self._store.config.patience:.0f} s")
            time.sleep(POLL_SECONDS)
        found = pickle.loads(reply.read_bytes())  # noqa: S301 -- nobody else may write there: storage/private.py
        reply.unlink()
        if isinstance(found, str):
            raise InputError(found)
        return list(found)

    def _from_store(self, wanted: Range) -> bytes:
        index, offset, size = wanted
        return self._store.get_range(index.tar.relative_to(self._root).as_posix(), offset, size)

    def _serve(self) -> None:
        """Answer loader processes, several at a time."""
        while True:
            reply, ranges = self._asked.get()
            threading.Thread(target=self._answer, args=(reply, ranges), daemon=True).start()

    def _answer(self, reply: Path, ranges: Sequence[Range]) -> None:
        try:
            found: Any = list(self._threads.map(self._from_store, ranges))
        except (InputError, OSError) as error:
            found = str(error)
        temporary = reply.with_name(f"{reply.name}.tmp")
        with suppress(FileNotFoundError):  # the folder is going, and who asked with it
            reply.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(pickle.dumps(found))
            os.replace(temporary, reply)

    # ---- whole tars

    def _prefetch(self, tars: list[IndexFile], over: threading.Event) -> None:
        missing = [index for index in tars if not self._file(index).exists()]
        room = _Room(self._all, self._folder, self._most)

        def bring(index: IndexFile) -> None:
            if over.is_set() or room.full:
                return
            try:
                self._bring(index, room)
            except OSError as error:
                room.full = f"{self._folder}: {error.strerror or error}"
            except InputError as error:
                self._wrong.value = str(error).encode()[: LONGEST_MISTAKE - 1]
                over.set()
            if room.full and not over.is_set():
                over.set()
                logger.warning("%s; tars that are not on this machine's disk are read from the store", room.full)

        with ThreadPoolExecutor(TARS_AT_ONCE, "tars") as threads:
            list(threads.map(bring, missing))

    def _bring(self, index: IndexFile, room: "_Room") -> None:
        file = self._file(index)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.with_name(f".{file.name}.lock").open("wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return  # another process of this machine is at it
            if file.exists() or not room.make(index.header.tar_bytes):
                return
            temporary, size = file.with_name(f".{file.name}.tmp"), index.header.tar_bytes
            try:
                name = index.tar.relative_to(self._root).as_posix()
                if self._store.download(name, temporary) is None:
                    raise InputError(f"{self._store.url}/{name}: is not there any more; run the download again")
                self._check(index, temporary)
            except BaseException:
                temporary.unlink(missing_ok=True)
                room.take_back(size)
                raise
            room.keep(temporary, file, size)

    def _check(self, index: IndexFile, file: Path) -> None:
        """Raise InputError where a tar has not the digest that the download recorded, or is not the one that was indexed."""
        marker = index.tar.parent / "_done" / f"{index.tar.stem}.done.json"
        told = self._store.get(marker.relative_to(self._root).as_posix())
        wanted = json.loads(told)["files"].get(index.tar.name) if told else None
        if wanted:
            with file.open("rb") as opened:
                found = hashlib.file_digest(opened, "sha256").hexdigest()
            if found != wanted:
                url = f"{self._store.url}/{index.tar.relative_to(self._root).as_posix()}"
                raise InputError(f"{url}: is not as the download wrote it; run that with --verify, which makes it again")
            return
        with file.open("rb", buffering=0) as opened:
            fits = fingerprint(opened.fileno(), file.stat().st_size) == index.header.fingerprint
        if not fits:
            url = f"{self._store.url}/{index.file.relative_to(self._root).as_posix()}"
            raise InputError(f"{url}: is the index of another tar than {index.tar.name} is now; delete it, and start again")

    def _file(self, index: IndexFile) -> Path:
        return self._folder / f"{index.header.fingerprint.hex()[:16]}-{index.tar.name}"

    def _note_use(self, file: Path) -> None:
        now = time.monotonic()
        if now - self._used.get(file, 0.0) > SECONDS_BETWEEN_USES:
            self._used[file] = now
            with suppress(FileNotFoundError):
                os.utime(file)

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("loader processes are forked: what reads the store stays in the process that made it")


class _Ranged:
    """A tar in the store."""

    def __init__(self, tars: CachedTars, index: IndexFile) -> None:
        self._tars, self._index = tars, index

    def read(self, offset: int, size: int) -> bytes:
        return self._tars.read(self._index, offset, size)


@dataclass
class _Room:
    """What the disk has for tars: at most so many bytes, over all trainings of this machine."""

    all: Path
    own: Path
    most: float
    full: str = ""
    """Why no more tars come."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    promised: int = 0
    """Bytes of tars that are under way."""

    def make(self, size: int) -> bool:
        """Whether there is room for a tar, once others' least recently used ones have gone."""
        with self.lock:
            there = {path: path.stat() for path in self.all.glob("*/*") if not path.name.startswith(".")}
            used = sum(stat.st_size for stat in there.values()) + self.promised
            for path, stat in sorted(there.items(), key=lambda item: item[1].st_mtime):
                if used + size <= self.most:
                    break
                if path.parent != self.own:
                    path.unlink(missing_ok=True)
                    used -= stat.st_size
            if used + size > self.most:
                self.full = f"storage.cache_gb: {self.most / 1e9:g} GB hold no more tars"
                return False
            self.promised += size
            return True

    def keep(self, temporary: Path, file: Path, size: int) -> None:
        """The tar that there was room for is here, under a temporary name."""
        with self.lock:  # at no moment is it counted twice
            os.replace(temporary, file)
            self.promised -= size

    def take_back(self, size: int) -> None:
        """It did not come."""
        with self.lock:
            self.promised -= size
