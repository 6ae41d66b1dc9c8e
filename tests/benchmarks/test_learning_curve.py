"""The learning curve's settings are the demo's, so many times as large."""

from pathlib import Path

import pytest
from learning_curve import DEMO, ENCODER, SYSTEMS, budgets, check_settings, scaled

from pipelines.app.config import ConfigError, load
from pipelines.app.settings import Config


@pytest.mark.parametrize("times", [1, 3])
def test_data_and_schedules_grow_alike(times: int) -> None:
    demo = load(Config, Path(DEMO), [])
    larger = load(Config, Path(DEMO), list(scaled(demo, times)))
    assert larger.miniature.links == demo.miniature.links * times
    assert larger.filter.min_count == demo.filter.min_count * times
    for name in (ENCODER, *SYSTEMS):
        before, after = getattr(demo.method_settings, name), getattr(larger.method_settings, name)
        assert [phase.steps for phase in after.phases] == [phase.steps * times for phase in before.phases]
        assert after.optim.warmup == before.optim.warmup * times
        assert after.optim.lr == before.optim.lr
    assert (larger == demo) is (times == 1)


def test_wrong_arguments_are_told_before_any_work() -> None:
    assert budgets("10,1,3") == [1, 3, 10]
    for text in ("", "0", "1,0", "1,1", "three", "-1", "1.5"):
        with pytest.raises(ConfigError, match="--times"):
            budgets(text)
    for setting in ("evaluate.oracle=false", "evaluate.bootstrap=0", "methods=[chance]", "run_dir=elsewhere"):
        with pytest.raises(ConfigError, match="is the curve's own"):
            check_settings([setting])
