"""The seam between the training loop and what carries out a step."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from owseg import InputError
from owseg.data import Batch
from owseg.optim import OptimConfig, parameter_groups


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of training in which the same parameters learn."""

    steps: int
    """Optimiser steps of this phase."""
    train: tuple[str, ...]
    """Name prefixes of the parameters that learn; all others stay frozen."""

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.train:
            raise InputError("steps must be at least 1, and train must name a parameter prefix")


class Trainable(Protocol):
    """What a training engine needs of a method (an nn.Module)."""

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalars, already weighted: the engine minimises their sum."""
        ...


class Engine(Protocol):
    """Carries out optimiser steps on fixed parameters; a new phase gets a new engine."""

    def step(self, batch: Batch, lr: float) -> dict[str, Tensor]:
        """One optimiser step at learning rate `lr`; returns this rank's losses (detached)."""
        ...

    def save(self, folder: Path) -> None:
        """Write this rank's optimiser state. Every rank calls it."""
        ...

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote with the same number of ranks."""
        ...


class TorchEngine:
    """The plain engine, in which everything can be read: AdamW, gradients averaged over ranks, norm clipped."""

    def __init__(
        self,
        method: nn.Module,
        parameters: Sequence[tuple[str, nn.Parameter]],
        optim: OptimConfig,
        device: torch.device | None = None,
    ) -> None:
        self.device = device or torch.device("cpu")
        self.method = method.to(self.device)
        self.parameters = [parameter for _, parameter in parameters]
        self.clip_norm = optim.clip_norm
        groups = parameter_groups(parameters, optim.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.betas[0], optim.betas[1]), eps=optim.eps)

    def step(self, batch: Batch, lr: float) -> dict[str, Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        losses: dict[str, Tensor] = self.method.losses(batch.to(self.device))  # type: ignore[operator]
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        if dist.is_initialized() and dist.get_world_size() > 1:
            for parameter in self.parameters:
                if parameter.grad is None:  # every rank must take part in every reduction
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.optimizer.step()
        return {name: loss.detach() for name, loss in losses.items()}

    def save(self, folder: Path) -> None:
        if not dist.is_initialized() or dist.get_rank() == 0:
            torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")

    def load(self, folder: Path) -> None:
        self.optimizer.load_state_dict(torch.load(folder / "optimizer.pt", map_location=self.device, weights_only=True))
