"""What the cells of a sweep share, and what fails when a work fails."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from cluster.session import SessionConfig
from cluster.tracking import TrackingConfig
from cluster.train_config import TrainConfig
from helpers.sweeps import ABLATION, cells_of, works_of
from pipelines import sweep
from pipelines.app.outcome import DONE, FAILED, USER_MISTAKE
from pipelines.app.run_dir import digest_of_run
from pipelines.app.settings import Config
from pipelines.app.stage_marker import StageMarker, record_files, write_marker
from pipelines.sweeps.work import Outcome, Work, plan


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


@pytest.mark.parametrize("lost", ["shards/00000.tar", "corpus/index.parquet", "download.done.json"])
def test_a_work_whose_files_are_lost_is_not_done(tmp_path: Path, lost: str) -> None:
    work = Work("data", "download", Config(run_dir=str(tmp_path)))
    for stage, output in (("filter", "corpus/index.parquet"), ("download", "shards/00000.tar")):
        file = tmp_path / output
        file.parent.mkdir()
        file.write_text(stage)
        marker = StageMarker(fingerprint="f", digest="d", seconds=0, output=file.parent.name)
        write_marker(tmp_path, stage, replace(marker, files=record_files(tmp_path, [file])))
    stages = {"filter": {"output": "corpus"}, "download": {"output": "shards"}}
    assert not work.is_done()
    (tmp_path / "summary.json").write_text(json.dumps({"config_digest": digest_of_run(work.config), "stages": stages}))
    assert work.is_done()
    (tmp_path / lost).unlink()
    assert not work.is_done()


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

            def __enter__(self) -> "Pool":
                return self

            def __exit__(self, *_: object) -> None:
                assert not self.calls

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
