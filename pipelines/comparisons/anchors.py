"""Published scores on the eight benchmarks, quoted beside measured ones."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from statistics import fmean

from owseg.evaluation.intervals import AVERAGE
from owseg.evaluation.protocols import OVERRIDES
from pipelines.comparisons.runs import FinishedRun


@dataclass(frozen=True)
class Anchor:
    """A published row."""

    method: str
    kind: str
    """What its masks are learned from."""
    scores: Mapping[str, float]
    """mIoU in percent by dataset; the average only of rows that have all eight."""
    source: str


def anchors() -> list[Anchor]:
    """The quoted rows."""
    content = json.loads((files(__package__) / "anchors.json").read_text(encoding="utf-8"))
    found = []
    for row in content["rows"]:
        scores = dict(zip(content["datasets"], row["mIoU"], strict=True))
        known = {name: value for name, value in scores.items() if value is not None}
        average = {AVERAGE: fmean(known.values())} if len(known) == len(scores) else {}
        found.append(Anchor(row["method"], row["kind"], known | average, row["source"]))
    return found


def fits(run: FinishedRun) -> bool:
    """Whether quoted rows are of a run's kind: whole real benchmarks under TCL's protocol, nothing of it overridden."""
    evaluate = run.config.evaluate
    sizes = any(getattr(evaluate, key) for key in OVERRIDES) or evaluate.grid_scale != 1
    changed = sizes or evaluate.synonyms or evaluate.limit or evaluate.classes
    return bool(evaluate.root) and evaluate.preset == "tcl" and not changed
