"""Work over parquet shards on Ray Data: the same files, byte for byte, as `filtering.shards.run_local` writes."""

import logging
import math
import time
import traceback
import warnings
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa

from cluster.capacity import LONGEST_SECONDS, nodes_to_come, room
from cluster.failures import machine_problem
from cluster.following import Following, pass_on_warnings, rows_in
from cluster.lone_ray import plan_without_helpers
from cluster.progress import Progress
from cluster.run_log import Ticket, join, ticket
from cluster.session import OOM_RETRIES, SessionConfig, ensure_session, is_shared, selector_of
from cluster.tracking import Run
from cluster.waiting import Waiting
from filtering import InputError
from filtering.shards import (
    Describe,
    MakeWork,
    Marker,
    Runner,
    ShardWork,
    finished,
    make_work_for,
    marker_path,
    rows_of,
    run_shard,
)
from storage.copies import Travelling, at, fetched, present, travelling
from storage.live import following, publishing

CPUS_PER_WORKER = 0.5
"""What a worker reserves. Less than a whole CPU, so that a two-CPU machine still has a slot for Ray Data's own tasks."""

START_SECONDS = 300
"""How long to wait for a first free CPU, or a node on its way. After that a shard may take whatever time it needs."""
LOOK_SECONDS = 5.0


HEAVY = (
    "*.tar",
    "features/*/*.safetensors",
    *(f"_build/{rows}/{step}*" for rows in ("read", "sign") for step in ("", "spread/")),
)
"""What no copy of a run's folder holds whole: images, features of them, and the rows between two passes."""


class ShardError(RuntimeError):
    """Work failed on a shard: the message names the shard and the error, a note holds the worker's traceback."""


def run_on_ray(config: SessionConfig, record: Run | None = None, *, gpu: bool = False) -> Runner:
    """A `Runner` that spreads shards over worker processes. Ray starts only if some shard is not finished yet.

    `record` is told how far the work is, now and then. With `gpu` each worker has a GPU of its own.
    The runner raises InputError as the work raised it, and ShardError for anything else. Finished shards stay finished.
    """

    def run(
        make_work: MakeWork,
        sources: Sequence[Path],
        out: Path,
        *,
        fingerprint: str,
        label: str,
        unit: str = "rows",
        at_once: int = 1,
        cores: int = 1,
        describe: Describe | None = None,
    ) -> list[Marker]:
        out = out.resolve()  # workers have another working directory
        found = {source.resolve(): finished(source, out, fingerprint) for source in sources}
        todo = [source for source, marker in found.items() if marker is None]
        if copy := at(out):
            copy.push()  # workers on other machines read what this process wrote
        if todo:
            rows = {source.stem: rows_of(source) for source in found}
            before = [marker for marker in found.values() if marker]
            done = sum(rows_in(marker, rows[marker.shard]) for marker in before)
            with (
                Progress(label or "shards", total=sum(rows.values()), unit=unit, start=done) as progress,
                Following(progress, out, rows, before, describe, record) as watched,
                following(out / "_work"),
                # Closed at once when a shard fails: workers must not keep running while somebody tries again.
                closing(_results(config, make_work, todo, out, fingerprint, at_once, cores, gpu)) as results,
            ):
                for row in results:
                    _raise_failure(row)
                    source = Path(row["source"])
                    present(marker_path(out, source.stem))
                    if marker := finished(source, out, fingerprint):
                        found[source] = marker
                        watched.add(marker)
        lost = [str(source) for source, marker in found.items() if marker is None]
        if lost:
            raise ShardError(f"{len(lost)} shards were reported complete but left no marker in {out}, first {lost[0]}")
        if copy and todo:
            copy.clear(out / "_work")
            copy.pull(out, without=HEAVY)
        return [marker for marker in found.values() if marker is not None]

    return run


class RunShards:
    """The Ray actor: builds the work when its first shard arrives, then runs one shard per call. Never raises for a shard.

    Ray calls it from as many threads as shards may be in work at once.
    """

    def __init__(
        self, make_work: MakeWork, workers: int, out: Path, fingerprint: str, copies: Travelling, log: Ticket | None
    ) -> None:
        copies.attach()
        join(log)
        self.make_work, self.workers, self.out, self.fingerprint = make_work, workers, out, fingerprint
        self.work: ShardWork | None = None
        self.making = Lock()
        pass_on_warnings(out)

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([self._run(source) for source in batch["source"].to_pylist()], schema=_RESULT)

    def _run(self, source: str) -> dict[str, Any]:
        try:
            with self.making:
                self.work = self.work or make_work_for(self.workers, self.make_work)
            with publishing(self.out / "_work", "*/.live.json", ".warnings-*"):
                marker = run_shard(self.work, fetched(Path(source)), self.out, self.fingerprint)
            if copy := at(self.out):
                copy.publish([self.out / file for file in marker.files], marker_path(self.out, marker.shard))
        except InputError as error:
            return _result(source, mistake=str(error))
        except Exception as error:
            if problem := machine_problem(error, [self.out]):
                return _result(source, mistake=f"shard {Path(source).stem}: {problem}")
            told = traceback.format_exception_only(error)[0].strip()
            return _result(source, failure=told, trace=traceback.format_exc())
        return _result(source)


_RESULT = pa.schema([(name, pa.string()) for name in ("source", "mistake", "failure", "trace")])


def _result(source: str, *, mistake: str | None = None, failure: str | None = None, trace: str | None = None) -> dict[str, Any]:
    return {"source": source, "mistake": mistake, "failure": failure, "trace": trace}


def _results(
    config: SessionConfig,
    make_work: MakeWork,
    sources: list[Path],
    out: Path,
    fingerprint: str,
    at_once: int,
    cores: int,
    gpu: bool,
) -> Generator[dict[str, Any], None, None]:
    """One row per shard, as each completes."""
    ensure_session(config)
    import ray
    import ray.data

    for handler in logging.getLogger("ray.data").handlers:
        if handler.name == "console":  # its plans and hints are for Ray Data's developers; they stay in the session's log file
            handler.setLevel(logging.ERROR)
    if not is_shared(config):
        plan_without_helpers()
    _await_cpu(config)
    context = ray.data.DataContext.get_current().copy()
    context.execution_no_progress_timeout_s = -1  # it takes a shard that is long in work for a plan that hangs
    context.execution_options.label_selector = selector_of(config.data_label)
    workers = workers_for(len(sources), ray.nodes(), config, cores, gpu=gpu)
    at_once = shards_at_once(len(sources), workers, at_once)
    with ray.data.DataContext.current(context):
        shards = ray.data.from_items([{"source": str(source)} for source in sources], override_num_blocks=len(sources))
        with warnings.catch_warnings():
            # There is no other way yet to say how often a task is repeated.
            warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
            results = shards.map_batches(
                RunShards,
                fn_constructor_kwargs={
                    "make_work": make_work,
                    "workers": workers,
                    "out": out,
                    "fingerprint": fingerprint,
                    "copies": travelling(),
                    "log": ticket(),
                },
                compute=ray.data.ActorPoolStrategy(
                    min_size=1,
                    initial_size=workers,
                    max_size=workers,
                    # No queued shards: one would wait behind a long one while another worker is idle.
                    max_tasks_in_flight_per_actor=at_once,
                    max_concurrent_calls_per_actor=at_once,
                    enable_true_multi_threading=True,
                ),
                num_cpus=CPUS_PER_WORKER * (1 if config.data_workers else cores),
                num_gpus=1 if gpu else None,
                max_task_retries=OOM_RETRIES,
                batch_format="pyarrow",
                batch_size=1,
            )
        for batch in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from batch.to_pylist()


def workers_for(shards: int, nodes: list[dict[str, Any]], config: SessionConfig, cores: int = 1, *, gpu: bool = False) -> int:
    """How many workers take shards: those asked for, or one for so many cores of the nodes that `session.data_label` allows.

    With `gpu`, one for each GPU of those nodes that has the cores.

    Cores of other nodes do not count: workers for them would wait, and start more data nodes than anybody asked for. More than
    fit are what makes an autoscaler start nodes, so on a cluster as many as are asked for may wait.
    """
    label = selector_of(config.data_label)
    if gpu:
        return max(1, min(shards, room(nodes, {"CPU": CPUS_PER_WORKER * cores, "GPU": 1.0}, label)))
    fitting = room(nodes, {"CPU": CPUS_PER_WORKER}, label)
    # A node with fewer cores has a worker, too.
    busy = sum(max(room([node], {"CPU": cores}, label), min(1, room([node], {"CPU": 1}, label))) for node in nodes)
    wanted = config.data_workers or busy
    return max(1, min(shards, wanted if is_shared(config) else min(wanted, fitting)))


def shards_at_once(shards: int, workers: int, at_once: int) -> int:
    """How many shards one worker has in work: at most its share, or the one that is up first would take that of the others."""
    return min(at_once, math.ceil(shards / workers))


def _await_cpu(config: SessionConfig) -> None:
    """InputError where no worker can start."""
    import ray

    label = config.data_label
    if not is_shared(config) and not label and ray.available_resources().get("CPU", 0.0) >= CPUS_PER_WORKER:
        return  # to have a task find out takes a process, and a second
    nothing = ray.remote(max_calls=1)(_nothing)  # once, or its process would stay
    started = nothing.options(num_cpus=CPUS_PER_WORKER, label_selector=selector_of(label) or {}).remote()
    with Waiting("Ray: waiting for a free CPU"):
        began = hopeful = time.monotonic()
        while not ray.wait([started], timeout=LOOK_SECONDS)[0]:
            now, growth = time.monotonic(), nodes_to_come()
            hopeful = now if growth.coming else hopeful  # a new node takes minutes to boot, and ten to be set up
            if now - hopeful >= START_SECONDS or now - began >= LONGEST_SECONDS:
                ray.cancel(started)
                nodes = f"session.data_label: no Ray node with the label {label}" if label else "session: no Ray node"
                raise InputError(
                    f"{nodes} had a CPU to spare for {now - began:.0f} s; wait for other jobs to end or add nodes "
                    f"(see `ray status`){growth.why_not}"
                )
    ray.get(started)


def _nothing() -> None: ...


def _raise_failure(row: dict[str, Any]) -> None:
    if row["mistake"] is not None:
        raise InputError(row["mistake"])
    if row["failure"] is not None:
        error = ShardError(f"shard {Path(row['source']).stem} failed: {row['failure']}")
        error.add_note(row["trace"])
        raise error
