"""What work costs: processor time, and the most memory that a process held."""

import resource
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")

PEAK = "VmHWM:"


def cpu_seconds() -> float:
    """Processor time of this process and of those that it started and that have ended."""
    own, ended = (resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime


def forget_peak_memory(device: torch.device) -> None:
    """Let `peak_memory_mb` tell of what comes from now on: a worker process may have done other work before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):  # where the system has no such file, the peak is that of the process's life
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak_memory_mb(device: torch.device) -> float:
    """The most memory held at once, in MiB: a GPU's tensors where that is the device, else the process's resident pages."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith(PEAK)).split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


class Waits:
    """How long a loop waits for what it loops over."""

    def __init__(self) -> None:
        self._since, self._waited = time.monotonic(), 0.0

    def timed(self, items: Iterable[T]) -> Iterator[T]:
        """The items; the time that each takes to come is a wait."""
        began = time.monotonic()
        for item in items:
            self._waited += time.monotonic() - began
            yield item
            began = time.monotonic()

    def share(self) -> float:
        """The share of the time since it was last asked for, 0..1, in which the loop waited."""
        now = time.monotonic()
        found = self._waited / max(now - self._since, 1e-9)
        self._since, self._waited = now, 0.0
        return found
