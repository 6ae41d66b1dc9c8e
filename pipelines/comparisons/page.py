"""The comparison as one HTML page: what the template `compare.html` shows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filtering.files import digest_of
from filtering.reports import charts
from filtering.reports.parts import write_page
from owseg.evaluation.datasets import BENCHMARKS
from owseg.evaluation.intervals import AVERAGE
from owseg.methods import PRETRAININGS
from pipelines.comparisons.anchors import anchors
from pipelines.comparisons.anchors import fits as is_of_their_kind
from pipelines.comparisons.corpora import differences
from pipelines.comparisons.pictures import same_images
from pipelines.comparisons.runs import FinishedRun, differing_settings
from pipelines.comparisons.scores import DRAWS, Line, class_changes, lines_of, reference, wins_and_losses
from storage.understood import fits

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MOST_RUNS = len(LETTERS)
COLOURS = 6
"""The style sheet's colours of runs; more runs begin with the first again."""
TILES = 4
PER_IMAGE = ("seconds_per_image",)
COSTS = {
    "pairs": "pairs seen",
    "cpu_seconds": "processor seconds",
    "gpu_seconds": "GPU seconds",
    "peak_memory_mb": "peak memory (MiB)",
    "seconds_per_image": "seconds per image",
}


def write(path: Path, runs: Sequence[FinishedRun]) -> list[Line]:
    """Write the page of two runs and more; returns the lines of its table."""
    lines = lines_of(runs)
    pictures, note = same_images(runs)
    costs = _costs(runs)
    content = {
        "title": f"{len(runs)} runs compared",
        "kicker": "Comparison",
        "headline": " against ".join(run.name for run in runs) if len(runs) == 2 else f"{len(runs)} runs",
        "digest": digest_of([run.evaluated["digest"] for run in runs]),
        "tiles": _tiles(runs, lines),
        "runs": [_head(number, run) for number, run in enumerate(runs)],
        "tables": [_table(method, lines) for method in dict.fromkeys(line.method for line in lines)],
        "protocols": list(dict.fromkeys(run.protocol for run in runs)),
        "anchors": anchors(),
        "anchors_fit": all(map(is_of_their_kind, runs)),
        "anchor_datasets": [*BENCHMARKS, AVERAGE],
        "classes": list(_classes(runs)),
        "what_differs": differing_settings(runs, how=False),
        "how_settings": differing_settings(runs, how=True),
        "corpora": [(letter(one.run), one.found) for one in differences(runs)],
        "curves": _curves(runs),
        "costs": costs,
        "cost_names": {key: words for key, words in COSTS.items() if any(row[key] is not None for row in costs)},
        "draws": DRAWS,
        "pictures": pictures,
        "pictures_note": note,
        "average": AVERAGE,
    }
    content["left_out"] = damaged(runs)  # all that is read has been read by now
    write_page(path, "compare.html", content, package=__package__)
    return lines


def damaged(runs: Sequence[FinishedRun]) -> list[str]:
    """Lines on the files that the comparison goes on without."""
    return list(dict.fromkeys(note for run in runs for note in run.notes))


def letter(run: int) -> str:
    """What stands for a run in tables."""
    return LETTERS[run]


def _head(number: int, run: FinishedRun) -> dict[str, Any]:
    about = {"name": run.name, "protocol": run.protocol, "seed": run.config.seed}
    return {"letter": letter(number), "colour": number % COLOURS, **about}


def _tiles(runs: Sequence[FinishedRun], lines: Sequence[Line]) -> list[tuple[str, str, str]]:
    """(label, value, note) of each run's best average."""
    found = []
    for number, run in enumerate(runs[:TILES]):
        line = next(line for line in lines if (line.run, line.method) == (number, run.best))
        change = line.changes.get(AVERAGE)
        note = f"average mIoU of {run.best}" + (f", {change.value:+.1f} to {letter(0)}'s {line.minus}" if change else "")
        found.append((f"{letter(number)} {run.name}", f"{line.scores[AVERAGE]:.1f}", note))
    return found


def _table(method: str, lines: Sequence[Line]) -> dict[str, Any]:
    """A method's runs side by side, a row for each dataset."""
    of_method = [line for line in lines if line.method == method]
    names = list(dict.fromkeys(name for line in of_method for name in line.scores if name != AVERAGE))
    return {
        "method": method,
        "lines": [(letter(line.run), line.run % COLOURS, line) for line in of_method],
        "rows": [*names, AVERAGE],
        "others": {letter(line.run): line.minus for line in of_method if line.minus and line.minus != method},
    }


def _classes(runs: Sequence[FinishedRun]) -> Any:
    """For each run but the first, of its best method, what classes gained and lost most."""
    for number, run in enumerate(runs[1:], start=1):
        for method in (name for name in run.miou if name in (run.best, runs[0].best)):
            wins, losses = wins_and_losses(class_changes(run, method, runs[0]))
            yield {
                "letter": letter(number),
                "method": method,
                "minus": reference(runs[0], method),
                "wins": wins,
                "losses": losses,
            }


def _curves(runs: Sequence[FinishedRun]) -> list[tuple[str, charts.Chart]]:
    """For each method that any run trained, its losses by step."""
    trained = dict.fromkeys(name for run in runs for name in (*PRETRAININGS, *run.miou))
    found = []
    for method in trained:
        curves = {number: run.losses(method) for number, run in enumerate(runs)}
        drawn = [(number % COLOURS, points) for number, points in curves.items() if points]
        if drawn:
            found.append((method, charts.curves(drawn, axis="step", label=f"Loss of {method} by step")))
    return found


def _costs(runs: Sequence[FinishedRun]) -> list[dict[str, Any]]:
    """What trainings and inference took, as far as it was recorded."""
    found = []
    for number, run in enumerate(runs):
        for method in dict.fromkeys((*run.costs, *run.miou)):
            averages = run.evaluated["averages"].get(method, {})
            told = run.costs.get(method, {}) | {key: averages[key] for key in PER_IMAGE if fits(averages, {key: float})}
            if told:
                found.append({"letter": letter(number), "method": method, **{key: told.get(key) for key in COSTS}})
    return found
