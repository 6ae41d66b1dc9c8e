"""The MLflow side of `cluster.tracking`: runs by id, metrics in batches, outages survived. Importing it imports MLflow."""

import json
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from cluster import InputError
from cluster.tracking import NullTracker, Run
from filtering.files import write_json

T = TypeVar("T")
logger = logging.getLogger(__name__)

METRICS_PER_BATCH = 1000
PARAMS_PER_BATCH = 100
LONGEST_TEXT = 6000
LONGEST_DIGEST = 36
"""MLflow's own limits."""

SECONDS_BETWEEN_BATCHES = 5.0
SECONDS_AFTER_OUTAGE = 60.0
WAITING_METRICS = 100_000
"""How many points an outage may hold back before the oldest are given up."""
LOCKED = "database is locked"
LOCKED_SECONDS = 60.0
"""How long another process may hold an SQLite store before that counts as an outage."""


class Outage:
    """Runs calls to the store. A failure is reported once, and the store is left alone for a while."""

    def __init__(self) -> None:
        self._quiet_until = 0.0
        self._told = False

    def call(self, function: Callable[[], object]) -> bool:
        """Whether `function` went through."""
        if time.monotonic() < self._quiet_until:
            return False
        try:
            when_unlocked(function)
        except Exception as error:  # whatever a store, a network or a disk may raise: tracking must not stop the work
            self._quiet_until = time.monotonic() + SECONDS_AFTER_OUTAGE
            if not self._told:
                self._told = True
                logger.warning("MLflow cannot be reached, work continues without it: %s", first_line(error))
            return False
        return True


def when_unlocked(function: Callable[[], T]) -> T:
    """What `function` returns. An SQLite store that other runs write at the same time may refuse a while, whatever its timeout:

    where two that read both want to write, it makes one of them begin again.
    """
    end = time.monotonic() + LOCKED_SECONDS
    while True:
        try:
            return function()
        except Exception as error:
            if LOCKED not in str(error) or time.monotonic() > end:
                raise
            time.sleep(random.uniform(0.05, 0.5))


class MlflowRun:
    """A `cluster.tracking.Run` in an MLflow store, begun just now or taken up again."""

    def __init__(self, client: MlflowClient, run_id: str, outage: Outage) -> None:
        self.run_id = run_id
        self._client, self._outage = client, outage
        self._waiting: list[Metric] = []
        self._last_batch = time.monotonic()
        run = client.get_run(run_id)
        self._params = set(run.data.params)
        self._datasets = {(item.dataset.name, item.dataset.digest) for item in run.inputs.dataset_inputs}
        self._before = set(run.data.metrics)
        self._newest: dict[str, tuple[int, float]] = {}

    def tags(self, values: Mapping[str, object]) -> None:
        tags = [RunTag(key, _text(value)) for key, value in values.items()]
        self._outage.call(lambda: self._client.log_batch(self.run_id, tags=tags))

    def params(self, values: Mapping[str, object]) -> None:
        new = [Param(key, _text(value)) for key, value in values.items() if key not in self._params]
        for start in range(0, len(new), PARAMS_PER_BATCH):
            batch = new[start : start + PARAMS_PER_BATCH]
            if self._outage.call(lambda batch=batch: self._client.log_batch(self.run_id, params=batch)):  # type: ignore[misc]
                self._params.update(param.key for param in batch)

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        now = int(time.time() * 1000)
        self._waiting += [Metric(key, float(value), now, step) for key, value in values.items()]
        if len(self._waiting) >= METRICS_PER_BATCH or time.monotonic() - self._last_batch >= SECONDS_BETWEEN_BATCHES:
            self.flush()

    def flush(self) -> None:
        self._last_batch = time.monotonic()
        self._waiting = self._waiting[-WAITING_METRICS:]
        while self._waiting:
            batch = self._waiting[:METRICS_PER_BATCH]
            if not self._outage.call(lambda batch=batch: self._log_new(batch)):  # type: ignore[misc]
                return
            del self._waiting[:METRICS_PER_BATCH]

    def dataset(self, name: str, *, source: str, digest: str, context: str) -> None:
        digest = digest[:LONGEST_DIGEST]
        if (name, digest) in self._datasets:
            return
        dataset = Dataset(name, digest, "local", json.dumps({"uri": source}))
        item = DatasetInput(dataset, [InputTag("mlflow.data.context", context)])
        if self._outage.call(lambda: self._client.log_inputs(self.run_id, datasets=[item])):
            self._datasets.add((name, digest))

    def table(self, rows: Sequence[Mapping[str, object]], file: str) -> None:
        columns = list(rows[0]) if rows else []
        data = {column: [row[column] for row in rows] for column in columns}

        def log() -> None:
            folder = str(Path(file).parent)
            there = self._client.list_artifacts(self.run_id, None if folder == "." else folder)
            if any(item.path == file for item in there):  # log_table would add the rows to those of the older table
                self._client.log_dict(self.run_id, {"columns": columns, "data": [list(row.values()) for row in rows]}, file)
            else:
                self._client.log_table(self.run_id, data, file)

        self._outage.call(log)

    def document(self, value: Mapping[str, object], file: str) -> None:
        self._outage.call(lambda: self._client.log_dict(self.run_id, dict(value), file))

    def artifact(self, path: Path, folder: str = "") -> None:
        log = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        self._outage.call(lambda: log(self.run_id, str(path), folder or None))

    @contextmanager
    def running(self) -> Iterator[None]:
        """RUNNING inside the block; FINISHED, FAILED or KILLED after it."""
        self._outage.call(lambda: self._client.update_run(self.run_id, status="RUNNING"))
        status = "FAILED"
        try:
            yield
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            self.flush()
            self._outage.call(lambda: self._client.set_terminated(self.run_id, status))

    def _log_new(self, batch: list[Metric]) -> None:
        new = [metric for metric in batch if not self._known(metric)]
        if new:
            self._client.log_batch(self.run_id, metrics=new)

    def _known(self, metric: Metric) -> bool:
        """Whether an earlier start of this run logged the point: work replays the steps after its last checkpoint."""
        if metric.key not in self._before:
            return False
        if metric.key not in self._newest:
            history = self._client.get_metric_history(self.run_id, metric.key)
            newest = max(history, key=lambda point: (point.step, point.timestamp))
            self._newest[metric.key] = (newest.step, newest.value)
        step, value = self._newest[metric.key]
        return bool(metric.step < step or (metric.step == step and metric.value == value))


class MlflowTracker(MlflowRun):
    """A `cluster.tracking.Tracker`: the parent run of a run folder, which remembers it and its children in `mlflow.json`."""

    def __init__(self, client: MlflowClient, run_id: str, memory: "Memory") -> None:
        super().__init__(client, run_id, Outage())
        self._memory = memory
        self.uri, self.experiment = memory.uri, memory.experiment

    @classmethod
    def open(cls, uri: str, experiment: str, run_dir: Path, name: str) -> Self:
        """Raises InputError where the store refuses."""
        memory = Memory(run_dir / "mlflow.json", uri, experiment)

        def open_run() -> tuple[MlflowClient, str]:
            client = MlflowClient(tracking_uri=uri)
            experiment_id = _experiment(client, uri, experiment)
            run_id = memory.run_id("")
            if not run_id or not _exists(client, run_id):
                memory.forget()
                run_id = client.create_run(experiment_id, run_name=name).info.run_id
                memory.remember("", run_id)
            return client, run_id

        try:
            return when_unlocked(lambda: cls(*open_run(), memory))
        except Exception as error:  # SQLAlchemy's, the network's and MLflow's own have no common base
            raise InputError(f"tracking.uri: MLflow cannot use {uri} ({first_line(error)}); correct it or empty it") from error

    @contextmanager
    def child(self, name: str, *, stage: str) -> Iterator[Run]:
        run = self._open_child(name, stage)
        if run is None:
            yield NullTracker()
            return
        with run.running():
            yield run

    def _open_child(self, name: str, stage: str) -> MlflowRun | None:
        runs: list[MlflowRun] = []

        def open_run() -> None:
            run_id = self._memory.run_id(f"{stage}/{name}")
            if not run_id or not _exists(self._client, run_id):
                tags = {"mlflow.parentRunId": self.run_id, "stage": stage, "name": name}
                experiment_id = self._client.get_run(self.run_id).info.experiment_id
                run_id = self._client.create_run(experiment_id, tags=tags, run_name=name).info.run_id
                self._memory.remember(f"{stage}/{name}", run_id)
            runs.append(MlflowRun(self._client, run_id, self._outage))

        self._outage.call(open_run)
        return runs[0] if runs else None


class Memory:
    """`mlflow.json` of a run folder: the store, and the id of each run; "" is the parent's name."""

    def __init__(self, file: Path, uri: str, experiment: str) -> None:
        self.file, self.uri, self.experiment = file, uri, experiment
        try:
            known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            known = {}
        same = known.get("tracking_uri") == uri and known.get("experiment") == experiment
        self._runs: dict[str, str] = {"": known["run_id"], **known["children"]} if same else {}

    def run_id(self, name: str) -> str:
        return self._runs.get(name, "")

    def forget(self) -> None:
        self._runs = {}

    def remember(self, name: str, run_id: str) -> None:
        self._runs[name] = run_id
        children = {name: run_id for name, run_id in self._runs.items() if name}
        where = {"tracking_uri": self.uri, "experiment": self.experiment}
        write_json(self.file, {**where, "run_id": self._runs[""], "children": children})


def first_line(error: BaseException) -> str:
    """An error in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _experiment(client: MlflowClient, uri: str, name: str) -> str:
    """The id of the experiment, created if need be. A SQLite store keeps its files beside the database."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        if found.lifecycle_stage != "active":
            raise InputError(f"its experiment '{name}' is deleted: restore it or set tracking.experiment")
        return str(found.experiment_id)
    files = None
    if uri.startswith("sqlite:///"):
        files = (Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts").as_uri()
    return str(client.create_experiment(name, artifact_location=files))


def _exists(client: MlflowClient, run_id: str) -> bool:
    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def _text(value: object) -> str:
    text = str(value)
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 4] + " ..."
