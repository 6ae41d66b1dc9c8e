"""What benchmarks/gpu.py measures: phases of training with random weights, their losses, and the evaluator."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gpu_inputs import Sizes, picture
from torch import Tensor

from owseg.costs import forget_peak_memory, peak_memory_mb
from owseg.data import Batch
from owseg.encoders import EncoderConfig, build_encoder
from owseg.engine import TorchEngine
from owseg.evaluation.inference import embed_queries, predict
from owseg.evaluation.protocols import EvaluateConfig, protocol_of
from owseg.fit import fit, phase_groups
from owseg.flops import counted_flops, utilisation
from owseg.left_out import BadSamples
from owseg.method_config import MethodConfig, TrainableConfig
from owseg.noise import of_step
from owseg.normalisation import Normalisation
from owseg.optim import OptimConfig, ParameterGroup
from owseg.phases import scheduled_phases
from owseg.steady import total_of
from owseg.trainable import losses_of
from owseg.training import LoopConfig, TrainJob, loader

CPU = torch.device("cpu")
CLASSES = {21: "voc21", 60: "context60", 171: "coco_stuff"}
"""The benchmark that has so many classes, background included."""
DRAWN = 16
"""Samples that are read from shards for a batch of random pixels, which repeats their texts; and those of losses."""
WARM_UP = 3
"""Steps that are not measured: torch chooses kernels, the optimiser makes its state, and operations are counted."""
ENDLESS = 10**6
"""More steps than time is ever given for."""


class EnoughError(Exception):
    """Time is up: how the measured loop is left."""


class Taken(NamedTuple):
    """What steps took, those to warm up left out. Seconds."""

    steps: list[float]
    waits: list[float]
    """Of each step, the wait for its batch."""
    flops: int
    """Operations of a step's forward and backward, without those that checkpoints run again."""
    peak_memory_mb: float


class CountingEngine(TorchEngine):
    """The plain engine; counts the operations of its first step, and stops at a step that would be skipped."""

    flops = 0

    def step(self, batch: Batch, lr: float) -> dict[str, Tensor]:
        if self.flops:
            losses = super().step(batch, lr)
        else:
            with counted_flops() as count:
                losses = super().step(batch, lr)
            self.flops = count.model
        if self.skipped:
            raise ArithmeticError("a loss or a gradient is not finite")
        return losses


@dataclass
class Training:
    """A phase of a method, made a training of its own."""

    name: str
    phase: int
    """Counted from 1."""
    config: TrainableConfig
    """The method as it is built, for all its phases."""
    alone: TrainableConfig
    """The method with this phase alone."""
    encoder: EncoderConfig
    shards: Sequence[Path]
    device: torch.device
    peak: float | None
    """The device's, in TFLOP/s."""
    most: int
    """Measured steps at most."""

    @property
    def named(self) -> dict[str, Any]:
        """What it is called in its rows."""
        return {"method": self.name, "phase": self.phase}

    @cached_property
    def method(self) -> Any:
        """The method on the device."""
        return build(self.config, self.encoder).to(self.device)

    @cached_property
    def drawn(self) -> Batch:
        """A small batch as the loop reads it."""
        return next(self.batches(DRAWN, 0))

    def batches(self, size: int, workers: int) -> Iterator[Batch]:
        """Batches as the loop reads them from shards."""
        config = replace(self.alone, optim=replace(self.alone.optim, batch_size=size))
        loop = LoopConfig(loader_workers=workers)
        job = TrainJob(method=config, encoder=self.encoder, shards=tuple(self.shards), out=Path(), train=loop)
        read = loader(job, self.method, 0, 1, BadSamples(Path(), 0.0, write=False))
        return read(job.scheduled_phases[0], 0)

    def take_steps(self, feed: Iterator[Batch], seconds: float, warm_up: int) -> Taken:
        """Train in bfloat16, with the package's loop and plain engine, until `seconds` are over or `most` steps measured.

        One is at least.
        """
        engines: list[CountingEngine] = []
        steps, waits = list[float](), list[float]()
        end = time.perf_counter() + seconds

        def make_engine(groups: Sequence[ParameterGroup], optim: OptimConfig) -> CountingEngine:
            engines.append(CountingEngine(self.method, groups, optim, self.device, bf16=True))
            return engines[-1]

        def timed(*_: object) -> Iterator[Batch]:
            for number in range(ENDLESS):
                began = time.perf_counter()
                batch = next(feed)
                ready = time.perf_counter()
                yield batch
                synchronise(self.device)
                if number >= warm_up:
                    steps.append(time.perf_counter() - began)
                    waits.append(ready - began)
                    if time.perf_counter() > end or len(steps) == self.most:
                        raise EnoughError

        free(self.device)
        forget_peak_memory(self.device)
        try:
            fit(self.method, self.alone.phases, self.alone.optim, make_engine, timed, seed=0, log_every=ENDLESS)
        except EnoughError:
            return Taken(steps, waits, engines[0].flops, peak_memory_mb(self.device))
        raise AssertionError("the loop ends by EnoughError")

    def forget(self) -> None:
        """Give the method's memory back."""
        for name in ("method", "drawn"):
            self.__dict__.pop(name, None)
        free(self.device)


def trainings(sizes: Sizes, shards: Sequence[Path], device: torch.device, peak: float | None = None) -> list[Training]:
    """Each phase of each method."""
    found = []
    for name, config in sizes.methods.items():
        for number, scheduled in enumerate(scheduled_phases(config.phases, config.optim), start=1):
            phase = replace(scheduled.phase, steps=ENDLESS, optim=None)
            alone = replace(config, phases=(phase,), optim=scheduled.schedule.optim)
            found.append(Training(name, number, config, alone, sizes.encoder, shards, device, peak, sizes.most))
    return found


def build(config: MethodConfig, encoder: EncoderConfig) -> Any:
    """A method with random weights, the same each time; TCL's gates are open, so that every layer counts."""
    torch.manual_seed(0)
    method = config.build(build_encoder(encoder) if config.uses_clip else None)
    for name, parameter in method.named_parameters():
        if name.endswith("gate"):
            parameter.data.fill_(0.3)
    return method


def enlarged(batch: Batch, size: int, device: torch.device) -> Batch:
    """A batch of `size` rows on a device: random pixels in the shapes of `batch`, whose texts are repeated."""
    rows = torch.arange(size) % len(batch.image)

    def pixels(images: Tensor) -> Tensor:
        return torch.randn(size, *images.shape[1:], device=device)

    return Batch(
        image=pixels(batch.image),
        tokens=batch.tokens[rows].to(device),
        captions=[batch.captions[row] for row in rows.tolist()],
        keys=[batch.keys[row] for row in rows.tolist()],
        texts={name: tokens[rows].to(device) for name, tokens in batch.texts.items()},
        partner=None if batch.partner is None else pixels(batch.partner),
        views={name: pixels(views) for name, views in batch.views.items()},
    )


def compare(training: Training, here: Training, seconds: float, *, bf16: bool) -> dict[str, Any]:
    """How far losses and gradients on the device lie from those of the same training `here`, on a CPU; of one batch."""
    del seconds
    there, expected = (losses_of_drawn(one, here.drawn, bf16=bf16) for one in (training, here))
    apart = relative_differences(there, expected)
    worst = max(apart, key=lambda name: apart[name])
    return {"largest_difference": apart[worst], "of": worst, "values": there, "values_on_cpu": expected}


def losses_of_drawn(training: Training, batch: Batch, *, bf16: bool) -> dict[str, float]:
    """The losses of a batch and the norm of their gradient, of fresh weights and the noise of step 0."""
    method, device = build(training.config, training.encoder).train().to(training.device), training.device
    (groups,) = phase_groups(method, training.alone.phases, training.alone.optim)
    method.requires_grad_(False)
    learned = [parameter.requires_grad_() for group in groups for parameter in group.parameters.values()]
    with torch.no_grad():
        method.begin_phase(training.alone.phases[0])
    with of_step(0, 0), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        losses = losses_of(method, batch.to(device))
    total_of(losses).backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in learned if parameter.grad is not None])
    return {**{name: loss.item() for name, loss in losses.items()}, "gradient norm": norm.item()}


def relative_differences(found: dict[str, float], expected: dict[str, float]) -> dict[str, float]:
    """How far numbers lie apart by name, over the expected one's size."""
    return {name: abs(found[name] - value) / max(abs(value), 1e-12) for name, value in expected.items()}


def training_row(training: Training, size: int, seconds: float) -> dict[str, Any]:
    """Rates of steps on one batch that is on the device already: by the median step."""
    batch = enlarged(training.drawn, size, training.device)
    taken = training.take_steps(repeat(batch), seconds, WARM_UP)
    median = statistics.median(taken.steps)
    return {
        "steps": len(taken.steps),
        "seconds_per_step": median,
        "seconds_least": min(taken.steps),
        "seconds_most": max(taken.steps),
        "images_per_second": size / median,
        "tflop_per_step": taken.flops / 1e12,
        "mfu": utilisation(taken.flops, median, training.peak),
        "peak_memory_mb": taken.peak_memory_mb,
    }


def loop_row(training: Training, size: int, workers: int, seconds: float) -> dict[str, Any]:
    """Rates of a training that reads shards: over all steps, as batches come in bursts."""
    warm_up = max(WARM_UP, workers)  # the first batches of all loader processes come at once
    taken = training.take_steps(training.batches(size, workers), seconds, warm_up)
    wall = sum(taken.steps)
    return {
        "steps": len(taken.steps),
        "images_per_second": size * len(taken.steps) / wall,
        "data_wait_share": sum(taken.waits) / wall,
        "mfu": utilisation(taken.flops * len(taken.steps), wall, training.peak),
        "peak_memory_mb": taken.peak_memory_mb,
    }


@dataclass
class Labelling:
    """A segmenter on a device, which labels one picture under a view."""

    config: MethodConfig
    sizes: Sizes
    device: torch.device

    @cached_property
    def segmenter(self) -> Any:
        """The segmenter on the device."""
        return build(self.config, self.sizes.encoder).eval().to(self.device)

    def row(self, classes: int, seconds: float) -> dict[str, Any]:
        """Rates from uint8 pixels to labels at the picture's size; class embeddings are there before."""
        protocol = replace(protocol_of(EvaluateConfig(), CLASSES[classes]), view=self.sizes.view)
        image = picture(np.random.default_rng(1), *self.sizes.labelled)
        end = time.perf_counter() + seconds
        free(self.device)
        with torch.no_grad():
            texts = embed_queries(self.segmenter, protocol)
            forget_peak_memory(self.device)
            label = partial(predict, self.segmenter, image, texts, protocol, Normalisation())
            taken = timed_calls(label, self.device, end - time.perf_counter(), self.sizes.most)
        median = statistics.median(taken)
        rates = {"images": len(taken), "seconds_per_image": median, "images_per_second": 1 / median}
        return {**rates, "peak_memory_mb": peak_memory_mb(self.device)}


def timed_calls(call: Callable[[], object], device: torch.device, seconds: float, most: int) -> list[float]:
    """Seconds of each call until `seconds` are over, one at least and `most` at most; a first one before them warms up."""
    end, taken = time.perf_counter() + seconds, list[float]()
    call()
    while not taken or (time.perf_counter() < end and len(taken) < most):
        synchronise(device)
        began = time.perf_counter()
        call()
        synchronise(device)
        taken.append(time.perf_counter() - began)
    return taken


def synchronise(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free(device: torch.device) -> None:
    """Give back what rows before have left."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
