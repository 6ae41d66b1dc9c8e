"""The twins agree: DeepSpeed takes the plain engine's steps over the change of phase, and either goes on from the other's."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from helpers import tiny
from helpers.engine_ranks import CROSSINGS, cross, train_stages
from helpers.ranks import start_ranks, wait_for_ranks
from helpers.tensors import assert_same
from owseg.fit import WEIGHTS
from owseg.snapshots import damage
from owseg.weights import not_finite


def weights(folder: Path, stage: int, run: str) -> dict[str, torch.Tensor]:
    return load_file(folder / f"stage{stage}" / run / "4" / WEIGHTS)


def test_deepspeed_takes_the_plain_engines_steps(tmp_path: Path, free_port: Callable[[], int]) -> None:
    """Two steps in each phase on two ranks, with ZeRO 1, 2 and 3; and resumed at the change of phase and after it."""
    tiny.write_shards(tmp_path)
    wait_for_ranks(start_ranks(train_stages, tmp_path, 2, free_port(), "0", "1", "2", "3"))

    plain = weights(tmp_path, 0, "whole")
    for step in (2, 3):
        assert_same(weights(tmp_path, 0, f"from{step}"), plain)
    for stage in (1, 2, 3):
        sharded = weights(tmp_path, stage, "whole")
        # Adam divides by the root of tiny squared gradients, so a difference in the last digit of a sum can show as 1e-5.
        assert_same(sharded, plain, rtol=1e-3, atol=2e-5)
        for step in (2, 3):
            assert_same(weights(tmp_path, stage, f"from{step}"), sharded)
    left = weights(tmp_path, 0, "spoilt")
    assert not not_finite(left)
    for stage in (1, 2, 3):
        assert_same(weights(tmp_path, stage, "spoilt"), left, rtol=1e-3, atol=2e-5)
    assert sorted(path.name for path in (tmp_path / "stage3" / "spoilt").iterdir()) == ["2", "4"], "none after a skipped step"
    wait_for_ranks(start_ranks(cross, tmp_path, 2, free_port(), *CROSSINGS))
    wait_for_ranks(start_ranks(cross, tmp_path, 1, free_port(), "1:2:3", "3:0:1", "0:3:2"))
    crossed = sorted(tmp_path.glob("on*/*/4"))
    assert len(crossed) == len(CROSSINGS) + 3
    for folder in crossed:  # on other ranks sums are rounded otherwise; test_equal_on_ranks goes on to four
        assert_same(load_file(folder / WEIGHTS), plain, rtol=1e-3, atol=5e-5)
    for stage in range(4):
        assert damage(tmp_path / f"stage{stage}" / "whole" / "4") == ""
