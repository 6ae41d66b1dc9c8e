"""A stage that is begun again is not complete until it ends."""

from pathlib import Path

import pytest

from cluster.tracking import NullTracker
from pipelines.app.context import Context, Result
from pipelines.app.settings import Config
from pipelines.train import clear_other


def test_a_stage_cut_short_is_not_complete_for_what_it_was_before(tmp_path: Path) -> None:
    context = Context(Config(run_dir=str(tmp_path)), NullTracker())
    done: list[str] = []

    def work() -> Result:
        done.append("work")
        return {"digest": "d"}

    def killed() -> Result:
        raise KeyboardInterrupt

    for _ in range(2):
        context.stage("filter", "before", tmp_path, work)
    assert len(done) == 1
    with pytest.raises(KeyboardInterrupt):
        context.stage("filter", "after", tmp_path, killed)
    assert context.stage("filter", "before", tmp_path, work)["status"] == "done"
    assert len(done) == 2


def test_a_complete_stage_is_done_again_only_where_its_result_asks_for_it(tmp_path: Path) -> None:
    context = Context(Config(run_dir=str(tmp_path)), NullTracker())
    left = iter([2, 1])

    def work() -> Result:
        return {"digest": "d", "left": next(left)}

    def stage(least: int) -> Result:
        return context.stage("download", "f", tmp_path, work, again=lambda result: result["left"] >= least)

    results = [stage(2), stage(3), stage(2), stage(2)]
    assert [(result["status"], result["left"]) for result in results] == [
        ("done", 2),
        ("skipped", 2),
        ("done", 1),
        ("skipped", 1),
    ]


def test_a_training_goes_on_from_its_own_checkpoints_alone(tmp_path: Path) -> None:
    checkpoint = tmp_path / "tcl" / "checkpoints" / "position.json"
    for fingerprint, kept in (("these shards", False), ("these shards", True), ("more shards", False)):
        clear_other(tmp_path / "tcl", fingerprint)
        assert checkpoint.is_file() is kept
        checkpoint.parent.mkdir(exist_ok=True)
        checkpoint.touch()
