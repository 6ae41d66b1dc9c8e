"""A rank's training of a tiny ViL-Seg on its rows of batches that are drawn for all ranks together."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cluster.engine import DeepSpeedEngine
from helpers import tiny
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
        self.views, self.tokens, self.image, self.first = views, tokens, tokens, 0

    def to(self, device: torch.device) -> "Given":
        del device
        return self


def train(run: str) -> dict[str, Any]:
    stage, settings = RUNS[run]
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    torch.manual_seed(0)
    kind = torch.float32 if stage == 3 else torch.float64
    method = VilSeg(tiny.vilseg_config(momentum=0.9, **settings)).to(kind)
    method.encode = lambda batch, shared: method.encode_views(batch.views, batch.tokens, shared["centre"])  # type: ignore
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


def train_all(folder: Path) -> None:
    """A rank's part: each run's training into a file of the folder."""
    for run in RUNS:
        torch.save(train(run), folder / f"{run}-{dist.get_rank()}.pt")
