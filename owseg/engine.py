"""The seam between the training loop and what carries out a step."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from owseg import InputError
from owseg.data import AugmentConfig, Batch
from owseg.optim import Moments, OptimConfig, ParameterGroup, Stretch, adamw, moments, with_moments


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of training in which the same parameters learn."""

    steps: int
    """Optimiser steps of this phase."""
    train: tuple[str, ...]
    """Name prefixes of the parameters that learn; all others stay frozen."""
    partners: bool = False
    """Whether each image comes with another one that shares an entity with it."""
    optim: OptimConfig | None = None
    """Begins a training of its own: schedule, optimiser and epochs start afresh, weights go on; null = the last one goes on."""
    augment: AugmentConfig | None = None
    """Augmentation of this phase; null = the method's."""

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.train:
            raise InputError("steps must be at least 1, and train must name a parameter prefix")


class Span(NamedTuple):
    """A phase in its place. Steps are counted from the first phase's first."""

    phase: Phase
    start: int
    stop: int
    """Its steps are start..stop-1."""
    stretch: Stretch
    """The training that it is part of, alone or with its neighbours."""


def spans(phases: Sequence[Phase], optim: OptimConfig) -> list[Span]:
    """Phases in their places; `optim` is that of phases before the first one with its own. InputError where there is none."""
    if not phases:
        raise InputError("phases: there are none; give at least one")
    starts = [sum(phase.steps for phase in phases[:index]) for index in range(len(phases) + 1)]
    firsts = [index for index, phase in enumerate(phases) if index == 0 or phase.optim is not None]
    found = []
    for number, (first, after) in enumerate(pairwise([*firsts, len(phases)])):
        own = phases[first].optim
        stretch = Stretch(number, own or optim, f"phases.{first}.optim" if own else "optim", starts[first], starts[after])
        found += [Span(phases[index], starts[index], starts[index + 1], stretch) for index in range(first, after)]
    return found


def augmentations(phases: Sequence[Phase], augment: AugmentConfig) -> list[tuple[str, AugmentConfig]]:
    """Each phase's augmentation with its place in the method's settings; `augment` is that of phases without their own."""
    return [
        (f"phases.{number}.augment", phase.augment) if phase.augment else ("augment", augment)
        for number, phase in enumerate(phases)
    ]


class Engine(Protocol):
    """Carries out optimiser steps on fixed parameters; a new phase gets a new engine, which takes over what stays."""

    def step(self, batch: Batch, lr: float) -> dict[str, Tensor]:
        """One optimiser step at learning rate `lr`; returns this rank's losses (detached)."""
        ...

    def save(self, folder: Path) -> None:
        """Write this rank's optimiser state, and make all ranks' weights one. Every rank calls it."""
        ...

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote with the same number of ranks."""
        ...

    def whole(self) -> AbstractContextManager[None]:
        """While inside, the method's tensors are all there on every rank (ZeRO 3 shards them). Every rank enters."""
        ...

    def hand_over(self) -> Moments:
        """End this engine; returns the optimiser's state for the next engine."""
        ...

    def take_over(self, carried: Moments) -> None:
        """Go on from an earlier engine's state where groups are the same; new groups start afresh."""
        ...


class TorchEngine:
    """The plain engine, in which everything can be read: AdamW, gradients averaged over ranks, norm clipped.

    It minimises the sum of the method's `losses(batch)`: named scalars, already weighted.
    """

    def __init__(
        self,
        method: nn.Module,
        groups: Sequence[ParameterGroup],
        optim: OptimConfig,
        device: torch.device | None = None,
        *,
        bf16: bool = False,
    ) -> None:
        self.device = device or torch.device("cpu")
        self.bf16 = bf16
        self.method = method.to(self.device)
        self.shared = [parameter for group in groups if not group.local for parameter in group.parameters]
        self.local = [parameter for group in groups if group.local for parameter in group.parameters]
        self.clip_norm = optim.clip_norm
        self.optimizer = adamw(groups, optim)
        self.rank, self.ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)

    def step(self, batch: Batch, lr: float) -> dict[str, Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            losses: dict[str, Tensor] = self.method.losses(batch.to(self.device))  # type: ignore[operator]
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        if self.ranks > 1:
            for parameter in self.shared:
                if parameter.grad is None:  # every rank must take part in every reduction
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)
                parameter.grad /= self.ranks
        torch.nn.utils.clip_grad_norm_(self.shared + self.local, self.clip_norm)
        self.optimizer.step()
        return {name: loss.detach() for name, loss in losses.items()}

    def save(self, folder: Path) -> None:
        if self.local and self.ranks > 1:  # unlike gradients make unlike norms, so clipping drove shared ones apart as well
            for parameter in self.shared + self.local:
                dist.broadcast(parameter.data, src=0)
        if self.local or self.rank == 0:  # weights are one again, moments stay each rank's own (as in the official code)
            torch.save(self.optimizer.state_dict(), self._state_path(folder))

    def load(self, folder: Path) -> None:
        self.optimizer.load_state_dict(torch.load(self._state_path(folder), map_location="cpu", weights_only=True))

    def _state_path(self, folder: Path) -> Path:
        return folder / (f"optimizer-{self.rank}.pt" if self.local else "optimizer.pt")

    def whole(self) -> AbstractContextManager[None]:
        return nullcontext()

    def hand_over(self) -> Moments:
        return moments(self.optimizer.state_dict())

    def take_over(self, carried: Moments) -> None:
        self.optimizer.load_state_dict(with_moments(self.optimizer.state_dict(), carried))
