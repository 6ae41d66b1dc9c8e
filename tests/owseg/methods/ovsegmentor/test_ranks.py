"""OVSegmentor over ranks, in real processes: two of them train as one does on the joined batch, on either engine.

All is in training mode and float64, so that rounding cannot hide a difference. Random draws are the same: drop path is 0, texts
and partners are those of the joined batch, and Gumbel noise is drawn for the joined batch, of which a rank takes its rows.
"""

from collections.abc import Callable

import pytest
import torch

from helpers import tiny
from helpers.ovsegmentor_ranks import RUNS, Trained, train, train_all
from helpers.ranks import start_ranks, wait_for_ranks
from helpers.tensors import assert_same

RANKS = 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]) -> dict[str, list[Trained]]:
    """What training comes to in "one" process on the plain engine, and on each of two ranks, by run."""
    folder = tmp_path_factory.mktemp("ranks")
    tiny.write_shards(folder)
    processes = start_ranks(train_all, folder, RANKS, free_port())
    one = train(folder, "one")
    wait_for_ranks(processes)
    return {"one": [one], **{run: [torch.load(folder / f"{run}-{rank}.pt") for rank in range(RANKS)] for run in RUNS}}


def assert_same_training(found: Trained, expected: Trained, tolerance: float) -> None:
    assert_same(found["state"], expected["state"], rtol=tolerance, atol=tolerance)
    for step, losses in enumerate(expected["losses"]):
        assert found["losses"][step] == pytest.approx(losses, rel=2e-6), step  # logged in float32


def test_training_moves_all_that_is_compared(trained: dict[str, list[Trained]]) -> None:
    """Both phases' losses, every weight of both towers, statistics of batch norm, and a momentum copy that lags behind."""
    (one,) = trained["one"]
    assert [sorted(losses) for losses in one["losses"]] == [
        *[["contrast", "entity", "label"]] * 2,
        *[["contrast", "entity", "label", "mask"]] * 2,
    ]
    assert one["state"]["image_head.norm.num_batches_tracked"] > 0
    lag = one["state"]["encoder.tokens"] - one["state"]["momentum.tokens"]
    assert 0 < lag.abs().max() < 1e-2


def test_two_processes_train_as_one(trained: dict[str, list[Trained]]) -> None:
    for found in trained["plain"]:
        assert_same_training(found, trained["one"][0], 1e-9)


@pytest.mark.parametrize("run", ["zero1", "zero3"])
def test_deepspeed_trains_as_the_plain_engine(trained: dict[str, list[Trained]], run: str) -> None:
    """On each rank, to the rounding of ZeRO's float32 master weights; with ZeRO 3 from shards of all parameters."""
    for found in trained[run]:
        assert_same_training(found, trained["one"][0], 2e-6)
        assert bool(found["sharded"]) == (run == "zero3")


@pytest.mark.parametrize("start", [2, 3])
def test_a_resumed_run_ends_the_same(trained: dict[str, list[Trained]], start: int) -> None:
    """Where the second phase begins, and within it: the momentum copy goes on from the checkpoint."""
    for whole, found in zip(trained["zero3"], trained[f"zero3 from {start}"], strict=True):
        assert_same_training(found, {**whole, "losses": whole["losses"][start:]}, 0.0)
