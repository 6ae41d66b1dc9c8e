"""A finished run as it is compared: what it scored, what it cost, what it was made with."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from filtering.secrets import masked_tree
from owseg.evaluation.convert import read_json
from owseg.evaluation.intervals import AVERAGE, ImageCounts, read_image_counts
from pipelines.app.config import ConfigError, flatten, to_dict
from pipelines.app.read_run import config_of, open_to_read
from pipelines.app.roles import says_how
from pipelines.app.settings import Config
from pipelines.app.stage_marker import read_marker
from storage.client import StorageConfig
from storage.copies import fetched, names_in, shown
from storage.understood import Noted, fits, json_lines, shaped, understood

NOT_COMPARED = frozenset({"run_dir", "storage.scratch"})
"""Settings that say where a run lies."""
_EVALUATED = {
    "mIoU": {str: {AVERAGE: float, str: float}},
    "protocol": str,
    "digest": str,
    "data": {str: object},
    "averages": {str: {str: object}},
}
_STEP = {"step": float, "loss/total": float}


@dataclass(frozen=True)
class FinishedRun:
    """A run whose evaluation is complete."""

    name: str
    """What tells it from the others on the page."""
    folder: Path
    config: Config
    evaluated: Mapping[str, Any]
    """What its evaluation came to, as the summary has it, with "data" and "averages" where older versions have none."""
    notes: list[str] = field(default_factory=list)
    """Lines on files that are damaged, which the comparison goes on without."""

    @property
    def miou(self) -> dict[str, dict[str, float]]:
        """mIoU in percent by method and dataset, "average" among them."""
        found: dict[str, dict[str, float]] = self.evaluated["mIoU"]
        return found

    @property
    def best(self) -> str:
        """The method with the highest average."""
        return max(self.miou, key=lambda name: self.miou[name][AVERAGE])

    @property
    def protocol(self) -> str:
        """How it is scored, in words."""
        return str(self.evaluated["protocol"])

    @cached_property
    def costs(self) -> dict[str, dict[str, float]]:
        """What each training took, by method; empty for runs that recorded none."""
        marker = read_marker(self.folder, "train")
        with Noted(self.folder / "train.done.json", self.notes):
            found: dict[str, dict[str, float]] = shaped(marker.result.get("costs", {}) if marker else {}, {str: {str: float}})
            return found
        return {}

    @cached_property
    def settings(self) -> dict[str, object]:
        """Its settings by dotted key, secrets masked."""
        tree = masked_tree(to_dict(self.config))
        return {key: value for key, value in flatten(tree) if key not in NOT_COMPARED}

    @cached_property
    def mlflow_id(self) -> str:
        """The id of its run in MLflow; "" where nothing was recorded."""
        file = self.folder / "mlflow.json"
        if file.is_file():
            with Noted(file, self.notes):
                return str(shaped(json.loads(file.read_bytes()), {"run_id": str})["run_id"])
        return ""

    def counts(self, method: str) -> dict[str, ImageCounts]:
        """What each image counts for, by dataset. Raises InputError where a file is damaged or missing."""
        folder = self.folder / "evaluate" / method
        return {name: read_image_counts(fetched(folder / f"{name}.npz")) for name in self.datasets(method)}

    def datasets(self, method: str) -> list[str]:
        """The datasets that a method was scored on."""
        return [name for name in self.miou[method] if name != AVERAGE]

    def class_iou(self, method: str, dataset: str) -> dict[str, float | None]:
        """IoU in percent by class; None where one occurs nowhere. None at all, and a note, where the file is damaged."""
        file = self.folder / "evaluate" / method / f"{dataset}.json"
        with Noted(file, self.notes, also=(FileNotFoundError,)):
            found: dict[str, float | None] = shaped(read_json(fetched(file), "IoU"), {"IoU": {str: (float, None)}})["IoU"]
            return found
        return {}

    def losses(self, method: str) -> list[tuple[float, float]]:
        """Step and loss of each logged step of a training; none where it trained nothing here."""
        folder = self.folder / "train" / method
        if "metrics.jsonl" not in names_in(folder):
            return []
        steps = json_lines(fetched(folder / "metrics.jsonl").read_bytes())
        return [(float(step["step"]), float(step["loss/total"])) for step in steps if fits(step, _STEP)]

    def pictures(self, method: str) -> list[Path]:
        """The pictures of a method's predictions, here."""
        folder = self.folder / "evaluate" / "pictures" / method
        return [fetched(folder / name) for name in names_in(folder) if name.endswith(".png")]

    def same_images(self, other: "FinishedRun", dataset: str) -> bool:
        """Whether both were scored on the same data, as far as is known; images are compared by their names besides."""
        mine, theirs = (run.evaluated["data"].get(dataset) for run in (self, other))
        if mine and theirs:
            return bool(mine == theirs)
        roots = self.config.evaluate.root, other.config.evaluate.root
        return all(roots) or (not any(roots) and self.config.miniature == other.config.miniature)


def read_runs(given: Sequence[str], storage: StorageConfig) -> list[FinishedRun]:
    """The runs in folders, here or in object stores. Raises ConfigError for one that is not finished, or is named twice."""
    folders = [open_to_read(run, storage) for run in given]
    for run, folder in zip(given, folders, strict=True):
        if folders.count(folder) > 1:
            raise ConfigError(f"{run}: is named twice; name each run once")
    return [_read(folder, run, name) for folder, run, name in zip(folders, given, _names(folders), strict=True)]


def _read(folder: Path, run: str, name: str) -> FinishedRun:
    marker = read_marker(folder, "evaluate")
    if marker is None or not marker.result.get("mIoU"):
        raise ConfigError(f"{run}: its evaluation is not complete; finish it with python pipelines/evaluate.py")
    with understood(folder / "evaluate.done.json", "evaluate again, with python pipelines/evaluate.py"):
        evaluated = shaped({"data": {}, "averages": {}, **marker.result}, _EVALUATED)
    return FinishedRun(name, folder, config_of(folder), evaluated)


def _names(folders: Sequence[Path]) -> Iterator[str]:
    """The folders' own names, or as much of the way to them as tells them apart."""
    ways = [shown(folder).rstrip("/").split("/") for folder in folders]
    for way in ways:
        for parts in range(1, len(way) + 1):
            if sum(other[-parts:] == way[-parts:] for other in ways) == 1:
                break
        yield "/".join(way[-parts:])


def differing_settings(runs: Sequence[FinishedRun], *, how: bool) -> dict[str, list[object]]:
    """The settings in which runs differ, each with its values; `how`: those that have no say in results, or the others."""
    absent = "absent"
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    found = {key: [run.settings.get(key, absent) for run in runs] for key in keys if says_how(key) == how}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}
