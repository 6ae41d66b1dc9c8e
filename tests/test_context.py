"""A stage that is begun again is not complete until it ends."""

from pathlib import Path

import pytest

from cluster.tracking import NullTracker
from pipelines.context import Context, Result
from pipelines.settings import Config


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
