"""The MLflow side of `cluster.tracking`: runs whose records go through an outbox. Importing it imports MLflow."""

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from cluster import InputError
from cluster.mlflow_sending import Begin, RunSender, exists, no_answer, reason_of, when_unlocked
from cluster.outbox import Losses, Outbox, Parcel, close
from cluster.store_uri import sqlite_file
from cluster.tracking import Run
from filtering.files import write_json
from filtering.secrets import masked, masked_tree

LONGEST_TEXT = 6000
LONGEST_DIGEST = 36
"""MLflow's own limits."""


class MlflowRun:
    """A `cluster.tracking.Run` in an MLflow store. Nothing here waits for the store, or fails with it."""

    def __init__(self, sender: RunSender, records: Outbox, files: Outbox) -> None:
        self._sender, self._records, self._files = sender, records, files

    @property
    def run_id(self) -> str:
        return self._sender.run_id

    def tags(self, values: Mapping[str, object]) -> None:
        tags = [RunTag(_name(key), self._text(value, key)) for key, value in values.items()]
        self._records.put(Parcel("tags", tags, self._sender.tags))

    def params(self, values: Mapping[str, object]) -> None:
        params = [Param(_name(key), self._text(value, key)) for key, value in values.items()]
        self._records.put(Parcel("parameters", params, self._sender.params))

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        now = int(time.time() * 1000)
        points = [Metric(_name(key), float(value), now, step) for key, value in values.items()]
        self._records.put(Parcel("metric points", points, self._sender.metrics, may_go=True))

    def dataset(self, name: str, *, source: str, digest: str, context: str) -> None:
        entry = (name, digest[:LONGEST_DIGEST], masked(source), context)
        self._records.put(Parcel("datasets", [entry], self._sender.datasets))

    def table(self, rows: Sequence[Mapping[str, object]], file: str) -> None:
        columns = list(rows[0]) if rows else []
        self._put_file([({column: [row[column] for row in rows] for column in columns}, file)], self._sender.table)

    def document(self, value: Mapping[str, object], file: str) -> None:
        self._put_file([(masked_tree(value), file)], self._sender.document)

    def artifact(self, path: Path, folder: str = "") -> None:
        self._put_file([(path, folder)], self._sender.artifact)

    @contextmanager
    def running(self) -> Iterator[None]:
        """RUNNING inside the block; FINISHED, FAILED or KILLED after it."""
        self._status("RUNNING", None)
        status = "FAILED"
        try:
            yield
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            self._status(status, int(time.time() * 1000))

    def _status(self, status: str, ended: int | None) -> None:
        self._records.put(Parcel("run status", [(status, ended)], self._sender.status))

    def _text(self, value: object, key: str) -> str:
        text = masked(str(value))
        if len(text) <= LONGEST_TEXT:
            return text
        self._sender.losses.add("ends of long texts", 1, f"{key} has {len(text)} letters, {LONGEST_TEXT} are kept")
        return text[: LONGEST_TEXT - 4] + " ..."

    def _put_file(self, entries: list[Any], send: Any) -> None:
        """Files have an outbox of their own, lest a place for them that hangs hold up numbers; it gets them when the run is."""
        parcel = Parcel("artifacts", entries, send)
        self._records.put(Parcel("artifacts", entries, lambda entries: self._files.put(parcel)))


class MlflowTracker(MlflowRun):
    """A `cluster.tracking.Tracker`: the parent run of a run folder, which remembers it and its children in `mlflow.json`."""

    def __init__(self, client: MlflowClient, run_id: str, memory: "Memory") -> None:
        self._client, self._memory, self._losses = client, memory, Losses()
        sender = RunSender(client, self._losses, run_id)
        sender.look()
        super().__init__(sender, *(Outbox(sender.answers, self._losses, name) for name in ("records", "files")))
        self.uri, self.experiment = memory.uri, memory.experiment

    @classmethod
    def open(cls, uri: str, experiment: str, run_dir: Path, name: str) -> Self:
        """Raises InputError where the store cannot be used."""
        memory = Memory(run_dir / "mlflow.json", uri, experiment)

        def open_run() -> tuple[MlflowClient, str]:
            _try_database(uri)
            client = MlflowClient(tracking_uri=uri)
            experiment_id = _experiment(client, uri, experiment)
            run_id = memory.run_id("")
            if not run_id or not exists(client, run_id):
                memory.forget()
                run_id = client.create_run(experiment_id, run_name=name).info.run_id
                memory.remember("", run_id)
            return client, run_id

        try:
            return when_unlocked(lambda: cls(*open_run(), memory))
        except Exception as error:  # SQLAlchemy's, the network's and MLflow's own have no common base
            what = "no MLflow server answers at" if uri.startswith("http") and no_answer(error) else "MLflow cannot use"
            message = f"tracking.uri: {what} {uri} ({reason_of(error)}); start one, correct it, or set tracking.enabled=false"
            raise InputError(masked(" ".join(message.split()))) from None

    @property
    def not_recorded(self) -> Mapping[str, int]:
        return dict(self._losses.counts)

    @contextmanager
    def child(self, name: str, *, stage: str) -> Iterator[Run]:
        sender = RunSender(self._client, self._losses)
        key = f"{stage}/{name}"
        begin = Begin(
            name=name,
            stage=stage,
            parent=self.run_id,
            began=int(time.time() * 1000),
            known_id=self._memory.run_id(key),
            remember=lambda run_id: self._memory.remember(key, run_id),
        )
        self._records.put(Parcel("runs", [begin], sender.begin))
        run = MlflowRun(sender, self._records, self._files)
        with run.running():
            yield run

    def abandon(self) -> None:
        with suppress(Exception):  # a store that does not answer, in whatever words: nobody is left to tell
            for run_id in self._memory.run_ids:
                if self._client.get_run(run_id).info.status == "RUNNING":
                    self._client.set_terminated(run_id, "KILLED")

    def close(self, *, interrupted: bool = False) -> None:
        """Send what waits, for a bounded time, and tell what was not recorded."""
        close([self._records, self._files], self._losses, interrupted=interrupted)


class Memory:
    """`mlflow.json` of a run folder: the store, and the id of each run; "" is the parent's name."""

    def __init__(self, file: Path, uri: str, experiment: str) -> None:
        self.file, self.uri, self.experiment = file, uri, experiment
        self._where = {"tracking_uri": masked(uri), "experiment": experiment}  # a new password is no new store
        try:
            known: Any = json.loads(file.read_text(encoding="utf-8"))
            same = {key: masked(known[key]) for key in self._where} == self._where
            self._runs: dict[str, str] = {"": known["run_id"], **known["children"]} if same else {}
        except (OSError, ValueError, KeyError, TypeError):
            self._runs = {}

    def run_id(self, name: str) -> str:
        return self._runs.get(name, "")

    @property
    def run_ids(self) -> list[str]:
        """Of the parent and all of its children."""
        return list(self._runs.values())

    def forget(self) -> None:
        self._runs = {}

    def remember(self, name: str, run_id: str) -> None:
        self._runs[name] = run_id
        children = {name: run_id for name, run_id in self._runs.items() if name}
        write_json(self.file, {**self._where, "run_id": self._runs[""], "children": children})


def _try_database(uri: str) -> None:
    """Connect to a database once: MLflow itself would try for minutes."""
    if uri.startswith(("http", "databricks")):
        return
    from mlflow.store.db.utils import create_sqlalchemy_engine

    file = sqlite_file(uri)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
    engine = create_sqlalchemy_engine(uri)
    try:
        engine.connect().close()
    finally:
        engine.dispose()


def _experiment(client: MlflowClient, uri: str, name: str) -> str:
    """The id of the experiment, created if need be. A SQLite store keeps its files beside the database."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        if found.lifecycle_stage == "deleted":
            raise InputError(f"its experiment '{name}' is deleted: restore it or set tracking.experiment")
        if not found.experiment_id or found.name != name:
            raise InputError("its answers are not those of an MLflow server")
        return str(found.experiment_id)
    file = sqlite_file(uri)
    files = (file.resolve().parent / "mlartifacts").as_uri() if file else None
    try:
        return str(client.create_experiment(name, artifact_location=files))
    except MlflowException:
        created = client.get_experiment_by_name(name)  # by another run, at the same time
        if created is None:
            raise
        return str(created.experiment_id)


def _name(key: str) -> str:
    """A name with letters that MLflow takes."""
    return re.sub(r"[^\w.\- :/]", "_", key)
