"""A local copy of a folder in an object store, so that code works on files: pulled to be read, pushed when written.

    object store  ──pull, fetch──▶  this machine's copy (code reads and writes files)  ──push, publish──▶  object store

Every machine has a copy of its own, at the same path. The store alone is the truth: what is here and was never pushed, as after
a kill, is dropped when the folder is opened. What was pushed or pulled has a record here, which tells changed files
from others. Markers, which say that files are complete, are pushed after the files, and deleted before them.
"""

import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from storage.client import Entry, Store

SMALL_BYTES = 4096
AT_ONCE = 16
"""Objects that are under way at the same time."""
RECORDS = ".records"
"""What the folder beside a copy that holds its records has more in its name."""
WORK = "_work"
"""Folders of this name are scratch: never pushed."""
MARKER = ".done.json"


class Record(NamedTuple):
    """What is known of a file that is in the store: the object's tag, and its size, and when the file here was changed last."""

    tag: str
    bytes: int
    changed: int
    """In nanoseconds; 0: it is not here."""

    def matches(self, stat: os.stat_result) -> bool:
        """Whether the file here is still what the store has."""
        return self.changed == stat.st_mtime_ns and self.bytes == stat.st_size


FREE: tuple[tuple[str, ...], Callable[[], None]] = ((), lambda: None)
HELD = dict[Path, tuple[tuple[str, ...], Callable[[], None]]]()
"""Of copies whose folder this process alone may write: names that are not pushed, and what raises where that has ended."""


@dataclass(frozen=True)
class Workspace:
    """This machine's copy, at `root`, of what lies below a store's URL. May be sent to other machines."""

    store: Store
    root: Path

    @property
    def records(self) -> Path:
        """The folder of what is known of the store's files."""
        return self.root.with_name(f"{self.root.name}{RECORDS}")

    # ---- the whole, or a folder of it

    def open(self, *, without: Collection[str] = ()) -> None:
        """Make the copy what the store has, but for large files that match one of `without`; what was never pushed goes."""
        there = {entry.name: entry for entry in self.store.entries() if f"/{WORK}/" not in f"/{entry.name}"}
        for path in self._files(self.root):
            name = self._name(path)
            record = self._record(name)
            if record is None or name not in there or record.tag != there[name].tag or not record.matches(path.stat()):
                path.unlink()
        self._remove_empty_folders()
        for name, record in list(self._records()):
            if name not in there or (record.changed and not (self.root / name).exists()):
                self._forget(name)
        seen = [entry for entry in there.values() if not entry.name.startswith(".")]
        self._get(entry for entry in seen if entry.bytes <= SMALL_BYTES or not _matches(entry.name, without))
        self._remember(seen)

    def pull(self, folder: Path, *, without: Collection[str] = (), most: int | None = None, changed: bool = False) -> None:
        """Get what the store has of a folder, or its files of at most `most` bytes; what was removed there is removed here.

        changed: only what is new or another since it was last here; what was changed here and not pushed stays.
        """
        prefix = "" if folder == self.root else self._name(folder)
        inside = [entry for entry in self.store.entries(prefix) if not entry.name.startswith(".")]
        there = {entry.name: entry for entry in inside if WORK in folder.parts or f"/{WORK}/" not in f"/{entry.name}"}
        for name, record in list(self._records(prefix)):
            if name not in there and record.changed:
                path = self.root / name
                if path.exists() and record.matches(path.stat()):
                    path.unlink()
                self._forget(name)
        entries = [entry for entry in there.values() if not _matches(entry.name, without)]
        entries = [entry for entry in entries if most is None or entry.bytes <= most]
        self._get(entry for entry in entries if not changed or self._is_news(entry))

    def push(self, folder: Path | None = None) -> None:
        """Bring the store to what is here: what was written, changed or removed since. Markers come last."""
        folder, (without, _) = folder or self.root, HELD.get(self.root, FREE)
        prefix = "" if folder == self.root else self._name(folder)
        here = {self._name(path): path for path in self._files(folder)}
        here = {name: path for name, path in here.items() if not _matches(name, without)}
        gone = [name for name, record in self._records(prefix) if record.changed and not (self.root / name).exists()]
        changed = [name for name, path in here.items() if self._is_changed(name, path)]
        self._delete([name for name in gone if _rank(name)])
        self._put([name for name in changed if not _rank(name)])
        self._delete([name for name in gone if not _rank(name)])
        for rank in sorted({_rank(name) for name in changed} - {0}):
            self._put([name for name in changed if _rank(name) == rank])

    def push_files(self, files: Iterable[Path]) -> None:
        """Bring files to the store that were written since, hidden ones too."""
        names = [self._name(path) for path in files if path.is_file() and not path.name.endswith(".tmp")]
        self._put([name for name in names if self._is_changed(name, self.root / name)])

    # ---- single files

    def fetch(self, path: Path) -> Path:
        """Make one file what the store has. Raises FileNotFoundError where it has none."""
        name = self._name(path)
        there = self.store.head(name)
        if there is None:
            raise FileNotFoundError(2, os.strerror(2), str(path))
        self._get([there])
        return path

    def pull_at(self, path: Path) -> None:
        """Bring here what lies at a path: a file, or a folder."""
        if self.store.head(self._name(path)):
            self.fetch(path)
        else:
            self.pull(path)

    def pull_small(self, folder: Path, patterns: Collection[str]) -> None:
        """Bring here the files directly in a folder that match one of the patterns; the sizes of the others are known then."""
        found = self.store.files("" if folder == self.root else self._name(folder))
        self._get(entry for entry in found if _matches(entry.name, patterns))
        self._remember(found)

    def _remember(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            record = self._record(entry.name)
            if not record or (not record.changed and record.tag != entry.tag):
                self._write(entry.name, Record(entry.tag, entry.bytes, 0))

    def pull_beside(self, name: str, most: int) -> Path | None:
        """Bring here a file of the topmost folder, with the small ones beside it; None where there is none."""
        beside = self.store.files()
        if name not in {entry.name for entry in beside}:
            return None
        self._get(entry for entry in beside if entry.name == name or entry.bytes <= most)
        return self.root / name

    def publish(self, files: Iterable[Path], marker: Path, *, keep: bool = False) -> None:
        """Put files into the store, then the marker that says so; without `keep` the files are removed here.

        A marker of what was there before goes first.
        """
        self.store.delete(self._name(marker))
        names = [self._name(file) for file in files]
        self._put(names)
        self._put([self._name(marker)])
        for name in [] if keep else names:
            self.drop(self.root / name)

    def make_room(self) -> None:
        """Drop all but small files that are in the store as they are here."""
        for path in self._files(self.root):
            record = self._record(self._name(path))
            if record and record.bytes > SMALL_BYTES and record.matches(path.stat()):
                self.drop(path)

    def drop(self, path: Path) -> None:
        """Make room here: the file is only in the store from now on."""
        record = self._record(self._name(path))
        if record is not None:
            self._write(self._name(path), record._replace(changed=0))
            path.unlink(missing_ok=True)

    def discard(self, path: Path) -> None:
        """Remove a file here, and at the next push in the store, whether or not it was here."""
        path.unlink(missing_ok=True)
        record = self._record(self._name(path))
        if record is not None and not record.changed:
            self._write(self._name(path), record._replace(changed=1))

    def remove(self, folder: Path) -> None:
        """Remove a folder here and in the store, whatever of it is here."""
        shutil.rmtree(folder, ignore_errors=True)
        self.clear(folder)

    def clear(self, folder: Path) -> None:
        """Remove from the store what it has of a folder; what is here stays."""
        names = [entry.name for entry in self.store.entries(self._name(folder))]
        self._delete(names)

    def size(self, path: Path) -> int | None:
        """The bytes of a file that is here or in the store; None where it is in neither."""
        name = self._name(path)
        if record := self._record(name):
            return record.bytes
        there = self.store.head(name)
        if there is None:
            return None
        self._write(name, Record(there.tag, there.bytes, 0))
        return there.bytes

    def tag(self, path: Path) -> str | None:
        """What the store tells this version of a file by; None for one that it does not have."""
        record = self._record(self._name(path))
        return record.tag if record and record.matches(path.stat()) else None

    def names(self, folder: Path) -> list[str]:
        """The files directly in a folder, here or in the store, as far as known from the last look at it."""
        prefix = f"{self._name(folder)}/" if folder != self.root else ""
        known = [name for name, _ in self._records(prefix.rstrip("/"))] + [self._name(path) for path in self._files(folder)]
        found = {name.removeprefix(prefix) for name in known}
        return sorted(name for name in found if "/" not in name)

    def folders(self, folder: Path) -> list[str]:
        """The folders directly in a folder, here or in the store."""
        here = {path.name for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else set()
        return sorted(here | set(self.store.folders(self._name(folder))))

    def url(self, path: Path) -> str:
        """Where a path lies in the store."""
        return self.store.url if path == self.root else f"{self.store.url}/{self._name(path)}"

    # ---- parts

    def _get(self, entries: Iterable[Entry]) -> None:
        _each(self._get_one, entries)

    def _get_one(self, entry: Entry) -> None:
        path, record = self.root / entry.name, self._record(entry.name)
        if record and record.tag == entry.tag and path.exists() and record.matches(path.stat()):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{id(entry):x}.tmp")
        try:
            got = self.store.download(entry.name, temporary)
            if got is None:  # removed since it was listed
                return
            written = int(got.written.timestamp() * 10**9)
            os.utime(temporary, ns=(written, written))  # a file has the same time on all machines
            changed = temporary.stat().st_mtime_ns
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        self._write(entry.name, Record(got.tag, got.bytes, changed))

    def _put(self, names: Iterable[str]) -> None:
        ensure_held(self)
        _each(self._put_one, names)

    def _put_one(self, name: str) -> None:
        path = self.root / name
        try:
            stat = path.stat()
            version = self.store.put(name, path if stat.st_size else b"")
        except FileNotFoundError:  # replaced or removed meanwhile: the next push sees to it
            return
        self._write(name, Record(version.tag, stat.st_size, stat.st_mtime_ns))

    def _delete(self, names: list[str]) -> None:
        if names:
            ensure_held(self)
            self.store.delete(*names)
        for name in names:
            self._forget(name)

    def _is_news(self, entry: Entry) -> bool:
        record, path = self._record(entry.name), self.root / entry.name
        if record is None:
            return not path.exists()
        return record.tag != entry.tag and not (path.exists() and not record.matches(path.stat()))

    def _is_changed(self, name: str, path: Path) -> bool:
        record = self._record(name)
        try:
            return record is None or not record.matches(path.stat())
        except FileNotFoundError:
            return False

    def _files(self, folder: Path) -> Iterator[Path]:
        """The files below a folder that belong into the store: no hidden ones, no scratch."""
        for at, folders, names in os.walk(folder):
            folders[:] = [name for name in folders if not name.startswith(".") and name != WORK]
            yield from (Path(at, name) for name in names if not name.startswith("."))

    def _remove_empty_folders(self) -> None:
        for at, _, _ in os.walk(self.root, topdown=False):
            if not os.listdir(at) and at != str(self.root):
                os.rmdir(at)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _records(self, prefix: str = "") -> Iterator[tuple[str, Record]]:
        top = self.records
        for at, _, names in os.walk(top / prefix):
            for name in names:
                relative = (Path(at) / name).relative_to(top).as_posix()
                if not name.startswith(".") and (record := self._record(relative)):
                    yield relative, record

    def _record(self, name: str) -> Record | None:
        try:
            return Record(*json.loads((self.records / name).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def _write(self, name: str, record: Record) -> None:
        file = self.records / name
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.{os.getpid()}-{os.urandom(4).hex()}")
        temporary.write_text(json.dumps(record), encoding="utf-8")
        os.replace(temporary, file)

    def _forget(self, name: str) -> None:
        (self.records / name).unlink(missing_ok=True)


def ensure_held(workspace: Workspace) -> None:
    """Raise InputError where this process held the folder alone, and another one has taken it since."""
    HELD.get(workspace.root, FREE)[1]()


def _each(work: Callable[..., None], items: Iterable[object]) -> None:
    items = list(items)
    if len(items) <= 1:
        for item in items:
            work(item)
        return
    with ThreadPoolExecutor(min(AT_ONCE, len(items))) as threads:
        for _ in threads.map(work, items):
            pass


def _rank(name: str) -> int:
    """When a file is pushed: what says that others are complete comes after them, and what says it of a run last."""
    if name == "summary.json":
        return 3
    if not name.endswith(MARKER):
        return 0
    return 1 if "/" in name else 2


def _matches(name: str, patterns: Collection[str]) -> bool:
    return any(PurePosixPath(f"/{name}").match(pattern) for pattern in patterns)
