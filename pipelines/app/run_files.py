"""The files of a run's folder, here or in an object store, to be looked at: nothing is taken, changed or copied."""

import fcntl
import json
import os
import shutil
import struct
import time
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from storage.client import StorageConfig, Store, is_object_store, use
from storage.lease import NAME, SECONDS

LOCK = ".lock"


class RunFiles(Protocol):
    """What there is of a run."""

    name: str
    """Its folder, as people write it."""

    @property
    def sizes(self) -> dict[str, int]:
        """The bytes of each file by its path in the folder, with slashes, as they were when first asked for."""

    @property
    def exists(self) -> bool:
        """Whether there is such a folder."""

    def read(self, name: str) -> bytes | None:
        """A file's content; None where there is none."""

    def holder(self) -> str:
        """Who works on the run at this moment: "process 17 on host"; "" where nobody does."""

    def free(self) -> int | None:
        """Bytes that are left on its disk; None where nobody knows."""


def run_files(folder: str, storage: StorageConfig | None = None) -> RunFiles:
    """Those of a folder or URL."""
    storage = storage or StorageConfig()
    use(storage)
    if is_object_store(folder):
        return StoredRun(Store(folder.rstrip("/"), storage))
    return LocalRun(Path(folder.removeprefix("file://")).expanduser().absolute())


def read_json(files: RunFiles, name: str) -> dict[str, Any]:
    """A JSON mapping; {} where it is missing, or cannot be read at this moment."""
    with suppress(ValueError):
        found = json.loads(files.read(name) or b"{}")
        return found if isinstance(found, dict) else {}
    return {}


class LocalRun:
    """A folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, str(folder)

    @cached_property
    def sizes(self) -> dict[str, int]:
        found = {}
        for parent, _, names in os.walk(self.folder):
            for name in names:
                path = Path(parent, name)
                with suppress(OSError):  # it may vanish while the run goes on
                    found[path.relative_to(self.folder).as_posix()] = path.lstat().st_size
        return found

    @property
    def exists(self) -> bool:
        return self.folder.is_dir()

    def read(self, name: str) -> bytes | None:
        try:
            return (self.folder / name).read_bytes()
        except OSError:
            return None

    def holder(self) -> str:
        try:
            with (self.folder / LOCK).open("rb") as file:
                query = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
                kind, *_, pid = struct.unpack("hhqqi", fcntl.fcntl(file, fcntl.F_GETLK, query))  # asks, and takes nothing
                told = file.read(200).decode(errors="replace").strip()
        except OSError:
            return ""
        return "" if kind == fcntl.F_UNLCK else told or f"process {pid}"

    def free(self) -> int | None:
        there = next((folder for folder in (self.folder, *self.folder.parents) if folder.exists()), None)
        return shutil.disk_usage(there).free if there else None


class StoredRun:
    """A folder in an object store."""

    def __init__(self, store: Store) -> None:
        self.store, self.name = store, store.url

    @cached_property
    def sizes(self) -> dict[str, int]:
        return {entry.name: entry.bytes for entry in self.store.entries()}

    @property
    def exists(self) -> bool:
        return bool(self.sizes)

    def read(self, name: str) -> bytes | None:
        return self.store.get(name)

    def holder(self) -> str:
        there, told = self.store.head(NAME), read_json(self, NAME)
        if there is None or (datetime.now(UTC) - there.written).total_seconds() > SECONDS:
            return ""
        return f"process {told.get('pid', '?')} on {told.get('host', 'another machine')}"

    def free(self) -> int | None:
        return None


def age(seconds_since_epoch: float) -> float:
    """Seconds that have passed since, none below 0: clocks differ."""
    return max(0.0, time.time() - seconds_since_epoch)
