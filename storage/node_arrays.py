"""Large arrays that all processes of a machine share: made by the first that asks, in files that all of them map.

A training has many processes on a machine, ranks and their loaders; what each of them would hold for itself counts many times.
"""

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from storage import InputError
from storage.private import make_private, private_path

SHARED_FROM = 1 << 17
"""Elements from which on arrays are shared."""
OLD_SECONDS = 24 * 3600.0
"""Arrays that nobody has asked for in this time are deleted when others are made; who has them mapped keeps them."""

Allocate = Callable[[str, np.typing.DTypeLike, int], np.ndarray]
"""An array of zeros of this name, type and length, to be filled."""


def node_arrays(key: str, elements: int, make: Callable[[Allocate], None]) -> dict[str, np.ndarray]:
    """The arrays that `make` allocates and fills, by name, read-only; `key` says all that they depend on.

    Where there are few elements, each process has its own. Raises InputError where the machine's temporary folder is full,
    or the folder there somebody else's.
    """
    if elements < SHARED_FROM:
        return _private(make)
    root = private_path("arrays")
    folder = root / hashlib.sha256(key.encode()).hexdigest()[:32]
    try:
        make_private(root)
        with _locked(root / f"{folder.name}.lock"):
            if not folder.is_dir():
                _delete_old(root)
                _make(folder, make)
            os.utime(folder)
            return {file.stem: np.asarray(np.load(file, mmap_mode="r")) for file in sorted(folder.glob("*.npy"))}
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{root}: cannot hold what the training processes share ({reason}); set TMPDIR to another") from error


def _private(make: Callable[[Allocate], None]) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}

    def allocate(name: str, dtype: np.typing.DTypeLike, length: int) -> np.ndarray:
        found[name] = np.zeros(length, dtype)
        return found[name]

    make(allocate)
    for array in found.values():
        array.setflags(write=False)
    return found


def _make(folder: Path, make: Callable[[Allocate], None]) -> None:
    unfinished = folder.with_suffix(".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    unfinished.mkdir()

    def allocate(name: str, dtype: np.typing.DTypeLike, length: int) -> np.ndarray:
        file = unfinished / f"{name}.npy"
        if not length:  # nothing can be mapped
            np.save(file, np.zeros(0, dtype))
            return np.zeros(0, dtype)
        array = np.lib.format.open_memmap(file, "w+", np.dtype(dtype), (length,))
        with file.open("rb+") as opened:  # or a full disk would end the process where it writes
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
        return array

    try:
        make(allocate)
        os.rename(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _delete_old(root: Path) -> None:
    now = time.time()
    for folder in root.iterdir():
        if folder.is_dir() and now - folder.stat().st_mtime > OLD_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """One process at a time; a killed one's lock goes with it."""
    with file.open("wb") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
