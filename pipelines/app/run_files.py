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

import yaml

from pipelines.app.values import ConfigError
from storage.client import StorageConfig, Store, is_object_store, use
from storage.lease import NAME, SECONDS
from storage.understood import Noted, shaped, understood

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
    return LocalRun(named_folder(folder).absolute())


def named_folder(run: str) -> Path:
    """The folder of a run that a command line names, whether it is there or not. Raises ConfigError for what can be none."""
    text = run.removeprefix("file://")
    if not text.strip():
        raise ConfigError(f"{run!r} names no folder; give that of a run")
    try:
        folder = Path(text).expanduser()
        folder.resolve().is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, links in a circle, ~nobody, NUL
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{run[:100]!r} can be no folder ({reason}); give that of a run") from None
    return folder


def read_json(files: RunFiles, name: str, notes: list[str] | None = None) -> dict[str, Any]:
    """A JSON mapping; {} where it is missing, or damaged: then with a line in `notes`."""
    content = files.read(name)
    if content is None:
        return {}
    with Noted(f"{files.name}/{name}", [] if notes is None else notes):
        found: dict[str, Any] = shaped(json.loads(content), {})
        return found
    return {}


def settings_in(content: bytes, name: str) -> dict[str, Any]:
    """The settings of a run as its file `name` keeps them. Raises InputError where it holds none."""
    with understood(name, "bring back the one that was there", also=(yaml.YAMLError,)):
        found: dict[str, Any] = shaped(yaml.safe_load(content), {})
        if not found:
            raise ValueError("it holds no settings")
    return found


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
