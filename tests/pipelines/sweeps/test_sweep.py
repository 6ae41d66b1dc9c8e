"""Sweeps: the grid, what its cells share, how it fails, and a small real one that is killed in the middle."""

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from mlflow import MlflowClient

from cluster.session import SessionConfig
from cluster.tracking import TrackingConfig
from cluster.train import TrainConfig
from helpers.chain import SMOKE, kill_when, run, run_well
from helpers.paths import REPO
from owseg.evaluation.intervals import ImageCounts, write_image_counts
from owseg.phases import scheduled_phases
from owseg.training import pairs_between
from pipelines import sweep
from pipelines.app.checks import methods_to_train
from pipelines.app.cli import main
from pipelines.app.config import load
from pipelines.app.outcome import DONE, FAILED, USER_MISTAKE
from pipelines.app.settings import Config
from pipelines.sweeps.grid import Cell, make_grid
from pipelines.sweeps.report import Finished, compare, rows_of
from pipelines.sweeps.tables import tables_of
from pipelines.sweeps.work import Outcome, Work, plan

ABLATION = "method_settings.tcl={contrast: {area_weight: 0, tv_weight: 0}, whole: {}}"


def cells_of(folder: Path, *vary: str, seeds: int = 1, settings: tuple[str, ...] = ()) -> list[Cell]:
    config = load(Config, REPO / SMOKE, [*settings, f"run_dir={folder}"])
    return list(make_grid(config, vary, str(seeds)).cells)


def works_of(cells: list[Cell], folder: Path) -> dict[str, list[str]]:
    """The works' names without digests, and those that each needs."""

    def short(work: Work) -> str:
        return work.name if work.verb == "full" else work.name.rpartition("-")[0]

    return {work.name: sorted(map(short, work.needs)) for work in plan(cells, folder, TrackingConfig())}


# ------------------------------------------------------------------------------------------------------------------- the grid


def test_a_grid_is_every_combination_times_seeds(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, ABLATION, "evaluate.short_side=[64, 80]", seeds=2, settings=("seed=5",))
    assert [cell.name for cell in cells] == [
        f"{setting}-short_side={side}-seed{seed}" for seed in (5, 6) for setting in ("contrast", "whole") for side in (64, 80)
    ]
    last = cells[-1]
    assert (last.setting, last.column, last.seed) == ("whole", "short_side=80", 6)
    assert last.config.run_dir == str(tmp_path / "cells" / last.name)
    assert (last.config.seed, last.config.evaluate.short_side, last.config.method_settings.tcl.tv_weight) == (6, 80, 1.0)
    assert cells[0].config.method_settings.tcl.tv_weight == 0
    assert cells[0].config.method_settings.tcl.phases == last.config.method_settings.tcl.phases, (
        "a mapping is laid over the section"
    )


def test_without_keys_there_is_a_cell_for_each_seed(tmp_path: Path) -> None:
    assert [(cell.name, cell.setting) for cell in cells_of(tmp_path, seeds=2)] == [("seed0", ""), ("seed1", "")]


BAD: dict[str, tuple[tuple[str, ...], str]] = {
    "unknown key": (
        ("--vary", "method_settings.tlc=[1, 2]"),
        "--vary: unknown key 'method_settings.tlc'; did you mean 'method_settings.tcl'?",
    ),
    "value that does not fit": (("--vary", "train.workers=[1, many]"), "--vary: 'train.workers' must be a whole number"),
    "value that is refused": (
        ("--vary", "method_settings.tcl.area_prior=[0.4, 2]"),
        "--vary: method_settings.tcl.area_prior: 2.0 is outside 0..1",
    ),
    "seeds < 1": (("--seeds", "0"), "--seeds: '0' is no number of seeds"),
    "seeds in words": (("--seeds=three",), "--seeds: 'three' is no number of seeds"),
    "too many seeds": (("--seeds", "99999"), "--seeds: '99999' is no number of seeds; give a whole number from 1 to 1000"),
    "seeds of many digits": (("--seeds", "9" * 5000), "--seeds: '9999"),
    "a negative seed": (("--vary", "seed=[-1, 0]"), "--vary: seed: -1 is out of range"),
    "a section and a key in it": (
        ("--vary", "evaluate.refine=[none, pamr]", "--vary", "evaluate={p: {refine: pamr}, q: {}}"),
        "--vary: 'evaluate' holds 'evaluate.refine', which is varied too",
    ),
    "no seeds": (("--seeds",), "--seeds needs a value: --seeds N"),
    "no values": (("--vary", "seed=[]"), "--vary: 'seed' has no values"),
    "one value": (("--vary", "train.workers=2"), "--vary: 'train.workers' needs several values"),
    "no key": (("--vary", "[1, 2]"), "--vary: '[1, 2]' is not a setting"),
    "broken YAML": (("--vary", "seed=[1, 2"), "--vary: 'seed=[1, 2': line 1"),
    "twice": (("--vary", "train.threads=[1]", "--vary", "train.threads=[2]"), "--vary: 'train.threads' is varied twice"),
    "seed twice": (("--vary", "seed=[1, 2]", "--seeds", "2"), "--vary: 'seed' is what --seeds varies"),
    "same label": (
        ("--vary", "method_settings.tcl.templates=[tcl, tcl]"),
        "--vary: 2 values of 'method_settings.tcl.templates' have the label",
    ),
    "no label": (("--vary", "method_settings.tcl={'': {}, b: {}}"), "--vary: a value of 'method_settings.tcl' has no label"),
    "where, not what": (("--vary", "session.num_cpus=[1, 2]"), "--vary: 'session.num_cpus' says where or how"),
    "a check of a cell": (
        ("--vary", "method_settings.clip.optim.batch_size=[8, 9]", "train.workers=2"),
        "--vary batch_size=9: method_settings.clip.optim.batch_size",
    ),
    "unknown option": (
        ("--wary", "seed=[1]"),
        "unknown option '--wary'; the options are --config FILE, --vary KEY=[a, b], --seeds N",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_told_in_one_line_before_any_work(
    arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--config", str(REPO / SMOKE), f"run_dir={tmp_path / 'run'}", *arguments]
    assert main(sweep.run, doc="", argv=argv, flags=sweep.FLAGS) == USER_MISTAKE
    told = capsys.readouterr().err
    assert told.startswith(f"error: {message}"), told
    assert told.count("\n") == 1
    assert not (tmp_path / "run" / "shared").exists()


def test_help_shows_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(sweep.run, doc="A grid.", argv=["--help"], flags=sweep.FLAGS) == DONE
    shown = capsys.readouterr().out
    assert "[--vary KEY=[a, b]] [--seeds N] [--config FILE]" in shown
    assert "runs of each combination" in " ".join(shown.split())


def test_a_sweeps_folder_stays_that_of_its_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run" / "cells").mkdir(parents=True)
    argv = ["--config", str(REPO / SMOKE), f"run_dir={tmp_path / 'run'}", "--seeds", "0"]
    assert main(sweep.run, doc="", argv=argv, flags=sweep.FLAGS) == USER_MISTAKE
    assert "--seeds: '0'" in capsys.readouterr().err
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    assert main(sweep.run, doc="", argv=[*argv, "evaluate.short_side=80"], flags=sweep.FLAGS) == USER_MISTAKE
    assert "holds a run of another config: 'evaluate.short_side' was" in capsys.readouterr().err
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before


def test_a_cell_of_another_grid_is_refused_and_a_single_run_too(tmp_path: Path) -> None:
    (cell,) = cells_of(tmp_path)
    folder = Path(cell.config.run_dir)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("method_settings: {tcl: {tv_weight: 0.5}}\n")
    (folder / "train.done.json").write_text("{}")
    with pytest.raises(ValueError, match=r"seed0 holds a run of another config: '[\w.]+' was"):
        sweep.check([cell])
    (tmp_path / "train.done.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a single run"):
        sweep.run(replace(cell.config, run_dir=str(tmp_path)))


@pytest.mark.parametrize(("name", "rows"), [("ablation_tcl", 5), ("ablation_ovsegmentor", 3)])
def test_the_command_in_an_ablations_head_is_a_grid(name: str, rows: int, tmp_path: Path) -> None:
    file = REPO / "configs" / f"{name}.yaml"
    head = " ".join(line.lstrip("# ").rstrip("\\") for line in file.read_text().splitlines() if line.startswith("#"))
    (vary,) = re.findall(r"--vary '(.*?)'", head)
    cells = make_grid(load(Config, file, [f"run_dir={tmp_path}"]), [vary], "1").cells
    assert len(cells) == rows
    (method,) = cells[0].config.methods
    assert getattr(cells[-1].config.method_settings, method) == getattr(load(Config, file, []).method_settings, method), (
        "the last row is all of it"
    )
    sweep.check(cells)


def test_compared_systems_see_as_many_pairs_their_encoders_counted() -> None:
    config = load(Config, REPO / "configs" / "compare.yaml", [])
    pairs = {job: pairs_between(scheduled_phases(job.phases, job.optim), 0, 10**9) for job in methods_to_train(config)}
    clip, *jobs = pairs
    assert [job.name for job in jobs] == ["tcl", "ovsegmentor", "vilseg"]
    assert {pairs[job] + pairs[clip] * job.uses_clip for job in jobs} == {38_400}


# ---------------------------------------------------------------------------------------------------------------------- sharing


def test_cells_share_what_they_have_in_common(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, ABLATION, "evaluate.short_side=[64, 80]", seeds=2)
    works = works_of(cells, tmp_path)
    assert Counter(name.partition("-")[0] for name in works if "side" not in name) == {"data": 1, "clip": 2, "tcl": 4}
    assert works["whole-short_side=64-seed1"] == works["whole-short_side=80-seed1"] == ["clip-seed1", "data", "tcl-seed1"]
    assert works[next(name for name in works if name.startswith("tcl-seed1"))] == ["clip-seed1", "data"]


def test_a_larger_grid_finds_what_is_there(tmp_path: Path) -> None:
    """More seeds, values and methods name the same folders; other data and another encoder name others."""
    small = works_of(cells_of(tmp_path, ABLATION), tmp_path)
    more = cells_of(tmp_path, ABLATION, seeds=2, settings=("methods=[chance,maskclip,sclip,tcl]", "evaluate.limit=3"))
    assert small.keys() <= works_of(more, tmp_path).keys()
    for setting in ("miniature.links=400", "filter.min_count=4"):
        assert shared(small).isdisjoint(shared(works_of(cells_of(tmp_path, ABLATION, settings=(setting,)), tmp_path)))
    other = shared(works_of(cells_of(tmp_path, ABLATION, settings=("method_settings.clip.optim.lr=0.1",)), tmp_path))
    assert {name.partition("-")[0] for name in shared(small) & other} == {"data"}
    faster = works_of(cells_of(tmp_path, ABLATION, settings=("session.num_cpus=1", "tracking.enabled=false")), tmp_path)
    assert faster == small


def shared(works: dict[str, list[str]]) -> set[str]:
    return {name for name, needs in works.items() if "tcl-seed0" not in needs}


class Told(NamedTuple):
    """What a pool without Ray was asked for."""

    started: list[str]
    most: list[float]


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Told]:
    """Stands in for Ray: works end in the order in which they started, as `ends` says by the beginning of their names."""

    def install(**ends: Outcome | Exception) -> Told:
        told = Told([], [0.0])

        class Pool:
            def __init__(self, function: object, session: SessionConfig) -> None:
                self.calls: list[tuple[Work, float]] = []

            @property
            def running(self) -> int:
                return len(self.calls)

            def share_of(self, train: TrainConfig) -> float:
                return 0.5

            def fits(self, share: float) -> bool:
                return not self.calls or sum(taken for _, taken in self.calls) + share <= 1

            def start(self, key: Work, *arguments: object, share: float) -> None:
                self.calls.append((key, share))
                told.started.append(key.name)
                told.most.append(sum(taken for _, taken in self.calls))

            def wait(self) -> tuple[Work, Outcome | Exception]:
                work, _ = self.calls.pop(0)
                return work, next((end for name, end in ends.items() if work.name.startswith(name)), Outcome(DONE, "", 1.0))

        monkeypatch.setattr(sweep, "TaskPool", Pool)
        monkeypatch.setattr(sweep, "miou_of", lambda folder: {"tcl": {"average": 12.3}})
        return told

    return install


def test_a_failed_work_fails_its_cells_alone(
    pool: Callable[..., Told], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = pool(whole=Outcome(USER_MISTAKE, "no pixels", 1.0), **{"clip-seed1": RuntimeError("out\nof memory")})
    works = plan(cells_of(tmp_path, ABLATION, seeds=2), tmp_path, TrackingConfig())
    failed = sweep.carry_out_all(works, SessionConfig())
    assert {name: outcome.code for name, outcome in failed.items()} == {
        "whole-seed0": USER_MISTAKE,
        "contrast-seed1": FAILED,
        "whole-seed1": FAILED,
    }
    assert failed["whole-seed0"].message == "no pixels"
    assert failed["whole-seed1"].message.startswith("clip-seed1-")
    assert failed["whole-seed1"].message.endswith("its process broke off: out of memory")
    assert not any(name.startswith("tcl-seed1") for name in told.started), "what needs the failed one is not begun"
    assert max(told.most) == 1.0, "trainings run beside each other, two at a time"
    lines = capsys.readouterr().out.splitlines()
    done = next(line for line in lines if line.startswith("cell 1/4 contrast-seed0: done"))
    assert done.startswith("cell 1/4 contrast-seed0: done in 1 s, average mIoU 12.3; ")
    assert "cell 2/4 whole-seed0: failed after 1 s: no pixels" in lines


def test_the_exit_code_is_that_of_the_causes(
    pool: Callable[..., Told], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sweep, "publish", lambda *arguments: None)
    (cell,) = cells_of(tmp_path, settings=("tracking.enabled=false",))
    config = replace(cell.config, run_dir=str(tmp_path))
    for ends, code in (
        ({"seed": Outcome(USER_MISTAKE, "a", 1.0)}, USER_MISTAKE),
        ({"seed0": Outcome(USER_MISTAKE, "a", 1.0), "seed1": Outcome(FAILED, "b", 1.0)}, FAILED),
    ):
        pool(**ends)
        with pytest.raises(SystemExit) as stopped:
            sweep.run(config, seeds="2")
        assert stopped.value.code == code
        assert "cell seed0 failed: a\n" in capsys.readouterr().err
    pool()
    sweep.run(config, seeds="2")


# -------------------------------------------------------------------------------------------------------------------- the table


def test_rows_tables_and_differences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = cells_of(tmp_path, ABLATION, "evaluate.short_side=[64, 80]", seeds=2, settings=("evaluate.bootstrap=0",))
    scores = {"chance": 2.0, "maskclip": 9.0, "tcl": 20.0}
    finished = []
    for cell in cells[:-1]:  # the last one failed
        extra = cell.seed + 10 * (cell.column == "short_side=80") + 5 * (cell.setting == "whole")
        miou = {name: {"voc21": value + extra, "average": value + extra} for name, value in scores.items()}
        averages = {name: {"seconds_per_image": 0.01, "peak_memory_mb": 1500.0} for name in scores}
        costs = {name: {"pairs": 48, "cpu_seconds": 100.0 + cell.seed, "peak_memory_mb": 900.0} for name in ("clip", "tcl")}
        stages = {"evaluate": {"mIoU": miou, "averages": averages}, "train": {"costs": costs}}
        finished.append(Finished(cell, "id", "digest", stages))
    rows = rows_of(finished)
    assert [(row.setting, row.column, row.method) for row in rows][::3] == [
        (setting, f"short_side={side}", "chance") for setting in ("contrast", "whole") for side in (64, 80)
    ]
    assert list(compare(rows)) == [], "no intervals are asked for"
    score, cost = tables_of(rows, [])
    assert score.head == ("setting", "method", "voc21", "average, short_side=64", "average, short_side=80")
    assert score.rows[-1] == ("whole", "tcl", "25.5 (25.0..26.0)", "25.5 (25.0..26.0)", "35.0")
    assert cost.rows[0][:6] == ("contrast", "clip, the encoder", "text", "48", "100", "900")
    assert cost.rows[1][:6] == ("contrast", "chance", "none", "", "", "")
    assert cost.rows[3] == ("contrast", "tcl", "text", "48", "100", "900", "0.010", "1,500", "0.010", "1,500")
    assert "| whole | tcl | 25.5 (25.0..26.0) |" in score.markdown()


def test_what_rows_are_compared_with(tmp_path: Path) -> None:
    """The same method under the setting above, the best row, and the first column; by images and seeds."""
    finished = []
    for cell in cells_of(tmp_path, ABLATION, "evaluate.limit=[0, 9]", seeds=2, settings=("evaluate.datasets=[voc21]",)):
        right = {"chance": 10, "maskclip": 40, "tcl": 50 + 20 * (cell.setting == "whole") + 10 * (cell.column == "limit=9")}
        for method, pixels in right.items():
            folder = Path(cell.config.run_dir) / "evaluate" / method
            folder.mkdir(parents=True)
            intersection = np.full((6, 2), pixels + cell.seed)
            ids = tuple(f"image{number}" for number in range(6))
            write_image_counts(folder / "voc21.npz", ImageCounts(ids, intersection, np.full((6, 2), 100)))
        miou = {method: {"voc21": pixels + cell.seed, "average": pixels + cell.seed} for method, pixels in right.items()}
        finished.append(Finished(cell, "id", "digest", {"evaluate": {"mIoU": miou}}))
    compared = list(compare(rows_of(finished)))
    found = {(pair.row.setting, pair.row.method, pair.row.column, pair.why): pair.difference.mean for pair in compared}
    assert len(found) == len(compared) == 3 + 5 + 6
    assert found["whole", "tcl", "limit=0", "above"] == pytest.approx(20)
    assert found["contrast", "chance", "limit=0", "best"] == pytest.approx(-60)
    assert found["whole", "tcl", "limit=9", "column"] == pytest.approx(10)
    assert {pair.difference.significant for pair in compared if abs(pair.difference.mean) > 1} == {True}


# ------------------------------------------------------------------------------------------------------------------- a real one

SIDES = ("short_side=64", "short_side=80")
REAL = (
    *("--vary", "evaluate.short_side=[64, 80]"),
    *("methods=[maskclip]", "train.workers=1", "evaluate.datasets=[cityscapes]", "evaluate.pictures=false"),
)


class Sweep(NamedTuple):
    folder: Path
    before: dict[str, bytes]
    """Bytes of what was finished when the first start was killed, the logs of its works among them."""
    output: str
    """Of the second start."""
    told: dict[str, Any]
    """sweep.json."""


def finished_files(folder: Path) -> dict[str, bytes]:
    """What the finished works have left: summaries, logs, weights, scores."""
    done = [file.parent for file in folder.glob("*/*/summary.json")]
    files = [file for work in done for file in work.rglob("*") if file.is_file() and not file.is_symlink()]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Two sides times two seeds, killed with -9 when the first cell is finished, and started again."""
    folder = tmp_path_factory.mktemp("real") / "sweep"
    kill_when(lambda: any(folder.glob("cells/*/summary.json")), "sweep", folder, *REAL, "--seeds", "2", group=True)
    before = finished_files(folder)
    assert len(list(folder.glob("cells/*/summary.json"))) < 4, "the kill came too late to test anything"
    output = run_well("sweep", folder, *REAL, "--seeds", "2")
    return Sweep(folder, before, output, json.loads((folder / "sweep.json").read_text()))


def test_nothing_finished_is_done_again(real: Sweep) -> None:
    assert {name.partition("-")[0] for name in real.before if name.endswith("log.txt")} >= {"shared/data", "shared/clip"}
    after = finished_files(real.folder)
    assert {name: after[name] for name in real.before} == real.before
    logs = {file.parent.name: file.read_text() for file in real.folder.glob("*/*/log.txt")}
    for part, times in (("filter", 1), ("download", 1), ("train-clip", 2)):
        assert sum(log.count(f"\n{part}: done") for log in logs.values()) == times, part
    assert all("evaluate: done" in logs[cell["name"]] for cell in real.told["cells"])
    assert not any("MLflow cannot be reached" in log for log in logs.values()), "a store that several write loses nothing"
    name = next(Path(name).parent.name for name in real.before if name.startswith("cells/") and name.endswith("summary.json"))
    assert f"{name}: finished already, average mIoU" in real.output


def test_one_parent_with_a_run_for_each_cell(real: Sweep) -> None:
    where = real.told["mlflow"]
    assert where["tracking_uri"] == f"sqlite:///{real.folder / 'mlflow.db'}"
    client = MlflowClient(where["tracking_uri"])
    experiment = client.get_experiment_by_name(where["experiment"])
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    names = {cell["name"] for cell in real.told["cells"]}
    below = {run.info.run_name: run for run in runs if run.data.tags.get("mlflow.parentRunId") == where["run_id"]}
    assert len(below) == len(names) + 3, "the cells, the corpus and two encoders"
    assert names <= below.keys()
    assert {cell["run_id"] for cell in real.told["cells"]} == {below[name].info.run_id for name in names}
    for cell in real.told["cells"]:
        (evaluated,) = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == cell["run_id"]]
        assert evaluated.info.run_name == "evaluate maskclip"
        assert evaluated.data.metrics["average/mIoU"] == pytest.approx(cell["mIoU"]["maskclip"]["average"])
        assert below[cell["name"]].data.metrics["clip/train/cpu_seconds"] == pytest.approx(cell["costs"]["clip"]["cpu_seconds"])
    assert {run.info.status for run in runs} == {"FINISHED"}
    parent = client.get_run(where["run_id"])
    mean = real.told["rows"][0]["mIoU"]["average"]["mean"]
    assert parent.data.metrics["short_side_64/maskclip/average/mIoU"] == pytest.approx(mean)
    assert {file.path for file in client.list_artifacts(where["run_id"])} >= {"sweep.json", "sweep.md", "sweep.png"}


def test_what_a_sweep_leaves(real: Sweep) -> None:
    told = real.told
    assert told["grid"] == {"vary": {"evaluate.short_side": {SIDES[0]: 64, SIDES[1]: 80}}, "seeds": [0, 1]}
    assert [(cell["setting"], cell["column"], cell["seed"]) for cell in told["cells"]] == [
        ("", side, seed) for seed in (0, 1) for side in SIDES
    ]
    for row, side in zip(told["rows"], SIDES, strict=True):
        scores = [cell["mIoU"]["maskclip"]["average"] for cell in told["cells"] if cell["column"] == side]
        expected = {"mean": sum(scores) / 2, "lowest": min(scores), "highest": max(scores)}
        assert row["mIoU"]["average"] == pytest.approx(expected)
        low, high = row["intervals"]["average"]
        assert low < row["mIoU"]["average"]["mean"] < high
        assert row["supervision"] == "text"
    assert told["cells"][0]["settings"] == {"evaluate.short_side": 64}
    costs = told["cells"][0]["costs"]["clip"]
    assert (costs["steps"], costs["pairs"]) == (4, 32)
    assert costs["cpu_seconds"] > 0
    assert costs["peak_memory_mb"] > 50
    assert told["cells"][0]["averages"]["maskclip"]["peak_memory_mb"] > 50
    (gain,) = told["differences"]
    assert (gain["column"], gain["minus"]["column"]) == SIDES[::-1]
    assert gain["low"] <= gain["mean"] <= gain["high"]
    markdown = (real.folder / "sweep.md").read_text()
    for line in real.output.splitlines():
        if line.startswith("│  "):
            assert " | ".join(cell.strip() for cell in line.strip("│").split("│")).strip() in markdown
    assert "short_side=80 minus short_side=64" in markdown
    assert (real.folder / "sweep.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_cell_is_a_run_like_others(real: Sweep) -> None:
    """A cell's folder is a run's: its verb finds everything complete."""
    cell = real.folder / "cells" / f"{SIDES[0]}-seed0"
    assert (cell / "train" / "clip" / "model.json").is_file()
    assert (cell / "corpus").is_symlink()
    output = run_well(
        "train", cell, *REAL[2:], "evaluate.short_side=64", "session.address=127.0.0.1:1", "tracking.enabled=false"
    )
    assert "train: skipped, complete already" in output


@pytest.mark.slow
def test_a_failed_cell_stops_no_other(real: Sweep) -> None:
    missing = real.folder / "none.tsv"
    vary = ("--vary", f"filter.source.path={{world: '', missing: {missing}}}")
    result = run("sweep", real.folder, *vary, *REAL[2:])
    assert result.returncode == USER_MISTAKE
    assert result.stderr.splitlines()[-1].startswith("cell missing-seed0 failed: data-")
    assert result.stderr.splitlines()[-1].endswith(f"filter.source.path: no such file: {missing}")
    told = json.loads((real.folder / "sweep.json").read_text())
    assert [cell["name"] for cell in told["cells"]] == ["world-seed0"]
    assert list(told["failed"]) == ["missing-seed0"]
