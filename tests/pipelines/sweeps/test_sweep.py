"""A small real sweep that is killed in the middle and begun again."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from mlflow import MlflowClient

from helpers.chain import kill_when, run, run_well
from pipelines.app.outcome import USER_MISTAKE

# ------------------------------------------------------------------------------------------------------------------- a real one

SIDES = ("short_side=64", "short_side=80")


REAL = (
    *("--vary", "evaluate.short_side=[64, 80]"),
    *("methods=[maskclip]", "train.workers=1", "evaluate.datasets=[cityscapes]", "evaluate.pictures=false"),
)


class Sweep(NamedTuple):
    folder: Path
    seeds: int
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


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.slow)])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Two sides times one seed or two, killed with -9 when the first cell is finished, and started again."""
    folder, seeds = tmp_path_factory.mktemp("real") / "sweep", str(request.param)
    kill_when(lambda: any(folder.glob("cells/*/summary.json")), "sweep", folder, *REAL, "--seeds", seeds, group=True)
    before = finished_files(folder)
    assert len(list(folder.glob("cells/*/summary.json"))) < 2 * request.param, "the kill came too late to test anything"
    output = run_well("sweep", folder, *REAL, "--seeds", seeds)
    return Sweep(folder, request.param, before, output, json.loads((folder / "sweep.json").read_text()))


def test_nothing_finished_is_done_again(real: Sweep) -> None:
    assert {name.partition("-")[0] for name in real.before if name.endswith("log.txt")} >= {"shared/data", "shared/clip"}
    after = finished_files(real.folder)
    assert {name: after[name] for name in real.before} == real.before
    logs = {file.parent.name: file.read_text() for file in real.folder.glob("*/*/log.txt")}
    for part, times in (("filter", 1), ("download", 1), ("train-clip", real.seeds)):
        assert sum(log.count(f"\n{part}: done") for log in logs.values()) == times, part
    assert all("evaluate: done" in logs[cell["name"]] for cell in real.told["cells"])
    assert not any("MLflow cannot be reached" in log for log in logs.values()), "a store that several write loses nothing"
    name = next(Path(name).parent.name for name in real.before if name.startswith("cells/") and name.endswith("summary.json"))
    assert f"{name}: finished already, average mIoU" in real.output


def test_one_parent_with_a_run_for_each_cell(real: Sweep) -> None:
    where = real.told["mlflow"]
    assert where["tracking_uri"] == f"sqlite:///{real.folder.parent / 'mlflow.db'}"
    client = MlflowClient(where["tracking_uri"])
    experiment = client.get_experiment_by_name(where["experiment"])
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    names = {cell["name"] for cell in real.told["cells"]}
    below = {run.info.run_name: run for run in runs if run.data.tags.get("mlflow.parentRunId") == where["run_id"]}
    assert len(below) == len(names) + 1 + real.seeds, "the cells, the corpus and an encoder for each seed"
    assert names <= below.keys()
    assert {cell["run_id"] for cell in real.told["cells"]} == {below[name].info.run_id for name in names}
    for cell in real.told["cells"]:
        (evaluated,) = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == cell["run_id"]]
        assert evaluated.info.run_name == "evaluate maskclip"
        assert evaluated.data.metrics["mIoU/average_of_cityscapes"] == pytest.approx(cell["mIoU"]["maskclip"]["average"])
        assert below[cell["name"]].data.metrics["train/clip/cpu_seconds"] == pytest.approx(cell["costs"]["clip"]["cpu_seconds"])
    assert {run.info.status for run in runs} == {"FINISHED"}
    parent = client.get_run(where["run_id"])
    mean = real.told["rows"][0]["mIoU"]["average"]["mean"]
    assert parent.data.metrics["mIoU/short_side_64/maskclip/average_of_cityscapes"] == pytest.approx(mean)
    assert {file.path for file in client.list_artifacts(where["run_id"])} >= {"sweep.json", "sweep.md", "sweep.png"}


def test_what_a_sweep_leaves(real: Sweep) -> None:
    told = real.told
    assert told["grid"] == {"vary": {"evaluate.short_side": {SIDES[0]: 64, SIDES[1]: 80}}, "seeds": [*range(real.seeds)]}
    assert [(cell["setting"], cell["column"], cell["seed"]) for cell in told["cells"]] == [
        ("", side, seed) for seed in range(real.seeds) for side in SIDES
    ]
    for row, side in zip(told["rows"], SIDES, strict=True):
        scores = [cell["mIoU"]["maskclip"]["average"] for cell in told["cells"] if cell["column"] == side]
        expected = {"mean": sum(scores) / len(scores), "lowest": min(scores), "highest": max(scores)}
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
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in markdown.splitlines() if line.startswith("|")]
    printed = [
        [cell.strip() for cell in line.strip("│").split("│")] for line in real.output.splitlines() if line.startswith("│  ")
    ]
    assert printed
    for cells in printed:  # a table that is wider than the terminal comes in blocks of columns
        assert any(set(filter(None, cells)) <= {*row} for row in rows), cells
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
