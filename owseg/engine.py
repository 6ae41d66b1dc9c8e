"""The seam between the training loop and what carries out a step, and where."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import isfinite
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from owseg import InputError
from owseg.adam import AdamState, Moments, torch_state
from owseg.data import Batch
from owseg.optim import OptimConfig, ParameterGroup, adamw
from owseg.steady import total_of
from owseg.trainable import TrainableMethod, losses_of


def usable_device(name: str | torch.device) -> torch.device:
    """The device of this name. Raises InputError where there is none here."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        device = torch.device(device.type, torch.cuda.current_device()) if str(device) == "cuda" else device
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device: {str(name)!r} cannot be used here ({error}); give cpu, or cuda where there is a GPU"
        ) from error
    return device


class Engine(Protocol):
    """Carries out optimiser steps on fixed parameters; a new phase gets a new engine, which takes over what stays."""

    skipped: bool
    """Whether the last step changed neither parameters nor the optimiser's state; the same on all ranks."""
    grad_norm: float
    """Of the last step's gradients together, before they are clipped; the same on all ranks."""

    def step(self, batch: Batch, lr: float) -> dict[str, Tensor]:
        """One optimiser step at learning rate `lr`; returns this rank's losses (detached).

        It is skipped where a loss or a gradient of any rank is not finite.
        """
        ...

    def moments(self) -> Iterator[tuple[str, Moments]]:
        """The optimiser's state of each parameter that it updates, whole on every rank. Every rank goes through all of it."""
        ...

    def set_moments(self, state: AdamState) -> None:
        """Before the first step: take over the state of those parameters that it has. Every rank calls it with the same."""
        ...

    def full_parameters(self) -> AbstractContextManager[None]:
        """While inside, the method's tensors are all there on every rank (ZeRO 3 shards them). Every rank enters."""
        ...

    def release(self) -> None:
        """End this engine: another one takes the method."""
        ...


class TorchEngine:
    """The plain engine, in which everything can be read: AdamW, gradients averaged over ranks, norm clipped.

    It minimises the sum of the method's `losses(batch)`: named scalars, already weighted.
    """

    skipped = False
    grad_norm = 0.0

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
        self.named = {name: parameter for group in groups for name, parameter in group.parameters.items()}
        self.parameters = [*self.named.values()]
        self.clip_norm = optim.clip_norm
        self.optimizer = adamw(groups, optim)
        self.ranks = dist.get_world_size() if dist.is_initialized() else 1

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
        self.grad_norm = float(norm)
        self.skipped = not isfinite(self.grad_norm)  # of the sums over ranks, so that all agree
        if not self.skipped:
            self.optimizer.step()
        return {name: loss.detach() for name, loss in losses.items()}

    def moments(self) -> Iterator[tuple[str, Moments]]:
        for name, parameter in self.named.items():
            if state := self.optimizer.state.get(parameter):
                yield name, Moments(int(state["step"]), state["exp_avg"], state["exp_avg_sq"])

    def set_moments(self, state: AdamState) -> None:
        for name in self.named.keys() & state.keys():
            self.optimizer.state[self.named[name]] = torch_state(state[name], self.device)

    def full_parameters(self) -> AbstractContextManager[None]:
        return nullcontext()

    def release(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
