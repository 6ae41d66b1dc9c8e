"""A batch that is encoded a few samples at a time has the losses and gradients of the whole batch, for less memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from helpers import tiny
from helpers.rank_losses import AUGMENT, METHODS
from owseg import InputError
from owseg.data import Batch
from owseg.left_out import BadSamples
from owseg.method_config import TrainableConfig
from owseg.micro_batches import ContrastiveMethod
from owseg.noise import of_step
from owseg.trainable import TrainableMethod, losses_of
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


def job_of(config: TrainableConfig, folder: Path, micro_batch: int) -> TrainJob:
    shards = folder / "shards"
    if not shards.is_dir():
        shards.mkdir()
        tiny.write_shards(shards)
    return TrainJob(
        method=replace(config, augment=AUGMENT),  # type: ignore[call-arg]
        encoder=tiny.encoder_config(folder),
        normalisation=tiny.HALF,
        shards=tuple(sorted(shards.glob("*.tar"))),
        out=folder,
        train=LoopConfig(micro_batch=micro_batch),
    )


def last_step(config: TrainableConfig, folder: Path, micro_batch: int) -> Step:
    """The losses and gradients of a step of the last phase, in float64, in which rounding hides nothing."""
    job = job_of(config, folder, micro_batch)
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


CASES = {name: make(4) for name, make in METHODS.items()} | {
    "tcl of all losses": replace(tiny.tcl_config(2, 2), whole_image_weight=0.5, text_chunk=3),
    "tcl without masks": replace(tiny.tcl_config(2, 2), tcl_f_weight=0.0, area_weight=0.0, tv_weight=0.0),
    "official tcl": replace(tiny.tcl_config(2, 2), fidelity="official"),
    "official ovsegmentor": tiny.ovsegmentor_config(2, 2, fidelity="official", drop_path=0.1),
    "vilseg of clusters that learn": tiny.vilseg_config(4, cluster_gradient=True, cluster_shifts=1, cluster_form="collapsed"),
    "vilseg of images by themselves": tiny.vilseg_config(4, cluster_pool="image", vision_weight=0.0),
}


@pytest.mark.parametrize("case", CASES)
def test_micro_batches_take_the_step_of_the_whole_batch(case: str, tmp_path: Path) -> None:
    whole, parts = (last_step(CASES[case], tmp_path, size) for size in (0, 3))
    assert whole.losses.keys() == parts.losses.keys()
    for name, loss in whole.losses.items():
        assert parts.losses[name].item() == pytest.approx(loss.item(), rel=1e-9), name
    assert whole.gradients.keys() == parts.gradients.keys()
    size = float(torch.stack([gradient.norm() for gradient in whole.gradients.values()]).norm())
    for name, gradient in whole.gradients.items():
        assert (parts.gradients[name] - gradient).norm() < 1e-9 * size, name
    for name, buffer in whole.buffers.items():
        torch.testing.assert_close(parts.buffers[name], buffer, rtol=1e-9, atol=1e-12)
    assert parts.kept < whole.kept / 2


def test_a_method_that_cannot_be_cut_in_two_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain(TrainableMethod):
        def losses(self, batch: Batch) -> dict[str, Tensor]:
            return {"none": batch.image.sum()}

    config = tiny.clip_config()
    monkeypatch.setattr(type(config), "build", lambda self, encoder: Plain())
    with pytest.raises(InputError, match=r"train\.micro_batch: clip has no `encode` and `combine`"):
        build(job_of(config, tmp_path, 4))
    assert isinstance(build(job_of(config, tmp_path, 0)), Plain)


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="micro_batch must be at least 0, not -1"):
        LoopConfig(micro_batch=-1)
    assert issubclass(ContrastiveMethod, TrainableMethod)
