"""What an outbox does with the records of an MLflow run: batches; what is refused is left out alone; nothing is sent twice."""

import json
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from cluster.mlflow_memory import Memory
from cluster.outbox import Losses, Unreachable
from cluster.store_uri import CLASSIC
from cluster.tracking import Data, RunOf

T = TypeVar("T")
METRICS_PER_BATCH = 1000
PARAMS_PER_BATCH = 100
"""MLflow's own limits."""
LINK = re.compile(r"\[\[(.+?)\]\]")
LOCKED = "database is locked"
LOCKED_SECONDS = 60.0
"""How long another process may hold an SQLite store before that counts as an outage."""
REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST", "MALFORMED_REQUEST")
"""MLflow's codes for what it will not take, however often it is asked."""


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


class Refused(Exception):  # noqa: N818 -- never leaves the sending
    """The store answers, and will not take this."""


def ask(function: Callable[[], T]) -> T:
    """What the store answers. Raises Refused, or Unreachable where there is no answer that settles it."""
    try:
        return when_unlocked(function)
    except (Refused, Unreachable):
        raise
    except MlflowException as error:
        refused = error.error_code in REFUSALS
        raise (Refused if refused else Unreachable)(reason_of(error)) from error
    except (TypeError, ValueError, AttributeError) as error:  # what cannot be written as JSON, say
        raise Refused(f"{type(error).__name__}: {error}") from error
    except Exception as error:  # SQLAlchemy's, the network's and the disk's have no common base
        raise Unreachable(reason_of(error)) from error


def reason_of(error: BaseException) -> str:
    """What is behind an error, in one line: what the system said where it said anything, else the message's first line."""
    found = ""
    for inner in _behind(error):
        if isinstance(inner, OSError) and inner.strerror:
            found = inner.strerror
        elif isinstance(inner, HTTPException):
            found = f"no HTTP: {inner}"
        elif isinstance(inner, TimeoutError):
            found = "no answer in time"
        elif isinstance(inner, ModuleNotFoundError):
            found = f"its driver is not installed here: the Python package {inner.name}"
    return " ".join(found.split()) or (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def no_answer(error: BaseException) -> bool:
    """Whether nothing came back at all."""
    return any((isinstance(one, OSError) and one.strerror) or isinstance(one, TimeoutError) for one in _behind(error))


def _behind(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that it came from or wraps, as urllib3 does."""
    yield error
    for inner in (error.__cause__, error.__context__, *error.args):
        if isinstance(inner, BaseException) and inner is not error:
            yield from _behind(inner)


@dataclass(frozen=True)
class Begin:
    """A child run to be begun or taken up again."""

    name: str
    stage: str
    parent: str
    began: int


class RunSender:
    """The store's side of one run; its methods are what parcels send with. Only the outbox's thread calls them."""

    def __init__(self, client: MlflowClient, losses: Losses, memory: Memory, run_id: str = "") -> None:
        self.run_id = run_id
        self.client, self.losses, self.memory = client, losses, memory
        self._params: dict[str, str] = {}
        self._datasets: set[tuple[str, str]] = set()
        self._before: set[str] = set()
        self._newest: dict[str, tuple[int, float]] = {}

    def look(self) -> None:
        """Read what an earlier start has recorded already."""
        run = ask(lambda: self.client.get_run(self.run_id))
        self.experiment_id, self.began = str(run.info.experiment_id), int(run.info.start_time)
        self.models = {model.model_id for model in (*run.inputs.model_inputs, *run.outputs.model_outputs)}
        self._params = dict(run.data.params)
        self._datasets = {(item.dataset.name, item.dataset.digest) for item in run.inputs.dataset_inputs}
        self._before = set(run.data.metrics)

    def begin(self, entries: list[Begin]) -> None:
        """Create the run unless it is there: an earlier start made it, or an attempt whose answer was lost."""
        (begin,) = entries
        key = f"{begin.stage}/{begin.name}"
        known = self.memory.run_id(key)
        run_id = known if known and ask(lambda: exists(self.client, known)) else ""
        if not run_id:
            experiment = ask(lambda: self.client.get_run(begin.parent)).info.experiment_id
            tags = {"mlflow.parentRunId": begin.parent, "stage": begin.stage, "name": begin.name}
            siblings = f"tags.`mlflow.parentRunId` = '{begin.parent}'"
            there = ask(lambda: self.client.search_runs([experiment], siblings))
            run = next((run for run in there if tags.items() <= run.data.tags.items()), None)
            if run is None:
                run = ask(lambda: self.client.create_run(experiment, begin.began, tags, run_name=begin.name))
            run_id = str(run.info.run_id)
            self.memory.remember(key, run_id)
        self.run_id = run_id
        self.look()

    def status(self, entries: list[tuple[str, int | None]]) -> None:
        """(RUNNING, None), or how the run ended, and when in milliseconds."""
        for status, ended in entries:
            if ended is None:
                tell = partial(self.client.update_run, self.run_id, status=status)
            else:
                tell = partial(self.client.set_terminated, self.run_id, status, ended)
            self.refusable("run status", tell)

    def tags(self, entries: list[tuple[str, str | RunOf]]) -> None:
        known = [(key, self.memory.child_id(value.child) if isinstance(value, RunOf) else value) for key, value in entries]
        self.put_tags([RunTag(key, value) for key, value in known if value])

    def describe(self, entries: list[str]) -> None:
        self.put_tags([RunTag("mlflow.note.content", LINK.sub(self._link, text)) for text in entries[-1:]])

    def _link(self, name: "re.Match[str]") -> str:
        run_id = self.memory.child_id(name[1])
        return f"[{name[1]}](#/experiments/{self.experiment_id}/runs/{run_id}?{CLASSIC})" if run_id else name[1]

    def put_tags(self, entries: list[RunTag]) -> None:
        self._batches("tags", entries, PARAMS_PER_BATCH, lambda part: self.client.log_batch(self.run_id, tags=part))

    def params(self, entries: list[Param]) -> None:
        """The first value counts, as MLflow will have it; a tag tells of another one."""
        changed = [param for param in entries if self._params.get(param.key, param.value) != param.value]
        self.put_tags([RunTag(f"changed.{param.key}", param.value) for param in changed])
        entries[:] = [param for param in entries if param.key not in self._params]

        def log(part: Sequence[Param]) -> None:
            self.client.log_batch(self.run_id, params=part)
            self._params.update({param.key: param.value for param in part})

        self._batches("parameters", entries, PARAMS_PER_BATCH, log)

    def metrics(self, entries: list[Metric]) -> None:
        def log(part: Sequence[Metric]) -> None:
            if new := [metric for metric in part if not self._known(metric)]:
                self.client.log_batch(self.run_id, metrics=new)

        self._batches("metric points", entries, METRICS_PER_BATCH, log)

    def datasets(self, entries: list[tuple[Data, str]]) -> None:
        for data, context in entries:
            if (data.name, data.digest) not in self._datasets:
                profile = json.dumps(dict(data.profile)) if data.profile else None
                dataset = Dataset(data.name, data.digest, "local", json.dumps({"uri": data.source}), profile=profile)
                item = DatasetInput(dataset, [InputTag("mlflow.data.context", context)])
                self.refusable("datasets", partial(self.client.log_inputs, self.run_id, datasets=[item]))
                self._datasets.add((data.name, data.digest))

    def table(self, entries: list[tuple[Mapping[str, list[Any]], str]]) -> None:
        for data, file in entries:

            def log(data: Mapping[str, list[Any]] = data, file: str = file) -> None:
                folder = str(Path(file).parent)
                there = self.client.list_artifacts(self.run_id, None if folder == "." else folder)
                if any(item.path == file for item in there):  # log_table would add the rows to those of the older table
                    rows = [list(row) for row in zip(*data.values(), strict=True)]
                    self.client.log_dict(self.run_id, {"columns": [*data], "data": rows}, file)
                else:
                    self.client.log_table(self.run_id, dict(data), file)

            self.file(log)

    def document(self, entries: list[tuple[Mapping[str, object] | str, str]]) -> None:
        for value, file in entries:
            if isinstance(value, str):
                self.file(partial(self.client.log_text, self.run_id, value, file))
            else:
                self.file(partial(self.client.log_dict, self.run_id, dict(value), file))

    def artifact(self, entries: list[tuple[Path, str]]) -> None:
        """Files one by one: what fails fails alone."""
        for path, folder in entries:
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if not file.is_dir():
                    below = file.parent.relative_to(path).as_posix() if path.is_dir() else "."
                    place = "/".join(part for part in (folder, below) if part not in ("", "."))
                    self.file(partial(self.client.log_artifact, self.run_id, str(file), place or None))

    def answers(self) -> bool:
        """Whether the store answers what is asked of this run."""
        try:
            ask(lambda: self.client.get_run(self.run_id))
        except Refused:
            return True
        except Unreachable:
            return False
        return True

    def file(self, log: Callable[[], object]) -> None:
        """Files lie in a place of their own: a failure there is none of the store's, which is asked."""
        try:
            when_unlocked(log)
        except Exception as error:
            if not self.answers():
                raise Unreachable(reason_of(error)) from error
            self.losses.add("artifacts", 1, reason_of(error))

    def refusable(self, kind: str, function: Callable[[], object]) -> None:
        try:
            ask(function)
        except Refused as refusal:
            self.losses.add(kind, 1, str(refusal))

    def _batches(self, kind: str, entries: list[T], size: int, log: Callable[[Sequence[T]], None]) -> None:
        """Send all entries, and take out of the list what is settled."""
        while entries:
            part = entries[:size]
            self._halves(kind, part, log)
            del entries[: len(part)]

    def _halves(self, kind: str, part: Sequence[T], log: Callable[[Sequence[T]], None]) -> None:
        """A refused batch is sent in halves, down to what is refused alone."""
        try:
            ask(lambda: log(part))
        except Refused as refusal:
            if len(part) == 1 or not ask(lambda: exists(self.client, self.run_id)):
                self.losses.add(kind, len(part), str(refusal))
                return
            middle = len(part) // 2
            self._halves(kind, part[:middle], log)
            self._halves(kind, part[middle:], log)

    def _known(self, metric: Metric) -> bool:
        """Whether an earlier start of this run logged the point: work replays the steps after its last checkpoint."""
        if metric.key not in self._before:
            return False
        if metric.key not in self._newest:
            history = self.client.get_metric_history(self.run_id, metric.key)
            newest = max(history, key=lambda point: (point.step, point.timestamp), default=Metric(metric.key, 0.0, 0, -1))
            self._newest[metric.key] = (newest.step, newest.value)
        step, value = self._newest[metric.key]
        return bool(metric.step < step or (metric.step == step and metric.value == value))


def exists(client: MlflowClient, run_id: str) -> bool:
    """Whether the store has the run, and has not deleted it."""
    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code in REFUSALS:
            return False
        raise
