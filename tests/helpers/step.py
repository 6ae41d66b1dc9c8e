"""One training step of a method as random as it gets, in float64, in which rounding hides nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from helpers import tiny
from helpers.rank_losses import job_of
from owseg.data import Batch
from owseg.left_out import BadSamples
from owseg.method_config import TrainableConfig
from owseg.noise import of_step
from owseg.trainable import losses_of
from owseg.training import LoopConfig, TrainJob, build, loader


class Step(NamedTuple):
    losses: dict[str, Tensor]
    gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]
    kept: int
    """Bytes kept for backward, at most."""


class _Kept:
    """Counts the bytes that autograd holds for backward."""

    def __init__(self) -> None:
        self.now = self.most = 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        owner = self

        class Held:
            def __init__(self, tensor: Tensor) -> None:
                self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
                owner.now += self.size
                owner.most = max(owner.most, owner.now)

            def __del__(self) -> None:
                owner.now -= self.size

        with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
            yield


def job_in(folder: Path, config: TrainableConfig, loop: LoopConfig) -> TrainJob:
    """A training on shards of its own."""
    shards = folder / "shards"
    if not shards.is_dir():
        tiny.write_shards(shards)
    return job_of(config, folder, shards, loop)


def last_step(config: TrainableConfig, folder: Path, loop: LoopConfig) -> Step:
    """The losses and gradients of a step of the last phase."""
    job = job_in(folder, config, loop)
    method = build(job).double()
    phase = job.scheduled_phases[-1]
    method.begin_phase(phase.phase)
    for name, parameter in method.named_parameters():
        parameter.requires_grad_(name.startswith(phase.phase.train))
    batches = loader(job, method, 0, 1, BadSamples(folder / "bad.jsonl", 1.0, write=False))
    kept = _Kept()
    with of_step(0, phase.start), kept.watched():
        losses = losses_of(method, in_float64(next(batches(phase, phase.start))))
    torch.stack(list(losses.values())).sum().backward()  # outside of the step, as engines do it
    gradients = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    return Step(losses, gradients, dict(method.named_buffers()), kept.most)


def in_float64(batch: Batch) -> Batch:
    return batch._replace(
        image=batch.image.double(),
        partner=None if batch.partner is None else batch.partner.double(),
        views={name: view.double() for name, view in batch.views.items()},
    )


def assert_same_step(one: Step, other: Step) -> None:
    """Losses, gradients and buffers are the same, but for rounding of float64."""
    assert one.losses.keys() == other.losses.keys()
    for name, loss in other.losses.items():
        assert one.losses[name].item() == pytest.approx(loss.item(), rel=1e-9), name
    assert one.gradients.keys() == other.gradients.keys()
    size = float(torch.stack([gradient.norm() for gradient in other.gradients.values()]).norm())
    for name, gradient in other.gradients.items():
        assert (one.gradients[name] - gradient).norm() < 1e-7 * size, name
    for name, buffer in other.buffers.items():
        torch.testing.assert_close(one.buffers[name], buffer, rtol=1e-7, atol=1e-9)
