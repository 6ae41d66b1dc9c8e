"""ViL-Seg over ranks, in real processes: two of them train as one does on the joined batch.

In float64, so that rounding cannot hide a difference (but for ZeRO 3, which takes no float64). Views are drawn for the joined
batch, of which a rank takes its rows.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers import tiny
from helpers.ranks import start_ranks, wait_for_ranks
from helpers.tensors import assert_same
from helpers.vilseg_ranks import RANKS, RUNS, STEPS, joined, train, train_all
from owseg.methods.vilseg import VilSeg
from owseg.methods.vilseg.views import Views


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]) -> Path:
    """The folder in which two processes left what they trained."""
    folder = tmp_path_factory.mktemp("ranks")
    wait_for_ranks(start_ranks(train_all, folder, RANKS, free_port()))
    return folder


@pytest.mark.parametrize("run", RUNS)
def test_two_ranks_train_as_one_process(two: Path, run: str) -> None:
    tolerance = {0: 1e-9, 1: 2e-6, 3: 1e-4}[RUNS[run][0]]  # ZeRO clips and steps in float32, ZeRO 3 is float32 throughout
    alone = train(run)
    parts = [torch.load(two / f"{run}-{rank}.pt", weights_only=True) for rank in range(RANKS)]
    for step in range(STEPS):
        for name, loss in alone["losses"][step].items():
            mean = torch.stack([part["losses"][step][name] for part in parts]).mean()
            assert mean.item() == pytest.approx(loss.item(), rel=tolerance, abs=tolerance / 100), (step, name)
        for name in ("cluster/mutual_information", "cluster/perplexity"):
            for part in parts:
                assert part["watched"][step][name].item() == pytest.approx(
                    alone["watched"][step][name].item(), rel=tolerance, abs=tolerance / 100
                )
    for part in parts:
        assert_same(part["state"], alone["state"], atol=tolerance)
    assert alone["state"]["centre"].abs().sum() > 0
    assert int(alone["state"]["taken"]) == STEPS


def cluster_loss(method: VilSeg, views: Views, tokens: Tensor) -> float:
    encoded = method.encode_views(views, tokens, method.centre)
    return method.cluster_loss(encoded["counts"], encoded["clusters"]).item()


def test_a_joint_of_each_rank_alone_would_be_seen(two: Path) -> None:
    """The clustering loss depends on the pooling: half the batch by itself has another one."""
    torch.manual_seed(0)
    method = VilSeg(tiny.vilseg_config(momentum=0.9)).double()
    views, tokens = joined(0)
    whole = cluster_loss(method, views, tokens)
    half = Views(views.whole.chunk(4)[0].repeat(2, 1, 1, 1), views.local.chunk(4)[0], views.twin.chunk(2)[0], views.theta[:4])
    alone = cluster_loss(method, half._replace(local=half.local.repeat(2, 1, 1, 1)), tokens[:4])
    assert abs(alone - whole) > 1e-6
    part = torch.load(two / "plain-0.pt", weights_only=True)
    assert part["losses"][0]["cluster"].item() == pytest.approx(whole, rel=1e-9)
