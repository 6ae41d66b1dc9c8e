"""Work over parquet shards on Ray Data: the same files, byte for byte, as `filtering.stage.run_local` writes."""

import logging
import traceback
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.progress import Progress
from cluster.session import SessionConfig, ensure_session, selector_of
from filtering.stage import InputError, MakeWork, Marker, Runner, ShardWork, finished, rows_of, run_shard

CPUS_PER_WORKER = 0.5
"""What a worker reserves. Less than a whole CPU, so that a two-CPU machine still has a slot for Ray Data's own tasks."""


class ShardError(RuntimeError):
    """Work failed on a shard: the message names the shard and carries the worker's traceback."""


def run_on_ray(config: SessionConfig) -> Runner:
    """A `Runner` that spreads shards over worker processes. Ray starts only if some shard is not finished yet.

    The runner raises InputError as the work raised it, and ShardError for anything else. Finished shards stay finished.
    """

    def run(make_work: MakeWork, sources: Sequence[Path], out: Path, *, fingerprint: str, label: str) -> list[Marker]:
        out = out.resolve()  # workers have another working directory
        found = {source: finished(source, out, fingerprint) for source in sources}
        todo = [source for source, marker in found.items() if marker is None]
        if todo:
            rows = {source.resolve(): rows_of(source) for source in sources}
            done = sum(rows[source.resolve()] for source, marker in found.items() if marker)
            with (
                Progress(label or "shards", total=sum(rows.values()), unit="rows", start=done) as progress,
                # Closed at once when a shard fails: workers must not go on behind the back of whoever tries again.
                closing(_results(config, make_work, [source.resolve() for source in todo], out, fingerprint)) as results,
            ):
                for row in results:
                    _raise_failure(row)
                    progress.advance(rows[Path(row["source"])])
        markers = [finished(source, out, fingerprint) for source in sources]
        lost = [str(source) for source, marker in zip(sources, markers, strict=True) if marker is None]
        if lost:
            raise ShardError(f"{len(lost)} shards were reported complete but left no marker in {out}, first {lost[0]}")
        return [marker for marker in markers if marker is not None]

    return run


class RunShards:
    """The Ray actor: builds the work when its first shard arrives, then runs one shard per call. Never raises for a shard."""

    def __init__(self, make_work: MakeWork, out: Path, fingerprint: str) -> None:
        self.make_work, self.out, self.fingerprint = make_work, out, fingerprint
        self.work: ShardWork | None = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([self._run(source) for source in batch["source"].to_pylist()], schema=_RESULT)

    def _run(self, source: str) -> dict[str, Any]:
        try:
            self.work = self.work or self.make_work()
            run_shard(self.work, Path(source), self.out, self.fingerprint)
        except InputError as error:
            return {"source": source, "mistake": str(error), "failure": None}
        except Exception:
            return {"source": source, "mistake": None, "failure": traceback.format_exc()}
        return {"source": source, "mistake": None, "failure": None}


_RESULT = pa.schema([("source", pa.string()), ("mistake", pa.string()), ("failure", pa.string())])


def _results(
    config: SessionConfig, make_work: MakeWork, sources: list[Path], out: Path, fingerprint: str
) -> Generator[dict[str, Any], None, None]:
    """One row per shard, as each completes."""
    ensure_session(config)
    import ray
    import ray.data

    for handler in logging.getLogger("ray.data").handlers:
        if handler.name == "console":  # its plans and hints are for Ray Data's developers; they stay in the session's log file
            handler.setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current().copy()
    context.execution_options.label_selector = selector_of(config.data_label)
    cpus = ray.cluster_resources().get("CPU", 1)
    workers = max(1, min(len(sources), config.data_workers or int(cpus), int(cpus / CPUS_PER_WORKER)))
    with ray.data.DataContext.current(context):
        shards = ray.data.from_items([{"source": str(source)} for source in sources], override_num_blocks=len(sources))
        results = shards.map_batches(
            RunShards,
            fn_constructor_kwargs={"make_work": make_work, "out": out, "fingerprint": fingerprint},
            # One shard in flight per worker: a queued shard would wait behind a long one while another worker is idle.
            compute=ray.data.ActorPoolStrategy(
                min_size=1, initial_size=workers, max_size=workers, max_tasks_in_flight_per_actor=1
            ),
            num_cpus=CPUS_PER_WORKER,
            batch_format="pyarrow",
            batch_size=1,
        )
        for batch in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from batch.to_pylist()


def _raise_failure(row: dict[str, Any]) -> None:
    if row["mistake"] is not None:
        raise InputError(row["mistake"])
    if row["failure"] is not None:
        raise ShardError(f"shard {Path(row['source']).stem} failed:\n{row['failure']}")
