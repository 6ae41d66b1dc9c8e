"""The comparison in a terminal of 80 columns."""

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from owseg.evaluation.intervals import AVERAGE
from pipelines.comparisons.page import letter
from pipelines.comparisons.runs import FinishedRun
from pipelines.comparisons.scores import Change, Line

SIDE_BY_SIDE = 4
"""Runs in a table; more go into further ones."""


def show(runs: Sequence[FinishedRun], lines: Sequence[Line]) -> None:
    """Print which run is which, and for each method a table: a row for each dataset, a column for each run."""
    for number, run in enumerate(runs):
        print(f"{letter(number)}: {run.name} ({run.protocol}; seed {run.config.seed})")
    if len({run.protocol for run in runs}) > 1:
        print("the runs are scored in different ways: their numbers must not be compared")
    print(f"zero-shot mIoU (%), and minus {letter(0)}; * = larger than noise, its paired 95 % interval leaves out 0")
    console = Console(soft_wrap=True)
    for method in dict.fromkeys(line.method for line in lines):
        of_method = [line for line in lines if line.method == method]
        for first in range(0, len(of_method), SIDE_BY_SIDE):
            console.print(_table(method, of_method[first : first + SIDE_BY_SIDE]))
    for told in _averages(lines):
        print(told)


def _table(method: str, lines: Sequence[Line]) -> Table:
    table = Table(method)
    for line in lines:
        other = f" - {letter(0)} {line.minus}" if line.minus not in ("", method) else ""
        table.add_column(f"{letter(line.run)}{other}", justify="right")
    for name in dict.fromkeys(name for line in lines for name in line.scores):
        table.add_row(name, *(_cell(line, name) for line in lines))
    return table


def _cell(line: Line, name: str) -> str:
    if name not in line.scores:
        return "-"
    change = line.changes.get(name)
    return f"{line.scores[name]:.1f}" + (f" {_told(change):>7}" if change else "")


def _told(change: Change) -> str:
    star = "*" if change.interval and change.interval.significant else ""
    return f"{change.value:+.1f}{star}"


def _averages(lines: Sequence[Line]) -> Iterator[str]:
    """The differences of averages with their intervals, or why there are none."""
    for line in lines:
        change = line.changes.get(AVERAGE)
        pair = f"{letter(line.run)} {line.method} - {letter(0)} {line.minus}"
        if change and change.interval:
            low, high = change.interval.low, change.interval.high
            noise = "" if change.interval.significant else ", not larger than noise"
            yield f"{pair}: average {change.value:+.1f} ({low:.1f}..{high:.1f}){noise}"
        elif change:
            yield f"{pair}: average {change.value:+.1f}, unpaired: not the same images, or not known to be"
        elif line.minus:
            yield f"{pair}: no average, they were scored on different datasets"
