"""What a sweep came to: one row for each setting and method over its seeds, with costs, and which differences are larger than noise."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table as RichTable

from cluster.tracking import Tracker
from filtering.stage import write_json
from owseg.evaluation.intervals import Difference, ImageCounts, difference_intervals, read_image_counts, row_intervals
from pipelines.context import SUMMARY
from pipelines.sweep_grid import Cell, Grid

JSON, MARKDOWN, PICTURE = "sweep.json", "sweep.md", "sweep.png"
AVERAGE = "average"


class Spread(NamedTuple):
    """A number over seeds."""

    mean: float
    lowest: float
    highest: float

    def __str__(self) -> str:
        """The mean, and (lowest..highest) where seeds differ."""
        one = f"{self.mean:.1f}"
        return one if self.lowest == self.highest else f"{one} ({self.lowest:.1f}..{self.highest:.1f})"


def spread(values: Sequence[float]) -> Spread:
    return Spread(fmean(values), min(values), max(values))


@dataclass(frozen=True)
class Finished:
    """A finished cell, and the stages of its summary."""

    cell: Cell
    run_id: str
    stages: Mapping[str, Any]

    @property
    def evaluated(self) -> Mapping[str, Any]:
        stage: Mapping[str, Any] = self.stages["evaluate"]
        return stage

    def counts(self, method: str) -> dict[str, ImageCounts]:
        """What each image counts for, by dataset."""
        folder = Path(self.cell.config.run_dir) / "evaluate" / method
        return {name: read_image_counts(folder / f"{name}.npz") for name in self.cell.config.evaluate.datasets}


@dataclass(frozen=True)
class Row:
    """A method under one setting and in one column, over its seeds."""

    setting: str
    method: str
    column: str
    runs: tuple[Finished, ...]

    @property
    def label(self) -> str:
        return " ".join(filter(None, [self.setting, self.method]))

    def scores(self, dataset: str) -> list[float]:
        """mIoU in percent, seed by seed."""
        return [run.evaluated["mIoU"][self.method][dataset] for run in self.runs]

    @property
    def datasets(self) -> list[str]:
        """Benchmarks, and "average"."""
        return list(self.runs[0].evaluated["mIoU"][self.method])
