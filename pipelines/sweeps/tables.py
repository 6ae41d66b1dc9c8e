"""A sweep to look at: tables for the terminal and in Markdown, and one picture."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from rich.console import Console

from owseg.evaluation.intervals import AVERAGE, Difference
from pipelines.app.tables import console_for, print_table
from pipelines.sweeps.report import Compared, Finished, Row, Spread

MARKDOWN, PICTURE = "sweep.md", "sweep.png"
TITLE_WIDTH = 80
"""Letters of a picture's title in a line."""
TOWERS = (("clip", "the encoder", "text"), ("dino", "the image tower", "images"))
"""What others are built around, and what it is learned from."""
NARROWEST = 200
"""Columns of output that goes to no terminal."""


@dataclass(frozen=True)
class Table:
    """A title, a head and rows of text."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 2
    """How many columns, from the left, hold words; the others hold numbers."""

    def markdown(self) -> str:
        """The table with its title, in Markdown."""
        rule = ["---"] * self.words + ["---:"] * (len(self.head) - self.words)
        return "\n".join([self.title, "", *(f"| {' | '.join(line)} |" for line in (self.head, rule, *self.rows))])

    def print(self, console: Console) -> None:
        """The same for the terminal."""
        console.print(self.title, markup=False, highlight=False)
        print_table(console, self.head, self.rows, words=self.words)


def tables_of(rows: Sequence[Row], compared: Sequence[Compared]) -> list[Table]:
    """Scores, differences of averages, and costs."""
    return [_scores(rows), *([_differences(rows, compared)] if compared else []), _costs(rows)]


def show(tables: Sequence[Table], title: str, folder: Path, failed: Sequence[str]) -> None:
    """Print the tables, and write them as sweep.md."""
    console = console_for(NARROWEST)
    for table in tables:
        table.print(console)
    text = [f"# {title}", *(table.markdown() for table in tables), *failed]
    (folder / MARKDOWN).write_text("\n\n".join(text) + "\n", encoding="utf-8")


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """A dot for each seed's average, a line at their mean; columns have colours of their own."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    labels = [_label(row) for row in _first(rows)]
    columns = list(dict.fromkeys(row.column for row in rows))
    figure, axes = pyplot.subplots(figsize=(7, 1.2 + 0.32 * len(labels)), layout="constrained")
    for row in rows:
        number = columns.index(row.column)
        place = labels.index(_label(row)) + 0.24 * (number - (len(columns) - 1) / 2)
        values, colour = row.scores(AVERAGE), f"C{number}"
        axes.scatter(values, [place] * len(values), color=colour, alpha=0.7, s=22, label=row.column)
        axes.vlines(fmean(values), place - 0.11, place + 0.11, color=colour)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("average mIoU (%)")
    figure.suptitle("\n".join(textwrap.wrap(title, TITLE_WIDTH)), fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    if len(columns) > 1:
        handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        axes.legend(handles.values(), handles.keys(), fontsize=8)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def protocol_of(finished: Sequence[Finished]) -> str:
    """How the first column is scored, and over how many seeds."""
    seeds = len({run.cell.seed for run in finished})
    return f"{finished[0].stages['evaluate']['protocol']}; {seeds} seed{'s' if seeds > 1 else ''}"


def _scores(rows: Sequence[Row]) -> Table:
    """mIoU by dataset in the first column's way; then the averages of all columns."""
    first, columns = _first(rows), _columns(rows)
    datasets = [dataset for dataset in first[0].datasets if dataset != AVERAGE]
    averages = [f"{AVERAGE}, {column}" if column else AVERAGE for column in columns]
    body = []
    for row in first:
        cells = [_told(row.spread(dataset)) if dataset in row.datasets else "" for dataset in datasets]
        for column in columns:
            of = _find(rows, row, column)
            interval = f" [{of.intervals[AVERAGE].low:.1f}, {of.intervals[AVERAGE].high:.1f}]" if of and of.intervals else ""
            cells.append(_told(of.spread(AVERAGE)) + interval if of else "")
        body.append((row.setting, row.method, *cells))
    where = f"; by dataset: {columns[0]}" if columns[0] else ""
    title = f"Zero-shot mIoU (%): mean (lowest..highest) over seeds [95 % interval over seeds and images]{where}"
    return Table(title, ("setting", "method", *datasets, *averages), tuple(body))


def _differences(rows: Sequence[Row], compared: Sequence[Compared]) -> Table:
    columns = _columns(rows)
    found = {
        (pair.row.setting, pair.row.method, pair.why, pair.row.column): _told_difference(pair.difference) for pair in compared
    }
    above = "setting" if len({row.setting for row in rows}) > 1 else "row"
    kinds = [("above", columns[0], f"minus the {above} above"), ("best", columns[0], "minus the best")]
    kinds += [("column", column, f"{column} minus {columns[0]}") for column in columns[1:]]
    body = tuple(
        (row.setting, row.method, *(found.get((row.setting, row.method, why, column), "") for why, column, _ in kinds))
        for row in _first(rows)
    )
    title = "Differences of averages, with their 95 % intervals over seeds and images; * = larger than noise"
    return Table(title, ("setting", "method", *(words for _, _, words in kinds)), body)


def _costs(rows: Sequence[Row]) -> Table:
    """What each method was taught by and took, the towers that others use before them."""
    columns = _columns(rows)
    gpu = any("gpu_seconds" in costs for row in rows for run in row.runs for costs in run.costs.values())
    keys = ("pairs", "gpu_seconds" if gpu else "cpu_seconds", "peak_memory_mb")
    body = []
    told: set[str] = set()
    for row in _first(rows):
        for name, title, taught in TOWERS if row.setting not in told else ():
            if name in row.runs[0].costs:
                body.append((row.setting, f"{name}, {title}", taught, *_trained(row, name, keys), *[""] * (2 * len(columns))))
        told.add(row.setting)
        cells = []
        for of in (_find(rows, row, column) for column in columns):
            cells += [f"{of.inference('seconds_per_image'):.3f}", f"{of.inference('peak_memory_mb'):,.0f}"] if of else ["", ""]
        body.append((row.setting, row.method, row.supervision, *_trained(row, row.method, keys), *cells))
    head = ["pairs seen", f"{'GPU' if gpu else 'CPU'}-seconds of training", "peak MiB of training"]
    for column in columns:
        head += [f"{what}, {column}" if column else what for what in ("seconds per image", "peak MiB of inference")]
    return Table("Costs: means over seeds", ("setting", "method", "supervision", *head), tuple(body), words=3)


def _trained(row: Row, method: str, keys: Sequence[str]) -> list[str]:
    costs = [run.costs[method] for run in row.runs if method in run.costs]
    return [f"{fmean(cost[key] for cost in costs):,.0f}" if costs else "" for key in keys]


def _first(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.column == rows[0].column]


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.column for row in rows))


def _find(rows: Sequence[Row], like: Row, column: str) -> Row | None:
    return next((row for row in rows if (row.setting, row.method, row.column) == (like.setting, like.method, column)), None)


def _label(row: Row) -> str:
    return " ".join(filter(None, [row.setting, row.method]))


def _told(spread: Spread) -> str:
    """The mean, and what it varies between where there are several seeds."""
    ends = f" ({spread.lowest:.1f}..{spread.highest:.1f})" if spread.lowest != spread.highest else ""
    return f"{spread.mean:.1f}{ends}"


def _told_difference(difference: Difference) -> str:
    star = " *" if difference.significant else ""
    return f"{difference.mean:+.1f} [{difference.low:+.1f}, {difference.high:+.1f}]{star}"
