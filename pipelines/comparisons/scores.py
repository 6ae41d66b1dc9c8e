"""Scores of runs side by side, and how far each is from the first run's, with what of it is larger than noise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from owseg import InputError
from owseg.evaluation.intervals import AVERAGE, Difference, ImageCounts, Row, difference_intervals
from pipelines.comparisons.runs import FinishedRun
from storage.understood import Noted

DRAWS = 1000
SHOWN_CLASSES = 6


class Change(NamedTuple):
    """A score minus that of the first run, in points of percent."""

    value: float
    interval: Difference | None
    """With its 95 % interval over resampled images, the same for both; None: the images are not the same, or not known."""


@dataclass(frozen=True)
class Line:
    """A method in a run."""

    run: int
    """Number of the run."""
    method: str
    scores: Mapping[str, float]
    """mIoU in percent by dataset and on average."""
    minus: str
    """What of the first run it is compared with; "" of the first run's own, which are compared with nothing."""
    changes: Mapping[str, Change]
    """By dataset and on average, of what both were scored on."""


class ClassChange(NamedTuple):
    """A class that one run segments better or worse than another."""

    dataset: str
    name: str
    before: float
    after: float

    @property
    def change(self) -> float:
        """In points of percent."""
        return self.after - self.before


def lines_of(runs: Sequence[FinishedRun]) -> list[Line]:
    """Each method's runs below each other; methods in the order in which runs name them."""
    first = runs[0]
    counts = {name: _counts(first, name) for name in first.miou}
    found = []
    for method in dict.fromkeys(name for run in runs for name in run.miou):
        for number, run in enumerate(runs):
            if method not in run.miou:
                continue
            other = reference(first, method) if number else ""
            changes = _changes(run, method, first, other, counts[other]) if other else {}
            found.append(Line(number, method, run.miou[method], other, changes))
    return found


def reference(first: FinishedRun, method: str) -> str:
    """The method of the first run that another run's is compared with: the same, or its best one."""
    return method if method in first.miou else first.best


def _counts(run: FinishedRun, method: str) -> dict[str, ImageCounts] | None:
    """The counts by image; None where they are not there, as in runs of older versions, or damaged."""
    with Noted(run.folder / "evaluate" / method, run.notes, also=(FileNotFoundError,)):
        return run.counts(method)
    return None


def _changes(
    run: FinishedRun, method: str, first: FinishedRun, other: str, before: Mapping[str, ImageCounts] | None
) -> dict[str, Change]:
    """What differs, dataset by dataset; of the averages where both are over the same datasets."""
    scores, base, after = run.miou[method], first.miou[other], _counts(run, method)
    common = [name for name in scores if name in base and name != AVERAGE]
    paired: dict[str, Difference] = {}
    if before is not None and after is not None:
        same = [name for name in common if first.same_images(run, name)]
        if {*same} == {*before} == {*after}:
            paired = _paired(after, before)
        for name in same:
            if name not in paired and (alone := _paired({name: after[name]}, {name: before[name]})):
                paired[name] = alone[name]
    both = [*common, *([AVERAGE] if scores.keys() == base.keys() else [])]
    return {name: Change(scores[name] - base[name], paired.get(name)) for name in both}


def _paired(after: Row, before: Row) -> dict[str, Difference]:
    """The differences over the same images; none where these are others."""
    try:
        return difference_intervals([after], [before], draws=DRAWS)
    except InputError:
        return {}


def class_changes(run: FinishedRun, method: str, first: FinishedRun) -> list[ClassChange]:
    """Every class of what both were scored on, the largest gain first."""
    other, found = reference(first, method), []
    for dataset in run.datasets(method):
        if dataset in first.miou[other]:
            before, after = first.class_iou(other, dataset), run.class_iou(method, dataset)
            for name in before.keys() & after.keys():
                old, new = before[name], after[name]
                if old is not None and new is not None:
                    found.append(ClassChange(dataset, name, old, new))
    return sorted(found, key=lambda one: (-one.change, one.dataset, one.name))


def wins_and_losses(changes: Sequence[ClassChange]) -> tuple[list[ClassChange], list[ClassChange]]:
    """The largest gains and the largest losses, each beginning with the largest."""
    wins = [one for one in changes[:SHOWN_CLASSES] if one.change > 0]
    return wins, [one for one in reversed(changes[-SHOWN_CLASSES:]) if one.change < 0]
