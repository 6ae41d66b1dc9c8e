"""Optimiser settings, the learning-rate schedule and which tensors are decayed."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import nn

from owseg import InputError
from owseg.fields import FORMER_VALUES, check_range


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with linear warm-up and cosine decay (TCL's by default)."""

    batch_size: int = 1024
    """Image-caption pairs of one step, over all workers."""
    lr: float = 3e-4
    """Peak learning rate, for a batch of `lr_batch`; the rate in use scales linearly with batch_size."""
    min_lr: float = 4e-5
    """Learning rate at the end of the cosine, for a batch of `lr_batch`."""
    lr_batch: int = 4096
    """The global batch that lr and min_lr are stated for; 0 = use them as they are."""
    warmup: int = 15000
    """Steps of linear warm-up."""
    warmup_lr: float = 0.0
    """Learning rate at which schedule=cosine_unshifted starts its warm-up, for a batch of `lr_batch`."""
    schedule: Literal["cosine", "cosine_unshifted"] = field(
        default="cosine", metadata={FORMER_VALUES: {"timm": "cosine_unshifted"}}
    )
    """cosine: warm-up from 1e-4 of lr, then the cosine (TCL's); cosine_unshifted: from warmup_lr, cosine as if from step 0."""
    weight_decay: float = 0.05
    """Decoupled weight decay on matrices and kernels; biases, norms and scalars are spared."""
    betas: tuple[float, ...] = (0.9, 0.999)
    """AdamW's two moment decays."""
    eps: float = 1e-6
    """AdamW's epsilon."""
    clip_norm: float = 5.0
    """Global gradient norm above which gradients are scaled down."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "lr", "eps", "clip_norm"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name}: {getattr(self, name)} must be positive")
        check_range(self, "min_lr", "lr_batch", "warmup", "warmup_lr", "weight_decay", least=0)
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"betas: {list(self.betas)} must be two numbers from 0 to below 1")
        if self.warmup_lr and self.schedule != "cosine_unshifted":
            raise InputError(
                f"warmup_lr: schedule={self.schedule} starts at 1e-4 of lr; set schedule=cosine_unshifted or leave it out"
            )


def scaled_lr(config: OptimConfig, lr: float) -> float:
    """`lr` at the batch size in use (linear scaling rule)."""
    return lr * config.batch_size / config.lr_batch if config.lr_batch else lr


def lr_at(config: OptimConfig, step: int, total: int) -> float:
    """The learning rate of a step of `total`, counted from 0.

    "cosine": linear from 1e-4 of the peak over the warm-up, then cosine over the rest (official TCL).
    "cosine_unshifted": as timm's CosineLRScheduler sets it after each step (official OVSegmentor): linear from `warmup_lr`,
    then the cosine that began at step 0, so that it takes over a little below the peak; steps 0 and 1 have the same rate, all
    later ones lag by a step.
    """
    peak, floor = scaled_lr(config, config.lr), scaled_lr(config, config.min_lr)
    if config.schedule == "cosine_unshifted":
        step = max(step - 1, 0)
        if step < config.warmup:
            start = scaled_lr(config, config.warmup_lr)
            return start + (peak - start) * step / config.warmup
        return _cosine(peak, floor, step / total)
    if step < config.warmup:
        return peak * (1e-4 + (1 - 1e-4) * step / config.warmup)
    return _cosine(peak, floor, (step - config.warmup) / max(total - config.warmup, 1))


def _cosine(peak: float, floor: float, progress: float) -> float:
    return floor + 0.5 * (peak - floor) * (1 + math.cos(math.pi * min(progress, 1.0)))


@dataclass(frozen=True, kw_only=True)
class Quirks:
    """What an official implementation does to parameters besides its loss; a method that reproduces it has them as `quirks`."""

    decay_scalars: bool = False
    """Decay 0-dimensional parameters too: gates, temperatures."""


class ParameterGroup(NamedTuple):
    """Parameters that are optimised alike in every phase that trains them."""

    name: str
    """Names the same parameters, in the same order, in every phase."""
    parameters: dict[str, nn.Parameter]
    """By name."""
    weight_decay: float


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]],
    phases: Sequence[tuple[str, ...]],
    weight_decay: float,
    quirks: Quirks = Quirks(),
) -> list[ParameterGroup]:
    """Groups of named parameters by the phases (each given by the name prefixes it trains) that train them, and by decay.

    Tensors of two or more dimensions are decayed; biases, norm weights and scalars are not.
    """
    groups: dict[str, ParameterGroup] = {}
    for name, parameter in parameters:
        trained = [index for index, prefixes in enumerate(phases) if name.startswith(prefixes)]
        decayed = parameter.ndim >= 2 or (parameter.ndim == 0 and quirks.decay_scalars)
        key = f"phases {trained} {'decayed' if decayed else 'spared'}"
        group = groups.setdefault(key, ParameterGroup(key, {}, weight_decay if decayed else 0.0))
        group.parameters[name] = parameter
    return list(groups.values())


def adamw(groups: Sequence[ParameterGroup], config: OptimConfig) -> torch.optim.AdamW:
    """The optimiser of all engines, over named groups; on a GPU a step is a few kernels for all parameters together."""
    return torch.optim.AdamW(
        [{"params": [*group.parameters.values()], "weight_decay": group.weight_decay, "name": group.name} for group in groups],
        lr=config.lr,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        fused=all(parameter.is_cuda for group in groups for parameter in group.parameters.values()) or None,
    )
