"""The seam between the training loop and what carries out a step."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from owseg.data import Batch
from owseg.optim import AdamState, OptimConfig, ParameterGroup, adam_state, adamw, with_adam_state
from owseg.steady import total_of
from owseg.trainable import TrainableMethod, losses_of

STATE = "optimizer.pt"
"""The plain engine's file in a checkpoint."""


class Engine(Protocol):
    """Carries out optimiser steps on fixed parameters; a new phase gets a new engine, which takes over what stays."""

    skipped: bool
    """Whether the last step changed neither parameters nor the optimiser's state; the same on all ranks."""

    def step(self, batch: Batch, lr: float) -> dict[str, Tensor]:
        """One optimiser step at learning rate `lr`; returns this rank's losses (detached).

        It is skipped where a loss or a gradient of any rank is not finite.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write the optimiser state, or this rank's part of it. Every rank calls it."""
        ...

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote with the same number of ranks."""
        ...

    def full_parameters(self) -> AbstractContextManager[None]:
        """While inside, the method's tensors are all there on every rank (ZeRO 3 shards them). Every rank enters."""
        ...

    def release_optimizer_state(self) -> AdamState:
        """End this engine; returns the optimiser's state for the next engine."""
        ...

    def load_optimizer_state(self, carried: AdamState) -> None:
        """Go on from an earlier engine's state where groups are the same; new groups start afresh."""
        ...


class TorchEngine:
    """The plain engine, in which everything can be read: AdamW, gradients averaged over ranks, norm clipped.

    It minimises the sum of the method's `losses(batch)`: named scalars, already weighted.
    """

    skipped = False

    def __init__(
        self,
        method: TrainableMethod,
        groups: Sequence[ParameterGroup],
        optim: OptimConfig,
        device: torch.device | None = None,
        *,
        bf16: bool = False,
    ) -> None:
        self.device = device or torch.device("cpu")
        self.bf16 = bf16
        self.method = method.to(self.device)
        self.parameters = [parameter for group in groups for parameter in group.parameters]
        self.clip_norm = optim.clip_norm
        self.optimizer = adamw(groups, optim)
        self.rank, self.ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)

    def step(self, batch: Batch, lr: float) -> dict[str, Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            losses = losses_of(self.method, batch.to(self.device))
        self.optimizer.zero_grad(set_to_none=True)
        total_of(losses).backward()  # type: ignore[no-untyped-call]
        if self.ranks > 1:
            for parameter in self.parameters:
                if parameter.grad is None:  # every rank must take part in every reduction
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)
                parameter.grad /= self.ranks
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.skipped = not norm.isfinite()  # of the sums over ranks, so that all agree
        if not self.skipped:
            self.optimizer.step()
        return {name: loss.detach() for name, loss in losses.items()}

    def save(self, folder: Path) -> None:
        if self.rank == 0:  # the others' is the same
            torch.save(self.optimizer.state_dict(), folder / STATE)

    def load(self, folder: Path) -> None:
        self.optimizer.load_state_dict(torch.load(folder / STATE, map_location="cpu", weights_only=True))

    def full_parameters(self) -> AbstractContextManager[None]:
        return nullcontext()

    def release_optimizer_state(self) -> AdamState:
        return adam_state(self.optimizer.state_dict())

    def load_optimizer_state(self, carried: AdamState) -> None:
        self.optimizer.load_state_dict(with_adam_state(self.optimizer.state_dict(), carried))
