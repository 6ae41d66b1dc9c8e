"""What the machine refuses or lacks is told by its errno or by Ray's own class; what is a fault of the program is not."""

import errno
import os
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import (
    ActorDiedError,
    NodeDiedError,
    ObjectStoreFullError,
    OutOfMemoryError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.train.v2._internal.exceptions import (
    InsufficientClusterResourcesError,
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
    WorkerHealthCheckTimeoutError,
)
from ray.train.v2.api.exceptions import ControllerError, PreemptionError, WorkerGroupError
from ray.train.v2.api.preemption import PreemptionInfo
from safetensors.torch import save_file

from cluster.failures import CURES, machine_problem


def task_error(cause: Exception, text: str = "Traceback ...") -> Exception:
    return RayTaskError("f", text, cause, pid=1, ip="127.0.0.1").as_instanceof_cause()


KILLED = (
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR. There are some potential causes."
)


def unhealthy(message: str) -> Exception:
    """As Ray Train tells of a worker whose process is gone."""
    died = ActorDiedError(ActorDiedErrorContext(actor_id=b"0" * 16, error_message=message))
    return WorkerHealthCheckFailedError("A worker health check failed.", died)


@pytest.mark.parametrize("code", CURES, ids=errno.errorcode.get)
def test_every_errno_of_the_machine_names_file_and_cure(code: int) -> None:
    told = machine_problem(OSError(code, os.strerror(code), "/d/out.bin"))
    assert told is not None
    assert told.startswith(f"/d/out.bin: {os.strerror(code)}; ")


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """Files may not grow beyond `size` bytes: another way for a disk to end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write(kind: str, folder: Path) -> None:
    """Only plain text goes to /dev/full: libraries remove or replace a file that they could not write, this one too."""
    match kind:
        case "text":
            Path("/dev/full").write_text("x" * 100_000)
        case "parquet":
            with small_files(50_000):
                pq.write_table(pa.table({"a": range(100_000)}), folder / "a.parquet")
        case "torch":
            with small_files(50_000):
                torch.save(torch.zeros(100_000), folder / "a.pt")
        case "safetensors":
            with small_files(50_000):
                save_file({"a": torch.zeros(100_000)}, folder / "a.safetensors")
        case "sqlite":
            with sqlite3.connect(folder / "a.db") as database:
                database.execute("PRAGMA max_page_count=2")
                database.execute("CREATE TABLE a (b)")
                database.executemany("INSERT INTO a VALUES (?)", [("x" * 5000,)] * 3)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("text", "No space left on device; free some space, then run the same command again: it resumes"),
        ("parquet", "File too large; raise the limit on the size of files (`ulimit -f`)"),
        ("torch", "a file of weights could not be written, most likely as its disk is full; free some space"),
        ("safetensors", "File too large; raise the limit on the size of files (`ulimit -f`)"),
        ("sqlite", "No space left on device; free some space, then run the same command again: it resumes"),
    ],
)
def test_a_disk_that_ends_is_told_whatever_library_meets_it_and_wherever(kind: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011 -- each library has its own
        write(kind, tmp_path)
    error = caught.value
    # As a Ray worker hands it over: its causes are lost.
    far = WorkerGroupError("...", {0: task_error(type(error)(*error.args), f"Traceback ...\n{error}")})
    for one in (error, far):
        line = machine_problem(one)
        assert line is not None
        assert told in line
        assert "\n" not in line


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OutOfMemoryError("Task was killed due to the node running low on memory.\nMemory on the node ..."), "out of memory"),
        (ObjectStoreFullError("Failed to put object"), "session.object_store_mb"),
        (NodeDiedError("The node died"), "a machine of the Ray cluster died"),
        (WorkerCrashedError(), "a worker process was killed"),
        (ActorDiedError(), "a worker process was killed"),
        (
            WorkerGroupError("...", {0: ActorDiedError(), 1: RuntimeError("gloo: Connection closed")}),
            "a worker process was killed",
        ),
        (ControllerError(OutOfMemoryError("...")), "out of memory"),
        (
            WorkerGroupError("...", {2: unhealthy("The actor died because its node has died. Node Id: 5f")}),
            "a machine of the Ray",
        ),
        (WorkerGroupError("...", {2: unhealthy(f"{KILLED} (1) the process is killed by SIGKILL by OOM killer")}), "was killed"),
        (
            WorkerGroupError("...", {2: unhealthy("worker process has died. Worker exit type: NODE_OUT_OF_MEMORY")}),
            "Ray ended a worker, as its machine ran out of memory",
        ),
        (WorkerGroupError("...", {2: WorkerHealthCheckTimeoutError("hanging for 601 s")}), "does not answer any more"),
        (ControllerError(WorkerGroupStartupTimeoutError(3)), "no room for the workers"),
        (ControllerError(WorkerGroupStartupFailedError("failed to initialize")), "ended while it started"),
        (ControllerError(InsufficientClusterResourcesError("...")), "never has room"),
        (PreemptionError(PreemptionInfo(None, {"5f": [1]})), "took a machine back"),
        (ExceptionGroup("two", [ValueError("x"), task_error(OutOfMemoryError("..."))]), "out of memory"),
        (MemoryError(), "not enough memory; "),
        (RuntimeError("can't start new thread"), "ulimit -u"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error."), "/dev/shm"),
        (task_error(RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")), "memory"),
        (ConnectionResetError(104, "Connection reset by peer"), "the network or a server failed"),
    ],
)
def test_what_ray_and_the_system_say_is_one_line_with_a_cure(error: BaseException, told: str) -> None:
    line = machine_problem(error)
    assert line is not None
    assert told in line
    assert "\n" not in line


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a bug"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "ours.json"),
        OSError("no errno"),
        task_error(KeyError("No space left on device")),
        ActorDiedError(RayTaskError("f", "Traceback ...", RuntimeError("a bug"), pid=1, ip="127.0.0.1")),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        TypeError("Errno 28"),
        UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"),
    ],
    ids=repr,
)
def test_a_fault_of_the_program_is_not_the_machines(error: BaseException) -> None:
    assert machine_problem(error) is None


def test_an_error_hidden_by_the_closing_of_the_file_is_found() -> None:
    def write() -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "/d/a.tar")
        finally:
            raise ValueError("write to closed file")  # as a library's __exit__ does

    with pytest.raises(ValueError, match="closed") as caught:
        write()
    assert str(machine_problem(caught.value)).startswith("/d/a.tar: No space left on device; free some space")
