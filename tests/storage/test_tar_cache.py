"""Tars of an object store on a machine's disk: read in ranges at first, then whole, in the order in which they are needed."""

import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from helpers import tiny
from helpers.s3 import S3, Fault
from helpers.tar_files import samples, write
from owseg.data import Batch, CaptionBatches, batches_from
from owseg.shards import ShardReader
from storage import InputError
from storage.client import StorageConfig
from storage.copies import attach, detach, names_in, workspace_of
from storage.tar_cache import CachedTars, _Room, tars_of
from storage.workspace import Workspace

TARS, EACH = 3, 8


@pytest.fixture
def copy(s3: S3, tmp_path: Path) -> Iterator[Workspace]:
    """A machine that works on a copy of a run with shards in a store, none of which is here."""
    url = f"{s3.make_bucket(f'b-{uuid.uuid4().hex}')}/run"
    workspace = workspace_of(url, StorageConfig(scratch=str(tmp_path / "scratch")))
    attach(workspace)
    for number in range(TARS):
        files = [(f"{number}{name}", content) for name, content in samples(EACH)]
        workspace.store.put(f"shards/{number}.tar", write(tmp_path / f"{number}.tar", files))
    yield workspace
    detach(workspace)


def shards(copy: Workspace) -> list[Path]:
    return [copy.root / "shards" / f"{number}.tar" for number in range(TARS)]


def batches(paths: list[Path], tars: CachedTars | None = None) -> CaptionBatches:
    reader = ShardReader(paths, open_tars=tars or tars_of(paths))
    return CaptionBatches(
        reader, lambda texts: torch.zeros(len(texts), 1), tiny.AUGMENT, normalisation=tiny.HALF, batch_size=4, seed=0
    )


def cached(copy: Workspace) -> list[str]:
    """The tars on the machine's disk, by name."""
    return sorted(path.name.partition("-")[2] for path in (copy.root.parent / "tars").glob("*/*.tar"))


def wait_until(ready: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.01)


def keys(found: Iterator[Batch]) -> list[list[str]]:
    return [batch.keys for batch in found]


def test_a_cold_start_reads_ranges_and_goes_on_from_whole_tars(copy: Workspace, s3: S3, tmp_path: Path) -> None:
    expected = keys(batches_from(batches(sorted(tmp_path.glob("*.tar"))), 0, 6, workers=0))
    found = batches(shards(copy))
    s3.requests.clear()
    assert keys(batches_from(found, 0, 2, workers=0)) == expected[:2]
    assert len(s3.requests) == 8, "a range for each sample"
    assert cached(copy) == []
    found.prefetch(2)
    wait_until(lambda: len(cached(copy)) == TARS)
    s3.requests.clear()
    assert keys(batches_from(found, 2, 6, workers=0)) == expected[2:]
    assert s3.requests == []
    assert not any(path.exists() for path in shards(copy)), "the copy of the run itself holds no tars"


def test_loader_processes_ask_the_one_that_made_them(copy: Workspace, tmp_path: Path) -> None:
    expected = keys(batches_from(batches(sorted(tmp_path.glob("*.tar"))), 0, 6, workers=0))
    assert keys(batches_from(batches(shards(copy)), 0, 6, workers=2)) == expected


def test_a_mistake_reaches_the_loader_process_as_a_line(copy: Workspace, s3: S3) -> None:
    found = batches(shards(copy))
    s3.faults = lambda method, path, number: Fault(status=403, code="AccessDenied")
    with pytest.raises(InputError, match="access is denied; the credentials need the right to read"):
        keys(batches_from(found, 0, 2, workers=1))


def test_indexes_are_made_once_and_shared(copy: Workspace, s3: S3, tmp_path: Path) -> None:
    ShardReader(shards(copy))
    assert [name for name in names_in(copy.root / "shards") if name.endswith(".index")] == ["0.index", "1.index", "2.index"]
    s3.requests.clear()
    other = workspace_of(copy.store.url, StorageConfig(scratch=str(tmp_path / "another machine")))
    attach(other)
    try:
        assert len(ShardReader(shards(other))) == TARS * EACH
    finally:
        detach(other)
    assert not [request for request in s3.requests if request.endswith(".tar")], "no tar is read"


def test_what_does_not_fit_is_read_in_ranges(copy: Workspace, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    expected = keys(batches_from(batches(sorted(tmp_path.glob("*.tar"))), 0, 6, workers=0))
    size = (tmp_path / "0.tar").stat().st_size
    others = copy.root.parent / "tars" / "another-training"
    others.mkdir(parents=True)
    for age, name in ((100, "x-old.tar"), (50, "x-newer.tar")):
        (others / name).write_bytes(bytes(size))
        os.utime(others / name, (time.time() - age,) * 2)
    found = batches(shards(copy), CachedTars(copy, most_bytes=2.5 * size))
    found.prefetch(0)
    wait_until(lambda: "hold no more tars" in caplog.text and len(cached(copy)) == 2)
    assert not list(others.iterdir()), "others' tars made room"
    own = copy.root.parent / "tars" / copy.root.name
    assert not _Room(own.parent, own, 2.5 * size).make(size), "our own make none"
    assert len(cached(copy)) == 2
    assert keys(batches_from(found, 0, 6, workers=0)) == expected


def test_a_lost_or_damaged_cache_is_survived(copy: Workspace, tmp_path: Path) -> None:
    expected = keys(batches_from(batches(sorted(tmp_path.glob("*.tar"))), 0, 6, workers=0))
    found = batches(shards(copy))
    found.prefetch(0)
    wait_until(lambda: len(cached(copy)) == TARS)
    for path in (copy.root.parent / "tars").glob("*/*.tar"):
        path.unlink()
    assert keys(batches_from(found, 0, 6, workers=0)) == expected


def test_a_tar_that_is_not_as_it_was_written_ends_the_training(copy: Workspace) -> None:
    copy.store.put("shards/_done/0.done.json", b'{"files": {"0.tar": "' + b"0" * 64 + b'"}}')
    found = batches(shards(copy))
    found.prefetch(0)
    for workers in (0, 1):
        with pytest.raises(
            InputError, match=r"^s3://.*/run/shards/0.tar: is not as the download wrote it; run that with --verify"
        ):
            wait_until(lambda workers=workers: not keys(batches_from(found, 0, 6, workers=workers)))
    assert "0.tar" not in cached(copy)


def test_a_tar_that_took_the_place_of_the_indexed_one_ends_it_too(copy: Workspace, tmp_path: Path) -> None:
    found = batches(shards(copy))
    content = (tmp_path / "0.tar").read_bytes()
    copy.store.put("shards/0.tar", content[:1000] + bytes([content[1000] ^ 1]) + content[1001:])
    found.prefetch(0)
    with pytest.raises(
        InputError, match=r"^s3://.*/run/shards/0.index: is the index of another tar than 0.tar is now; delete it"
    ):
        wait_until(lambda: not keys(batches_from(found, 0, 6, workers=0)))
