"""The MLflow side of `cluster.tracking`: runs whose records go through an outbox. Importing it imports MLflow."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from cluster import InputError
from cluster.mlflow_memory import TOKEN, Memory
from cluster.mlflow_models import ModelSender
from cluster.mlflow_sending import Begin, exists, no_answer, reason_of, when_unlocked
from cluster.outbox import Losses, Outbox, Parcel, close
from cluster.store_uri import ARTIFACTS, artifacts_here, sqlite_file
from cluster.system_metrics import Loads
from cluster.tracking import Data, Model, Run, RunOf
from filtering.secrets import masked, masked_tree

LONGEST_TEXT = 6000
LONGEST_DIGEST = 36
"""MLflow's own limits."""


class MlflowRun:
    """A `cluster.tracking.Run` in an MLflow store. Nothing here waits for the store, or fails with it."""

    def __init__(self, sender: ModelSender, records: Outbox, files: Outbox) -> None:
        self._sender, self._records, self._files = sender, records, files

    @property
    def run_id(self) -> str:
        return self._sender.run_id

    def tags(self, values: Mapping[str, object]) -> None:
        tags = [(_name(key), value if isinstance(value, RunOf) else self._text(value, key)) for key, value in values.items()]
        self._records.put(Parcel("tags", tags, self._sender.tags))

    def describe(self, markdown: str) -> None:
        self._records.put(Parcel("descriptions", [self._text(markdown, "the description")], self._sender.describe))

    def params(self, values: Mapping[str, object]) -> None:
        params = [Param(_name(key), self._text(value, key)) for key, value in values.items()]
        self._records.put(Parcel("parameters", params, self._sender.params))

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        self._records.put(Parcel("metric points", self._points(values, step), self._sender.metrics, may_go=True))

    def scores(self, values: Mapping[str, float], *, model: str, data: Data | None = None) -> None:
        known = {"dataset_name": data.name, "dataset_digest": data.digest[:LONGEST_DIGEST]} if data else {}
        points = [(point, model) for point in self._points(values, 0, **known)]
        self._records.put(Parcel("metric points", points, self._sender.scores))

    def model(self, model: Model, *, made: bool) -> None:
        entry = replace(model, params=self._texts(model.params), tags=self._texts(model.tags))
        self._records.put(Parcel("models", [(entry, made)], self._sender.logged_models))

    def dataset(self, data: Data, context: str) -> None:
        entry = replace(data, digest=data.digest[:LONGEST_DIGEST], source=masked(data.source))
        self._records.put(Parcel("datasets", [(entry, context)], self._sender.datasets))

    def table(self, rows: Sequence[Mapping[str, object]], file: str) -> None:
        columns = list(rows[0]) if rows else []
        self._put_file([({column: [row[column] for row in rows] for column in columns}, file)], self._sender.table)

    def document(self, value: Mapping[str, object] | str, file: str) -> None:
        self._put_file([(masked(value) if isinstance(value, str) else masked_tree(value), file)], self._sender.document)

    def artifact(self, path: Path, folder: str = "") -> None:
        self._put_file([(path, folder)], self._sender.artifact)

    def image(self, path: Path, key: str, step: int = 0) -> None:
        self._put_file([(path, key, step)], self._sender.images)

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

    def _points(self, values: Mapping[str, float], step: int, **dataset: str) -> list[Metric]:
        now = int(time.time() * 1000)
        return [Metric(_name(key), float(value), now, step, **dataset) for key, value in values.items()]

    def _status(self, status: str, ended: int | None) -> None:
        self._records.put(Parcel("run status", [(status, ended)], self._sender.status))

    def _texts(self, values: Mapping[str, object]) -> dict[str, str]:
        return {_name(key): self._text(value, key) for key, value in values.items()}

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

    def __init__(self, client: MlflowClient, run_id: str, memory: Memory) -> None:
        self._client, self._memory, self._losses = client, memory, Losses()
        sender = ModelSender(client, self._losses, memory, run_id)
        sender.look()
        self._loads = Loads()
        self.everywhere: Mapping[str, object] = {}
        """Tags that each child has, too."""
        super().__init__(sender, *(Outbox(sender.answers, self._losses, name) for name in ("records", "files")))
        self.uri, self.experiment, self.experiment_id = memory.uri, memory.experiment, sender.experiment_id

    @classmethod
    def open(cls, uri: str, experiment: str, run_dir: Path, name: str) -> Self:
        """Raises InputError where the store cannot be used."""
        memory = Memory(run_dir, uri, experiment)

        def open_run() -> tuple[MlflowClient, str]:
            _try_database(uri)
            client = MlflowClient(tracking_uri=uri)
            experiment_id = _experiment(client, uri, experiment)
            return client, _own_run(client, experiment_id, memory, name)

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
        sender = ModelSender(self._client, self._losses, self._memory)
        begin = Begin(name=name, stage=stage, parent=self.run_id, began=int(time.time() * 1000))
        self._records.put(Parcel("runs", [begin], sender.begin))
        run = MlflowRun(sender, self._records, self._files)
        with run.running(), self._loads.told_to(run):
            run.tags(self.everywhere)
            yield run

    def abandon(self) -> None:
        with suppress(Exception):  # a store that does not answer, in whatever words: nobody is left to tell
            for run_id in self._memory.run_ids:
                if self._client.get_run(run_id).info.status == "RUNNING":
                    self._client.set_terminated(run_id, "KILLED")

    def close(self, *, interrupted: bool = False) -> None:
        """Send what waits, for a bounded time, and tell what was not recorded."""
        close([self._records, self._files], self._losses, interrupted=interrupted)


def _own_run(client: MlflowClient, experiment_id: str, memory: Memory, name: str) -> str:
    """The id of the folder's parent run, begun where it has none, or is a copy of a folder that has one."""
    run_id, copied = memory.run_id(""), {}
    known = bool(run_id) and exists(client, run_id)
    if known and memory.is_copy(client.get_run(run_id).data.tags.get(TOKEN, "")):
        copied = {"copied_from.run": run_id, "copied_from.folder": memory.folder_before}
    if copied or not known:
        memory.forget()
        run_id = str(client.create_run(experiment_id, run_name=name, tags=copied).info.run_id)
        memory.remember("", run_id)
    client.set_tag(run_id, TOKEN, memory.own())
    return run_id


def _try_database(uri: str) -> None:
    """Connect to a database once: MLflow itself would try for minutes."""
    if uri.startswith(("http", "databricks")):
        return
    from mlflow.store.db.utils import create_sqlalchemy_engine

    file = sqlite_file(uri)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        artifacts_here(file.resolve())
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
    files = (file.resolve().parent / ARTIFACTS).as_uri() if file else None
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
