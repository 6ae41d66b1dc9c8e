"""What Ray Train's controller and the driver say of workers and nodes that are lost, and what ends a training."""

import errno
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError, WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from cluster import InputError, capacity, recovery
from cluster.checkpoints import LIST
from cluster.recovery import Recovery, kept, ray_settings, told, what_failed
from filtering.files import write_json
from owseg import InputError as MistakeOfTraining
from owseg.snapshots import POSITION

EACH = {"CPU": 0.5}
GROUP = SimpleNamespace(num_workers=3, resources_per_worker=EACH)
FULL = OSError(errno.ENOSPC, "No space left on device", "/d/checkpoint")
DEAD = WorkerHealthCheckFailedError("A worker health check failed.", ActorDiedError())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Time passes by sleeping alone."""
    now = [1.0]
    for module in (capacity, recovery):
        monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
        monkeypatch.setattr(module.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr(capacity, "_ask_for_nodes", lambda *given: None)
    return now


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The cluster's, as Ray lists them: room for four."""
    found = [{"Alive": True, "Resources": {"CPU": 1.0}} for _ in range(2)]
    monkeypatch.setattr("ray.nodes", lambda: found)
    monkeypatch.setattr(capacity, "nodes_to_come", capacity.Growth)
    return found


def checkpoint(storage: Path, step: int) -> Path:
    folder = storage / "checkpoint_2030-01-01_00-00-00.000000"
    folder.mkdir(parents=True)
    write_json(folder / POSITION, {"step": step})
    write_json(storage / LIST, {"checkpoint_results": [{"checkpoint_dir_name": folder.name}]})
    return folder


def watcher(folder: Path, **given: Any) -> Recovery:
    settings: dict[str, Any] = {"label": None, "seconds": 60.0, "collective_seconds": 30.0, "shared": True}
    settings |= {"least": 3, "restarts": 2}
    (folder / "ranks").mkdir(exist_ok=True)
    return Recovery(events=folder / "events.txt", ranks=folder / "ranks", storage=folder / "kept", **settings | given)


def lines(folder: Path) -> list[str]:
    return (folder / "events.txt").read_text().splitlines() if (folder / "events.txt").exists() else []


def poll(watch: Recovery, errors: dict[int, BaseException], preempted: list[int] | None = None) -> None:
    statuses = {rank: SimpleNamespace(error=errors.get(rank)) for rank in range(4)}
    info = SimpleNamespace(preempted_ranks=preempted) if preempted else None
    watch.after_worker_group_poll_status(
        SimpleNamespace(errors=errors, worker_statuses=statuses, get_preemption_info=lambda: info)
    )


def test_a_lost_node_is_waited_for_and_then_the_training_goes_on(
    tmp_path: Path, clock: list[float], nodes: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = watcher(tmp_path)
    watch.before_worker_group_start(GROUP)
    watch.after_worker_group_training_start(None)
    assert lines(tmp_path) == []
    nodes[1]["Alive"] = False

    def sleep(seconds: float) -> None:
        clock[0] += seconds
        nodes[1]["Alive"] = clock[0] > 35

    monkeypatch.setattr(capacity.time, "sleep", sleep)
    watch.before_worker_group_start(GROUP)
    waits = "waits for a cluster with room for 3 training processes with 0.5 CPU each: 2 fit by now"
    assert lines(tmp_path) == [f"{waits} ({seconds} s)" for seconds in (10, 20, 30)]


def test_a_node_that_never_comes_ends_it_in_one_line(tmp_path: Path, clock: list[float], nodes: list[dict[str, Any]]) -> None:
    folder = checkpoint(tmp_path / "kept", 12)
    del nodes[1]
    with pytest.raises(InputError) as caught:
        watcher(tmp_path).before_worker_group_start(GROUP)
    assert str(caught.value) == (
        "train.workers: 3 training processes with 0.5 CPU each, and the Ray cluster has room for 2; lower train.workers, or "
        "give it more nodes, or its autoscaler leave to start as many (train.recovery_seconds: how long it may take to begin); "
        f"the last checkpoint is step 12, {folder}"
    )
    assert clock[0] == 61
    assert len(lines(tmp_path)) == 5


def test_this_machines_own_ray_gets_no_nodes(tmp_path: Path, clock: list[float], nodes: list[dict[str, Any]]) -> None:
    nodes.clear()
    with pytest.raises(InputError, match="has room for 0"):
        watcher(tmp_path, shared=False).before_worker_group_start(GROUP)
    assert clock[0] == 1


def test_starts_that_fail_again_and_again_are_limited_by_time(
    tmp_path: Path, clock: list[float], nodes: list[dict[str, Any]]
) -> None:
    watch = watcher(tmp_path)
    for _ in range(6):  # as Ray does, each time that resources stay taken
        watch.before_worker_group_start(GROUP)
        clock[0] += 10
    with pytest.raises(InputError, match=r"did not start within 60 s \(train\.recovery_seconds\): others use the Ray cluster"):
        watch.before_worker_group_start(GROUP)
    assert lines(tmp_path)[0] == "waits for 3 training processes to start on the Ray cluster (10 s)"
    assert len(lines(tmp_path)) == 5


def test_a_failure_is_told_once_with_what_is_kept(tmp_path: Path, clock: list[float], nodes: list[dict[str, Any]]) -> None:
    folder, watch = checkpoint(tmp_path / "kept", 12), watcher(tmp_path, restarts=1)
    for _ in range(2):
        watch.before_worker_group_start(GROUP)
        watch.after_worker_group_training_start(None)
        poll(watch, {})
        for _ in range(2):
            poll(watch, {0: RuntimeError("gloo: Connection closed"), 1: DEAD, 2: DEAD})
    killed = "rank 1, 2 failed: a worker process was killed, often for want of memory; "
    last = f"the last checkpoint is step 12, {folder}"
    assert lines(tmp_path) == [
        f"{killed}{last}; new workers start (1 of 1 times, train.max_failures)",
        f"{killed}{last}; gives up",
    ]


def test_a_rank_that_hangs_while_the_others_are_ended_is_named(tmp_path: Path) -> None:
    """As with NCCL, whose watchdog ends the processes that wait."""
    watch, now = watcher(tmp_path), time.time()
    for rank, since in ((0, now - 40), (1, now - 40), (2, now - 40), (3, now - 5)):
        place = {"host": "b", "pid": 5, "place": "in step 3", "since": since, "timed_out": False}
        write_json(tmp_path / "ranks" / f"{rank}.json", place)
    poll(watch, {0: DEAD})
    assert (
        ", and rank 1 (in step 3 since 40 s, pid 5 on b), rank 2 (in step 3 since 40 s, pid 5 on b) did not move for 30 s; "
        in lines(tmp_path)[0]
    )


def test_an_error_without_a_name_is_told_by_its_last_line(tmp_path: Path) -> None:
    assert what_failed({2: RuntimeError("Traceback ...\n  a bug\n")}, tmp_path) == ("  a bug", [2], False)
    assert what_failed({2: RuntimeError()}, tmp_path) == ("RuntimeError", [2], False)


def test_a_full_disk_ends_it_at_once_and_a_users_mistake_is_left_alone(tmp_path: Path) -> None:
    folder, watch = checkpoint(tmp_path / "kept", 12), watcher(tmp_path)
    with pytest.raises(InputError) as caught:
        poll(watch, {0: RuntimeError("gloo: Connection closed"), 1: FULL})
    assert str(caught.value).startswith("/d/checkpoint: No space left on device; free some space")
    assert str(caught.value).endswith(f"the last checkpoint is step 12, {folder}")
    poll(watch, {0: MistakeOfTraining("loss: not finite"), 1: DEAD})
    assert lines(tmp_path) == []


def test_a_notice_of_preemption_is_told_once(tmp_path: Path) -> None:
    watch = watcher(tmp_path)
    for _ in range(3):
        poll(watch, {1: DEAD}, preempted=[1, 3])
    assert lines(tmp_path) == ["the nodes of ranks 1, 3 are about to be taken back: a checkpoint is written"]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (WorkerGroupError("...", {1: DEAD}), "a worker process was killed, often for want of memory; "),
        (WorkerGroupError("...", {0: OutOfMemoryError("...")}), "Ray ended a worker, as its machine ran out of memory; "),
        (ControllerError(WorkerGroupStartupTimeoutError(3)), "the Ray cluster had no room for the workers; "),
    ],
    ids=["killed", "out of memory", "no room"],
)
def test_what_ray_gives_up_on_is_one_line_with_the_last_checkpoint(error: Exception, line: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 12)
    with pytest.raises(InputError) as caught, told(tmp_path):
        raise error
    assert str(caught.value).startswith(line)
    assert str(caught.value).endswith(f"then run the same command again: it resumes (the last checkpoint is step 12, {folder})")


@pytest.mark.parametrize("cause", [RuntimeError("a bug"), MistakeOfTraining("a mistake"), InputError("no room")], ids=repr)
def test_faults_and_mistakes_stay_what_they_are(cause: Exception, tmp_path: Path) -> None:
    error = WorkerGroupError("...", {0: cause, 1: DEAD} if not isinstance(cause, RuntimeError) else {0: cause})
    with pytest.raises(WorkerGroupError) as caught, told(tmp_path):
        raise error
    assert caught.value is error


def test_without_a_checkpoint_that_is_said(tmp_path: Path) -> None:
    assert kept(tmp_path) == "there is no checkpoint yet"


def test_rays_settings_are_the_trainings_and_the_users_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    name = "RAY_TRAIN_COLLECTIVE_TIMEOUT_S"
    monkeypatch.setenv(name, "7")
    monkeypatch.delenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", raising=False)
    with ray_settings(1800.0):
        assert os.environ[name] == "1800.0"
        assert os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] == "10.0"
    assert os.environ[name] == "7"
    assert "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S" not in os.environ


def test_another_number_of_workers_is_told(nodes: list[dict[str, Any]], tmp_path: Path) -> None:
    one = watcher(tmp_path, least=2)
    checkpoint(tmp_path / "kept", 12)
    for workers in (3, 2, 2, 4):
        one.before_worker_group_start(SimpleNamespace(num_workers=workers, resources_per_worker=EACH))
        one.after_worker_group_training_start(None)
    assert [line.partition(";")[0] for line in (tmp_path / "events.txt").read_text().splitlines()] == [
        "goes on with 2 training processes, 3 before",
        "goes on with 4 training processes, 2 before",
    ]
    assert "the last checkpoint is step 12" in (tmp_path / "events.txt").read_text()
