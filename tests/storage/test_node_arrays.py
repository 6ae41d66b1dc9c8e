"""Arrays that processes share: made by one of them, whole or not at all, and not for ever."""

import mmap
import os
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from storage import InputError, node_arrays
from storage.node_arrays import OLD_SECONDS, Allocate


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(node_arrays, "SHARED_FROM", 0)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    return tmp_path / f"owseg-arrays-{os.getuid()}"


def numbers(allocate: Allocate) -> None:
    allocate("a", np.int32, 5)[:] = range(5)
    allocate("none", np.uint8, 0)
    allocate("pid", np.int64, 1)[:] = os.getpid()


def asked(_: int = 0) -> list[int]:
    found = node_arrays.node_arrays("numbers", 5, numbers)
    return [*found["a"].tolist(), len(found["none"]), *found["pid"].tolist()]


def test_one_process_makes_them_for_all(scratch: Path) -> None:
    with get_context("fork").Pool(3) as pool:
        found = pool.map(asked, range(6))
    assert all(one == found[0] == asked() for one in found)
    assert found[0][:6] == [0, 1, 2, 3, 4, 0]
    array = node_arrays.node_arrays("numbers", 5, numbers)["a"]
    assert not array.flags.writeable
    assert isinstance(array.base.base if array.base is not None else None, mmap.mmap | np.memmap)


def test_what_was_interrupted_is_made_again(scratch: Path) -> None:
    def broken(allocate: Allocate) -> None:
        numbers(allocate)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        node_arrays.node_arrays("numbers", 5, broken)
    assert not [path for path in scratch.iterdir() if path.is_dir()]
    (folder,) = {path.with_suffix("") for path in scratch.glob("*.lock")}
    folder.with_suffix(".tmp").mkdir()  # of a process that was killed
    assert asked()[:5] == [0, 1, 2, 3, 4]


def test_what_nobody_asks_for_goes(scratch: Path) -> None:
    asked()
    (old,) = (path for path in scratch.iterdir() if path.is_dir())
    os.utime(old, (0, OLD_SECONDS))
    node_arrays.node_arrays("others", 5, numbers)
    assert not old.exists()
    assert len([path for path in scratch.iterdir() if path.is_dir()]) == 1


def test_a_full_disk_is_told(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(node_arrays.os, "posix_fallocate", full)
    with pytest.raises(InputError, match=r"owseg-arrays-\d+: cannot hold .* \(No space left on device\); set TMPDIR"):
        asked()


def test_few_elements_are_each_process_own(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_arrays, "SHARED_FROM", 6)
    assert asked()[:5] == [0, 1, 2, 3, 4]
    assert not scratch.exists()
