"""ViL-Seg over ranks, in real processes: two of them train as one does on the joined batch.

In float64, so that rounding cannot hide a difference (but for ZeRO 3, which takes no float64). Views are drawn for the joined
batch, of which a rank takes its rows.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.distributed as dist
from chain import start_ranks
from torch import Tensor

from cluster.engine import DeepSpeedEngine
from owseg.engine import Engine, TorchEngine
from owseg.fit import phase_groups
from owseg.methods.vilseg import VilSeg
from owseg.methods.vilseg.clustering import random_affine, warp
from owseg.methods.vilseg.views import Views

RANKS, STEPS, BATCH = 2, 3, 8
RUNS: dict[str, tuple[int, dict[str, Any]]] = {
    "plain": (0, {}),
    "shifts": (0, {"cluster_shifts": 1, "cluster_form": "collapsed", "cluster_gradient": True, "cluster_lambda": 1.5}),
    "zero1": (1, {}),
    "zero3": (3, {}),
}
"""ZeRO stage (0 = the plain engine), and settings."""
SCRIPT = """
import sys
from pathlib import Path
import torch, torch.distributed as dist
folder = Path(sys.argv[1])
sys.path.insert(0, sys.argv[2])
import test_vilseg_ranks as ranks
dist.init_process_group("gloo")
torch.set_num_threads(1)
for run in ranks.RUNS:
    torch.save(ranks.train(run), folder / f"{run}-{dist.get_rank()}.pt")
dist.destroy_process_group()
"""


def joined(step: int) -> tuple[Views, Tensor]:
    """A step's views and texts, for all ranks together."""
    generator = torch.Generator().manual_seed(step)
    image, other = torch.randn(2, BATCH, 3, 32, 32, generator=generator, dtype=torch.float64)
    local = torch.randn(2 * BATCH, 3, 16, 16, generator=generator, dtype=torch.float64)
    torch.manual_seed(step)
    theta = random_affine(BATCH, degrees=20, scale=0.2, flip=0.5, device=torch.device("cpu"), dtype=torch.float64)
    tokens = torch.randint(1, 900, (BATCH, 16), generator=generator)
    tokens[:, -1] = 1023
    return Views(torch.cat([image, other]), local, warp(image, theta), theta), tokens


def share(rows: Tensor, views: int = 1) -> Tensor:
    """This rank's rows of a joined batch of `views` views, view by view."""
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    return torch.cat([view.chunk(ranks)[rank] for view in rows.chunk(views)])


class Given:
    """Stands in for a batch: what the losses read of it, drawn already."""

    def __init__(self, views: Views, tokens: Tensor) -> None:
        self.views, self.tokens = views, tokens

    def to(self, device: torch.device) -> "Given":
        del device
        return self


def train(run: str) -> dict[str, Any]:
    stage, settings = RUNS[run]
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    torch.manual_seed(0)
    kind = torch.float32 if stage == 3 else torch.float64
    method = VilSeg(tiny.vilseg_config(momentum=0.9, **settings)).to(kind)
    method.losses = lambda batch: method.losses_from(batch.views, batch.tokens)  # type: ignore[method-assign,assignment]
    config = method.config
    (groups,) = phase_groups(method, config.phases, config.optim)
    engine: Engine = TorchEngine(method, groups, config.optim)
    if stage and dist.is_initialized():
        spread: dict[str, Any] = {"batch_per_worker": BATCH // ranks, "zero_stage": stage, "bf16": False}
        engine = DeepSpeedEngine(method, groups, config.optim, device=torch.device("cpu"), **spread)
    found: dict[str, Any] = {"losses": [], "watched": []}
    with engine.full_parameters(), torch.no_grad():
        method.begin_phase(config.phases[0])
    for step in range(STEPS):
        views, tokens = joined(step)
        mine = Views(share(views.whole, 2), share(views.local, 2), share(views.twin), share(views.theta))
        mine = Views(*(view.to(kind) for view in mine))
        losses = engine.step(Given(mine, share(tokens)), 1e-3)  # type: ignore[arg-type]
        with engine.full_parameters(), torch.no_grad():
            method.after_step()
        found["losses"].append({name: loss.clone() for name, loss in losses.items()})
        found["watched"].append({name: value.clone() for name, value in method.diagnostics.items()})
    with engine.full_parameters():
        found["state"] = {name: tensor.detach().clone() for name, tensor in method.state_dict().items()}
    return found


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]) -> Path:
    """The folder in which two processes left what they trained."""
    folder = tmp_path_factory.mktemp("ranks")
    processes = start_ranks(SCRIPT, folder, RANKS, free_port())
    assert [process.wait(timeout=300) for process in processes] == [0] * RANKS
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
    for name, tensor in alone["state"].items():
        for part in parts:
            assert torch.allclose(part["state"][name], tensor, rtol=0, atol=tolerance), name
    assert alone["state"]["centre"].abs().sum() > 0
    assert int(alone["state"]["taken"]) == STEPS


def test_a_joint_of_each_rank_alone_would_be_seen(two: Path) -> None:
    """The clustering loss depends on the pooling: half the batch by itself has another one."""
    torch.manual_seed(0)
    method = VilSeg(tiny.vilseg_config(momentum=0.9)).double()
    views, tokens = joined(0)
    whole = method.losses_from(views, tokens)["cluster"].item()
    half = Views(views.whole.chunk(4)[0].repeat(2, 1, 1, 1), views.local.chunk(4)[0], views.twin.chunk(2)[0], views.theta[:4])
    alone = method.losses_from(half._replace(local=half.local.repeat(2, 1, 1, 1)), tokens[:4])["cluster"].item()
    assert abs(alone - whole) > 1e-6
    part = torch.load(two / "plain-0.pt", weights_only=True)
    assert part["losses"][0]["cluster"].item() == pytest.approx(whole, rel=1e-9)
