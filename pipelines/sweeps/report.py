"""What a sweep came to: a row for each setting and method over its seeds, what it cost, and what of it is larger than noise."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from cluster.tracking import Tracker
from filtering.files import write_json
from filtering.secrets import masked_tree
from owseg import InputError
from owseg.evaluation.intervals import (
    AVERAGE,
    Difference,
    ImageCounts,
    Interval,
    difference_intervals,
    read_image_counts,
    row_intervals,
)
from pipelines.app.context import SUMMARY, where_recorded
from pipelines.app.records import by_dataset
from pipelines.sweeps.grid import Cell, Grid

JSON = "sweep.json"


class Spread(NamedTuple):
    """A number over seeds."""

    mean: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class Finished:
    """A finished cell, the id of its run in MLflow, its config's digest, and the stages of its summary."""

    cell: Cell
    run_id: str
    config_digest: str
    stages: Mapping[str, Any]

    @property
    def miou(self) -> dict[str, dict[str, float]]:
        """mIoU in percent by method and dataset, "average" among them."""
        found: dict[str, dict[str, float]] = self.stages["evaluate"]["mIoU"]
        return found

    @property
    def costs(self) -> dict[str, dict[str, float]]:
        """What each training took, by method."""
        found: dict[str, dict[str, float]] = self.stages["train"].get("costs", {})
        return found

    def counts(self, method: str) -> dict[str, ImageCounts]:
        """What each image counts for, by dataset."""
        folder = Path(self.cell.config.run_dir) / "evaluate" / method
        return {name: read_image_counts(folder / f"{name}.npz") for name in self.cell.config.evaluate.names}


@dataclass(frozen=True)
class Row:
    """A method under one setting and in one column, over its seeds."""

    setting: str
    column: str
    method: str
    runs: tuple[Finished, ...]

    @property
    def datasets(self) -> list[str]:
        """Benchmarks, and "average"."""
        return list(self.runs[0].miou[self.method])

    @property
    def supervision(self) -> str:
        """What the method's masks are learned from."""
        config = self.runs[0].cell.config
        words: str = getattr(config.method_settings, self.method).supervision(config.encoder)
        return words

    def scores(self, dataset: str) -> list[float]:
        """mIoU in percent, seed by seed."""
        return [run.miou[self.method][dataset] for run in self.runs]

    def spread(self, dataset: str) -> Spread:
        """mIoU in percent over seeds."""
        values = self.scores(dataset)
        return Spread(fmean(values), min(values), max(values))

    @cached_property
    def counts(self) -> list[dict[str, ImageCounts]]:
        """What each image counts for, seed by seed."""
        return [run.counts(self.method) for run in self.runs]

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """By dataset and on average, over seeds and images; none where the settings ask for none."""
        draws = self.runs[0].cell.config.evaluate.bootstrap
        return row_intervals(self.counts, draws=draws) if draws else {}

    def over(self, other: "Row") -> Difference | None:
        """How far its average is ahead; None where the settings ask for no intervals, or the images are not the same."""
        draws = self.runs[0].cell.config.evaluate.bootstrap
        try:
            return difference_intervals(self.counts, other.counts, draws=draws)[AVERAGE] if draws else None
        except InputError:
            return None

    def inference(self, key: str) -> float:
        """The mean over seeds of what evaluation measured beside mIoU."""
        return fmean(run.stages["evaluate"]["averages"][self.method][key] for run in self.runs)


class Compared(NamedTuple):
    """How far the average of a row is ahead of another one's."""

    row: Row
    other: Row
    why: str
    """What the other row is to it: above, best, or column."""
    difference: Difference


def miou_of(folder: Path) -> dict[str, dict[str, float]]:
    """mIoU of the finished run in a folder, by method and dataset."""
    table: dict[str, dict[str, float]] = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))["stages"]["evaluate"][
        "mIoU"
    ]
    return table


def read_cell(cell: Cell) -> Finished:
    """A finished cell, from its folder."""
    summary = json.loads((Path(cell.config.run_dir) / SUMMARY).read_text(encoding="utf-8"))
    return Finished(cell, summary["mlflow"]["run_id"], summary["config_digest"], summary["stages"])


def rows_of(finished: Sequence[Finished]) -> list[Row]:
    """A row for each setting, method and column, in the grid's order, over the cells that have it."""
    runs: dict[tuple[str, str], list[Finished]] = {}
    for run in finished:
        runs.setdefault((run.cell.setting, run.cell.column), []).append(run)
    rows = [
        Row(setting, column, method, tuple(of))
        for (setting, column), of in runs.items()
        for method in of[0].cell.config.methods
    ]
    settings = list(dict.fromkeys(row.setting for row in rows))
    return sorted(rows, key=lambda row: settings.index(row.setting))  # columns of a setting stay in order


def compare(rows: Sequence[Row]) -> Iterator[Compared]:
    """Each row of the first column with the one above it and with the best; each row of others with its own in the first.

    Where there are several settings, a method's row above is its own under the setting above.
    """
    first = [row for row in rows if row.column == rows[0].column]
    groups = [first]
    if len({row.setting for row in first}) > 1:
        groups = [[row for row in first if row.method == method] for method in dict.fromkeys(row.method for row in first)]
    pairs = [(below, above, "above") for group in groups for above, below in pairwise(group)]
    if first:
        best = max(first, key=lambda row: row.spread(AVERAGE).mean)
        pairs += [(row, best, "best") for row in first if row is not best]
    own = {(row.setting, row.method): row for row in first}
    pairs += [(row, own[row.setting, row.method], "column") for row in rows if row.column != rows[0].column]
    for row, other, why in pairs:
        if difference := row.over(other):
            yield Compared(row, other, why, difference)


def record(
    grid: Grid,
    folder: Path,
    tracker: Tracker,
    finished: Sequence[Finished],
    compared: Sequence[Compared],
    failed: Mapping[str, str],
) -> None:
    """Write sweep.json, and log the means. `failed`: the cause, by the cell's name."""
    rows = rows_of(finished)
    content = {
        "grid": {"vary": {axis.key: dict(axis.values) for axis in grid.axes}, "seeds": list(grid.seeds)},
        "mlflow": where_recorded(tracker),
        "cells": [_cell(run) for run in finished],
        "failed": dict(failed),
        "rows": [_row(row) for row in rows],
        "differences": [
            {
                **_place(pair.row),
                "minus": _place(pair.other),
                **pair.difference._asdict(),
                "significant": pair.difference.significant,
            }
            for pair in compared
        ],
    }
    write_json(folder / JSON, masked_tree(content))
    for row in rows:
        place = "/".join(filter(None, _place(row).values()))
        tracker.metrics(by_dataset(f"mIoU/{place}", {dataset: row.spread(dataset).mean for dataset in row.datasets}))


def _cell(run: Finished) -> dict[str, Any]:
    evaluated = run.stages["evaluate"]
    return {
        "name": run.cell.name,
        "setting": run.cell.setting,
        "column": run.cell.column,
        "seed": run.cell.seed,
        "settings": dict(run.cell.varied),
        "run_dir": run.cell.config.run_dir,
        "config_digest": run.config_digest,
        "run_id": run.run_id,
        **{key: evaluated[key] for key in ("mIoU", "intervals", "oracle_mIoU", "averages") if key in evaluated},
        "costs": run.costs,
    }


def _row(row: Row) -> dict[str, Any]:
    costs = [run.costs[row.method] for run in row.runs if row.method in run.costs]
    return {
        **_place(row),
        "supervision": row.supervision,
        "seeds": [run.cell.seed for run in row.runs],
        "mIoU": {dataset: row.spread(dataset)._asdict() for dataset in row.datasets},
        "intervals": {dataset: [*interval] for dataset, interval in row.intervals.items()},
        "costs": {key: fmean(cost[key] for cost in costs) for key in costs[0]} if costs else {},
    }


def _place(row: Row) -> dict[str, str]:
    return {"setting": row.setting, "column": row.column, "method": row.method}
