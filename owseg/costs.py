"""What work costs: processor time, and the most memory that a process held."""

import resource
from contextlib import suppress
from pathlib import Path

import torch

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
