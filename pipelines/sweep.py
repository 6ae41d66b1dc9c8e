"""A grid of settings times seeds, each cell a run of its own, as many at once as the machine carries, and one table of all.

What cells have in common (a corpus, a pretrained encoder, a training) is done once. Run again, it does what is not finished;
a larger grid or more seeds in the same folder reuse what is there. Writes sweep.json, sweep.md and sweep.png into run_dir.
"""

if __name__ == "__main__":  # help and mistyped keys, before the libraries below are loaded
    from pipelines.app.early import answer

    answer(__file__)

import sys
import time
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from cluster.open_tracker import open_tracker
from cluster.session import SessionConfig
from cluster.tasks import TaskPool
from cluster.tracking import Tracker
from filtering.files import digest_of
from owseg.evaluation.protocols import EvaluateConfig
from pipelines.app.checks import check_benchmarks, check_encoder, check_methods, check_weights
from pipelines.app.cli import Option, main
from pipelines.app.config import ConfigError, digest, to_dict
from pipelines.app.outcome import DONE, FAILED, USER_MISTAKE, explain
from pipelines.app.resolve import methods_to_train, spread_training
from pipelines.app.run_dir import holds_single_run, refuse_other_run
from pipelines.app.settings import Config
from pipelines.download import check_target
from pipelines.sweeps.grid import VARY, Cell, Grid, make_grid
from pipelines.sweeps.report import JSON, compare, miou_of, read_cell, record, rows_of
from pipelines.sweeps.tables import MARKDOWN, PICTURE, draw, protocol_of, show, tables_of
from pipelines.sweeps.work import Outcome, Work, carry_out, plan
from storage.copies import at, shown

FLAGS = {
    "--vary": Option(
        "KEY=[a, b]",
        "a key and the values it takes, or {label: value, ...} to name them; a value may be a mapping laid over a section. "
        "May be given several times: every combination is run. Values of a last key below evaluate are columns of the table",
        several=True,
    ),
    "--seeds": Option("N", "runs of each combination, with seeds seed, seed+1, ... (without it: 1)"),
}


def run(config: Config, vary: tuple[str, ...] = (), seeds: str = "1") -> None:
    """The verb. Ends with exit code 2 where all cells that failed did so by the user's mistake, else with 1."""
    folder = Path(config.run_dir)
    if at(folder):
        raise ConfigError(f"run_dir: a sweep's runs share files by links, which {shown(folder)} cannot have; give it a folder")
    if holds_single_run(folder):
        raise ConfigError(f"run_dir: {folder} holds a single run; choose another for the sweep with run_dir=FOLDER")
    grid = make_grid(config, vary, seeds)
    check(grid.cells)
    described = {
        "settings": to_dict(config),
        "vary": {axis.key: dict(axis.values) for axis in grid.axes},
        "seeds": list(grid.seeds),
    }
    with open_tracker(config.tracking, folder, name=folder.name, settings=described, digest=digest_of(described)) as tracker:
        # The cells are recorded in the sweep's own store, below its run.
        tracking = replace(config.tracking, uri=tracker.uri, parent=tracker.run_id)
        failed = carry_out_all(plan(grid.cells, folder, tracking), config.session)
        publish(grid, folder, tracker, {name: outcome.message for name, outcome in failed.items()})
    for name, outcome in failed.items():
        print(f"cell {name} failed: {outcome.message}", file=sys.stderr)
    if failed:
        sys.exit(USER_MISTAKE if all(outcome.code == USER_MISTAKE for outcome in failed.values()) else FAILED)


def publish(grid: Grid, folder: Path, tracker: Tracker, failed: Mapping[str, str]) -> None:
    """Write sweep.json, and tables and the picture of what is finished; log them all. `failed`: the cause, by cell."""
    finished = [read_cell(cell) for cell in grid.cells if cell.name not in failed]
    rows = rows_of(finished)
    compared = list(compare(rows))
    record(grid, folder, tracker, finished, compared, failed)
    if rows:
        title = f"{folder.name}: {protocol_of(finished)}"
        show(tables_of(rows, compared), title, folder, [f"Cell {name} failed: {cause}" for name, cause in failed.items()])
        draw(rows, title, folder / PICTURE)
    for name in (JSON, *((MARKDOWN, PICTURE) if rows else ())):
        tracker.artifact(folder / name)
    print(f"sweep: {folder / (MARKDOWN if rows else JSON)}")


def check(cells: Sequence[Cell]) -> None:
    """Raise ConfigError for what can be found wrong with a cell at once, before any is begun."""
    seen = set()
    for cell in cells:
        refuse_other_run(cell.config)
        rest = replace(cell.config, seed=0, run_dir="")
        training = replace(rest, evaluate=EvaluateConfig())
        for of, checks in (
            (training, (check_encoder, check_methods, check_weights, check_target)),
            (rest, (check_benchmarks,)),
        ):
            if (told := digest(of)) in seen:
                continue
            seen.add(told)
            for check_it in checks:
                try:
                    check_it(of)
                except Exception as error:
                    if (message := explain(error)) and cell.setting:
                        raise ConfigError(f"{VARY} {cell.setting}: {message}") from error
                    raise


# ------------------------------------------------------------------------------------------------------------ carrying out


def carry_out_all(works: Sequence[Work], session: SessionConfig) -> dict[str, Outcome]:
    """Do what is not done, on Ray; returns how the cells ended that failed, themselves or by a work that they need."""
    ended = {work.folder: Outcome(DONE, "", 0.0) for work in works if work.is_done()}
    told = _Told(works, ended)
    todo = needed([work for work in works if work.verb == "full" and work.folder not in ended], ended)
    if todo:
        with TaskPool(carry_out, session) as pool:
            _carry_out(todo, pool, ended, told)
    return {work.name: ended[work.folder] for work in works if work.verb == "full" and ended[work.folder].code}


def _carry_out(todo: list[Work], pool: TaskPool[Outcome], ended: dict[Path, Outcome], told: "_Told") -> None:
    """Do all of `todo`, which becomes empty; `ended` has the outcomes."""
    while todo or pool.running:
        for work in list(todo):
            if cause := next((need for need in work.needs if need.folder in ended and ended[need.folder].code), None):
                outcome = ended[cause.folder]
                ended[work.folder] = replace(outcome, message=f"{cause.name}: {outcome.message}")
                todo.remove(work)
            elif all(need.folder in ended for need in work.needs) and pool.fits(share := _share(work, pool)):
                told.started(work)
                pool.start(work, work, str(Path.cwd()), share=share)
                todo.remove(work)
        if pool.running:
            work, result = pool.wait()
            ended[work.folder] = outcome = _outcome(result)
            told.ended(work, outcome)


def needed(cells: Sequence[Work], done: Container[Path]) -> list[Work]:
    """The cells, each after the works that it needs and that are not done."""
    found: dict[Path, Work] = {}
    for cell in cells:
        for work in (*needed(cell.needs, done), cell):
            if work.folder not in done:
                found.setdefault(work.folder, work)
    return list(found.values())


def _share(work: Work, pool: TaskPool[Outcome]) -> float:
    """Trainings run beside each other. The other stages spread over the whole cluster, and times per image want quiet."""
    if work.verb != "train":
        return 1.0
    return pool.share_of(spread_training(work.config, methods_to_train(work.config)[-1]))


def _outcome(result: Outcome | Exception) -> Outcome:
    if isinstance(result, Outcome):
        return result
    if message := explain(result):
        return Outcome(USER_MISTAKE, message, 0.0)
    return Outcome(FAILED, f"its process broke off: {' '.join(str(result).split())}", 0.0)


class _Told:
    """A line for each work that starts and ends: how far along, and about how long it still takes."""

    def __init__(self, works: Sequence[Work], done: Container[Path]) -> None:
        self.cells, self.shared = ([work for work in works if (work.verb == "full") == full] for full in (True, False))
        self.began, self.seconds = time.monotonic(), defaultdict[str, list[float]](list)
        self.left = needed([work for work in self.cells if work.folder not in done], done)
        for work in self.cells:
            if work.folder in done:
                print(f"{self._label(work)}: finished already, {_score(work)}", flush=True)

    def started(self, work: Work) -> None:
        print(f"{self._label(work)}: started, log in {work.log}", flush=True)

    def ended(self, work: Work, outcome: Outcome) -> None:
        self.left.remove(work)
        if outcome.code:
            print(f"{self._label(work)}: failed after {outcome.seconds:.0f} s: {outcome.message}", flush=True)
            return
        self.seconds[_kind(work)].append(outcome.seconds)
        score = f", {_score(work)}" if work.verb == "full" else ""
        print(f"{self._label(work)}: done in {outcome.seconds:.0f} s{score}{self._time_left()}", flush=True)

    def _label(self, work: Work) -> str:
        word, group = ("cell", self.cells) if work.verb == "full" else ("shared", self.shared)
        return f"{word} {group.index(work) + 1}/{len(group)} {work.name}"

    def _time_left(self) -> str:
        """What is left at the pace so far, each work reckoned as the mean of those of its kind, or of all."""
        if not self.left:
            return ""
        means = {kind: fmean(seconds) for kind, seconds in self.seconds.items()}
        behind = sum(map(sum, self.seconds.values()))
        ahead = sum(means.get(_kind(work), fmean(means.values())) for work in self.left)
        minutes = (time.monotonic() - self.began) * ahead / behind / 60
        return f"; about {minutes:.0f} min left" if minutes >= 1 else "; less than a minute left"


def _kind(work: Work) -> str:
    return "cell" if work.verb == "full" else work.name.partition("-")[0]


def _score(work: Work) -> str:
    averages = {method: row["average"] for method, row in miou_of(work.folder).items()}
    best = max(averages, key=lambda method: averages[method])
    return f"average mIoU {averages[best]:.1f}" + (f" ({best})" if len(averages) > 1 else "")


if __name__ == "__main__":
    sys.exit(main(run, doc=__doc__ or "", flags=FLAGS))
