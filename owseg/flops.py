"""Floating-point operations of a training step, and how much of a device's peak they make use of (MFU)."""

import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch
from torch.utils.flop_counter import FlopCounterMode

PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.4,
    "GH200": 989.4,
    "H100": 989.4,
    "H100 NVL": 835.5,
    "H100 PCIe": 756.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10": 125.0,
}
"""Dense bfloat16 products as the makers state them, in 10^12 operations a second, by a word or two of the device's name."""


def peak_tflops(device_name: str) -> float | None:
    """The peak of a device in TFLOP/s, by the name that torch has for it; None where it is not known here."""
    found = [name for name in PEAK_TFLOPS if re.search(rf"\b{name}\b", device_name)]
    return PEAK_TFLOPS[max(found, key=len)] if found else None


def utilisation(flops: float, seconds: float, peak: float | None) -> float | None:
    """Model FLOPs utilisation, 0..1: `flops` operations in `seconds` over a `peak` in TFLOP/s; None without a peak.

    An operation is an addition or a multiplication: a product of matrices [m, k] and [k, n] is 2 m k n.
    """
    return None if peak is None else flops / seconds / (peak * 1e12)


class FlopCount:
    """The operations of matrix products, convolutions and attention, forward and backward."""

    def __init__(self) -> None:
        self.executed = 0
        self.recomputed = 0
        """Those of `executed` that backward spent on running checkpoints again."""
        self._mode = FlopCounterMode(display=False)

    @property
    def model(self) -> int:
        """What the step asks for by its formulas: MFU must not grow by computing things twice."""
        return self.executed - self.recomputed

    @contextmanager
    def again(self) -> Iterator[None]:
        """Inside, a checkpoint is run again; torch may leave it early by an exception."""
        before = self._mode.get_total_flops()
        try:
            yield
        finally:
            self.recomputed += self._mode.get_total_flops() - before


_counting: ContextVar[FlopCount | None] = ContextVar("counting", default=None)


@contextmanager
def counted_flops() -> Iterator[FlopCount]:
    """Counts what runs inside; the counts are there when it is left."""
    count = FlopCount()
    token = _counting.set(count)
    try:
        with count._mode:
            yield count
        count.executed = count._mode.get_total_flops()
    finally:
        _counting.reset(token)


def checkpoint_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What torch's `checkpoint` takes as `context_fn`: contexts of its forward and of running it again."""
    count = _counting.get()  # in the forward: a GPU's backward runs in a thread that has no context variables
    return nullcontext(), nullcontext() if count is None else count.again()


class StepMeter:
    """MFU of a training's steps, on a GPU whose peak is known; elsewhere nothing is counted, as that takes a slower step."""

    def __init__(self, device: torch.device) -> None:
        self.peak = peak_tflops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        self._flops = self._steps = 0
        self._since = time.monotonic()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around each step; operations are those of the first one."""
        if self.peak is None or self._flops:
            yield
        else:
            with counted_flops() as count:
                yield
            self._flops = count.model
        self._steps += 1

    def share(self) -> dict[str, float]:
        """{"mfu": of this process and the steps since it was last asked for, 0..1}; empty where nothing is counted."""
        now = time.monotonic()
        found = utilisation(self._flops * self._steps, max(now - self._since, 1e-9), self.peak)
        self._steps, self._since = 0, now
        return {} if found is None else {"mfu": found}
