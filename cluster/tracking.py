"""Experiment tracking: MLflow behind a small protocol, and a null twin that keeps nothing.

One parent run per run folder, one child run per stage and method. The folder remembers their ids (`mlflow.json`), so that a
resumed run continues the same MLflow runs. Tracking never stops work, nor does work wait for it: during an outage records wait
for its end, and what could not be recorded is told with counts.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cluster import InputError
from cluster.store_uri import check_uri


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where runs are recorded."""

    enabled: bool = True
    """Record runs in MLflow."""
    uri: str = ""
    """MLflow store: http(s)://user:password@server:port, sqlite:///file, postgresql://... and the like, databricks; empty: what
    MLFLOW_TRACKING_URI says, else mlflow.db beside the run's folder, which the runs there share."""
    experiment: str = "open-world-segmentation"
    """MLflow experiment that the runs belong to."""
    parent: str = ""
    """Id of the MLflow run, in the same store, below which this one is shown; empty: none."""

    def __post_init__(self) -> None:
        if self.uri:
            check_uri(self.uri)
        if not self.experiment:
            raise InputError("experiment must not be empty: name the MLflow experiment")


@dataclass(frozen=True, kw_only=True)
class Data:
    """Data that a run reads or writes. One digest stands for the same data wherever it lies."""

    name: str
    source: str
    digest: str
    profile: Mapping[str, object] = field(default_factory=dict)
    """What there is of it: {"images": 1449, "classes": 21}, say."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A segmenter that scores belong to. Its weights stay where they are; MLflow gets their digest and their place."""

    name: str
    digest: str
    """Of all that decides its masks."""
    kind: str
    """For searches: the method's name."""
    params: Mapping[str, object] = field(default_factory=dict)
    tags: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class RunOf:
    """A tag's value: MLflow's id of the child with this name, which is known when the tag is sent."""

    child: str


class Run(Protocol):
    """A record of one piece of work. What a resumed run logs again with the same value is kept once.

    Nothing here waits or fails: records are sent in the background, and files are read when they are sent.
    """

    def tags(self, values: Mapping[str, object]) -> None:
        """Words to find the run by; the last value counts."""

    def describe(self, markdown: str) -> None:
        """The text on the run's page; [[train tcl]] becomes a link to the child run of that name."""

    def params(self, values: Mapping[str, object]) -> None:
        """Settings of the work. The first value counts; where it changes, the tag "changed.<key>" has the last one."""

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Numbers at a step, named "mIoU/voc21" or "train/loss". Cheap: written in batches."""

    def scores(self, values: Mapping[str, float], *, model: str, data: Data | None = None) -> None:
        """Metrics of the model with this digest, which `model` has recorded, on a dataset (on several: None)."""

    def model(self, model: Model, *, made: bool) -> None:
        """A model that the work made, or else read."""

    def dataset(self, data: Data, context: str) -> None:
        """Data that the work read or wrote: `context` is "training" or "evaluation"."""

    def table(self, rows: Sequence[Mapping[str, object]], file: str) -> None:
        """Rows with the same keys, shown as a table; `file` is "per_class.json", say. Replaces an older one."""

    def document(self, value: Mapping[str, object] | str, file: str) -> None:
        """A nested dict as `file` (.yaml or .json), or a text."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """A file or a folder with all that is in it."""

    def image(self, path: Path, key: str, step: int = 0) -> None:
        """A picture in the viewer that has a slider over steps; replaces an older one of the key and step."""


class Tracker(Run, Protocol):
    """The parent run."""

    @property
    def run_id(self) -> str:
        """MLflow's id; empty where nothing is recorded."""

    @property
    def experiment_id(self) -> str: ...

    @property
    def uri(self) -> str:
        """The MLflow store, with its secrets; empty where nothing is recorded."""

    @property
    def experiment(self) -> str: ...

    @property
    def not_recorded(self) -> Mapping[str, int]:
        """How many records of which kind were given up; complete when the tracker is closed."""

    def abandon(self) -> None:
        """Record, without waiting for anything else, that runs under way were killed: the process is about to end."""

    def child(self, name: str, *, stage: str) -> AbstractContextManager[Run]:
        """The run of one stage or method, which ends FINISHED, or FAILED when an exception leaves the block.

        While it lasts, the load of each node is recorded as system metrics.
        """


class NullTracker:
    """The plain twin: a Run and a Tracker that keep nothing."""

    run_id = experiment_id = uri = experiment = ""
    not_recorded: Mapping[str, int] = {}

    def tags(self, values: Mapping[str, object]) -> None: ...
    def describe(self, markdown: str) -> None: ...
    def params(self, values: Mapping[str, object]) -> None: ...
    def metrics(self, values: Mapping[str, float], step: int = 0) -> None: ...
    def scores(self, values: Mapping[str, float], *, model: str, data: Data | None = None) -> None: ...
    def model(self, model: Model, *, made: bool) -> None: ...
    def dataset(self, data: Data, context: str) -> None: ...
    def table(self, rows: Sequence[Mapping[str, object]], file: str) -> None: ...
    def document(self, value: Mapping[str, object] | str, file: str) -> None: ...
    def artifact(self, path: Path, folder: str = "") -> None: ...
    def abandon(self) -> None: ...
    def image(self, path: Path, key: str, step: int = 0) -> None: ...

    @contextmanager
    def child(self, name: str, *, stage: str) -> Iterator[Run]:
        yield self
