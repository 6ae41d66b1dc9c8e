"""A rank that does not come to a collective is named by those that wait for it."""

import multiprocessing
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from cluster.failures import HangingCollectiveError, machine_problem
from cluster.heartbeats import forget, heartbeats, is_timeout, placed
from filtering.files import write_json

SECONDS = 1


def take_part(folder: Path, rank: int) -> None:
    """A rank of two: the second reads a batch until the first has told of it."""
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=SECONDS))
    try:
        with heartbeats(folder / "ranks", rank, 2, SECONDS) as at:
            dist.all_reduce(torch.ones(1))
            at("reads the batch of step 7" if rank else "in step 7")
            end = time.monotonic() + 60
            while rank and not (folder / "told").exists() and time.monotonic() < end:
                time.sleep(0.01)
            dist.all_reduce(torch.ones(1))
    except Exception as error:
        (folder / f"error{rank}").write_text(f"{type(error).__name__}: {error}")
        if not rank:
            (folder / "told").touch()


def test_the_rank_that_sleeps_is_named_by_the_one_that_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.heartbeats.SECONDS_BETWEEN", 0.1)
    start = multiprocessing.get_context("fork").Process
    processes = [start(target=take_part, args=(tmp_path, rank)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()
    told = (tmp_path / "error0").read_text()
    assert told.startswith("HangingCollectiveError: rank 1 (reads the batch of step 7 since")
    assert f"pid {processes[1].pid}" in told
    assert told.endswith("did not come where the others waited for 1 s (train.collective_seconds): in step 7")
    # It comes too late, to a collective that is no more: that is none that waits.
    assert not (tmp_path / "error1").read_text().startswith("HangingCollectiveError")
    line = machine_problem(HangingCollectiveError(told))
    assert line is not None
    assert "look at that machine, then run the same command again" in line


def waited(folder: Path, ranks: int) -> str:
    """What the last of the ranks says whose collective times out."""
    with pytest.raises(HangingCollectiveError) as caught, heartbeats(folder, ranks - 1, ranks, 30, grace=0.0):
        raise RuntimeError("[unbound_buffer.cc:81] Timed out waiting 30000ms for recv operation to complete")
    return str(caught.value)


def place(folder: Path, rank: int, *, timed_out: bool) -> None:
    folder.mkdir(exist_ok=True)
    found = {
        "host": "b",
        "pid": 5,
        "place": "writes the checkpoint of step 2",
        "since": time.time() - 60,
        "timed_out": timed_out,
    }
    write_json(folder / f"{rank}.json", found)


def test_of_many_that_do_not_come_four_are_named(tmp_path: Path) -> None:
    for rank in range(8):
        place(tmp_path, rank, timed_out=rank == 2)
    told = waited(tmp_path, 9)
    assert told.startswith("rank 0 (writes the checkpoint of step 2 since 60 s, pid 5 on b), rank 1 (")
    assert "rank 4 (" in told
    assert "rank 2 (" not in told
    assert "rank 5" not in told
    assert " and 3 more did not come" in told


def test_ranks_that_all_wait_tell_of_the_network(tmp_path: Path) -> None:
    place(tmp_path, 0, timed_out=True)
    assert waited(tmp_path, 2) == "all 2 ranks waited for one another for 30 s (train.collective_seconds)"


def test_a_rank_that_never_was_there_and_a_broken_file_are_told(tmp_path: Path) -> None:
    (tmp_path / "1.json").write_text("{")
    told = waited(tmp_path, 3)
    assert told.startswith("rank 0 (never seen), rank 1 (never seen) did not come")
    forget(tmp_path)
    assert not tmp_path.exists()


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="Connection closed by peer"), heartbeats(tmp_path, 0, 2, 30):
        raise RuntimeError("[pair.cc:534] Connection closed by peer [127.0.0.1]:9")
    assert not is_timeout(ValueError("Timed out waiting"))


def test_rays_own_collective_counts_too() -> None:
    from ray.train.v2._internal.exceptions import BroadcastCollectiveTimeoutError

    assert is_timeout(BroadcastCollectiveTimeoutError(1.0, [1], 1.0))


def test_batches_pass_with_a_word_on_where_the_rank_is() -> None:
    said: list[str] = []

    def batches(phase: object, step: int) -> Iterator[int]:
        yield from range(step, 4)

    drawn = placed(batches, said.append)(SimpleNamespace(stop=4), 2)  # type: ignore[arg-type]
    assert next(drawn) == 2  # type: ignore[comparison-overlap]
    assert said == ["reads the batch of step 3", "in step 3"]
    assert list(drawn) == [3]
