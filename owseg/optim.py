"""Optimiser settings, the learning-rate schedule and which tensors are decayed."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from owseg import InputError


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
    weight_decay: float = 0.05
    """Decoupled weight decay on matrices and kernels; biases, norms and scalars are spared."""
    betas: tuple[float, ...] = (0.9, 0.999)
    """AdamW's two moment decays."""
    eps: float = 1e-6
    """AdamW's epsilon."""
    clip_norm: float = 5.0
    """Global gradient norm above which gradients are scaled down."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.lr <= 0 or self.min_lr < 0 or len(self.betas) != 2:
            raise InputError("batch_size and lr must be positive, min_lr at least 0, betas two numbers")


def scaled_lr(config: OptimConfig, lr: float) -> float:
    """`lr` at the batch size in use (linear scaling rule)."""
    return lr * config.batch_size / config.lr_batch if config.lr_batch else lr


def lr_at(config: OptimConfig, step: int, total: int) -> float:
    """The learning rate of a step of `total`: linear from 1e-4 of the peak over the warm-up, then cosine (official TCL)."""
    peak, floor = scaled_lr(config, config.lr), scaled_lr(config, config.min_lr)
    if step < config.warmup:
        return peak * (1e-4 + (1 - 1e-4) * step / config.warmup)
    progress = (step - config.warmup) / max(total - config.warmup, 1)
    return floor + 0.5 * (peak - floor) * (1 + math.cos(math.pi * min(progress, 1.0)))


def parameter_groups(parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, Any]]:
    """AdamW groups: tensors of two or more dimensions are decayed; biases, norm weights and scalars are not."""
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for _, parameter in parameters:
        (decayed if parameter.ndim >= 2 else spared).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
