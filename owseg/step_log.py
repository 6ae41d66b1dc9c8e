"""The step log: what the ranks of a training write down of losses, costs and what was left out."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from owseg.costs import cpu_seconds, forget_peak_memory, peak_memory_mb
from owseg.ledger import LEDGER, Ledger, write_ledger
from owseg.left_out import BadSamples
from owseg.phases import ScheduledPhase
from owseg.snapshots import step_of

if TYPE_CHECKING:
    from owseg.training import TrainJob

COSTS = ("pairs", "cpu_seconds", "gpu_seconds", "peak_memory_mb")
"""What lines of the step log say of all that was spent until then, over all ranks and starts."""


class Spent:
    """What the ranks have spent since they started."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.cpu, self.time = device, cpu_seconds(), time.monotonic()
        forget_peak_memory(device)

    def over_ranks(self) -> dict[str, float]:
        """Sums over all ranks, each of which must call it."""
        mine = [cpu_seconds() - self.cpu, peak_memory_mb(self.device), time.monotonic() - self.time]
        cpu, memory, wall = _sum_over_ranks(torch.tensor(mine, dtype=torch.float64, device=self.device)).tolist()
        gpu = {"gpu_seconds": wall} if self.device.type == "cuda" else {}
        return {"cpu_seconds": cpu, **gpu, "peak_memory_mb": memory}


def _sum_over_ranks(values: Tensor) -> Tensor:
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values


class StepLog:
    """The record of losses and costs, which rank 0 writes. Every rank has one, as every rank has its costs.

    Steps after the checkpoint that a run resumes from are cut off, with what they cost: they will be taken again.
    """

    def __init__(self, job: "TrainJob", resume: Path | None, spent: Spent, *, write: bool) -> None:
        done = step_of(resume) if resume else 0
        kept = [line for line in read_log(job.log) if line["step"] <= done] if write else []
        self.job, self.spent, self.write = job, spent, write
        self.step, self.time = done, time.monotonic()
        self.before: dict[str, float] = kept[-1] if kept else {}
        self.ledger = Ledger(resume)
        self.bad = BadSamples(job.bad_samples, job.train.max_bad_share, write=write)
        if write:
            job.log.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def __call__(self, step: int, losses: dict[str, float], lr: float, diagnostics: dict[str, float]) -> None:
        costs, bad, ledger = self.spent.over_ranks(), self.bad.over_ranks(), self.ledger.over_ranks()
        if not self.write:
            return
        now = time.monotonic()
        rate = pairs_between(self.job.scheduled_phases, self.step, step) / max(now - self.time, 1e-9)
        self.step, self.time = step, now
        for name, value in costs.items():
            before = self.before.get(name, 0.0)
            costs[name] = max(before, value) if name == "peak_memory_mb" else before + value
        line = {
            "step": step,
            "lr": lr,
            "samples_per_second": rate,
            "pairs": pairs_between(self.job.scheduled_phases, 0, step),
            **costs,
            **diagnostics,
            "skipped_steps": diagnostics.get("skipped_steps", 0) + self.before.get("skipped_steps", 0),
            "bad_samples": bad,
            LEDGER: ledger["epochs"][-1]["digest"] if ledger["epochs"] else "",
        }
        if losses:
            line |= {"loss/total": sum(losses.values())} | {f"loss/{name}": value for name, value in losses.items()}
        write_ledger(self.job.ledger, {"step": step, **ledger})
        with self.job.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def costs_of(job: "TrainJob") -> dict[str, float]:
    """What a finished training took: steps, pairs seen, processor (or GPU) seconds and peak memory in MiB, over all ranks."""
    last = read_log(job.log)[-1]
    return {"steps": last["step"], **{name: last[name] for name in COSTS if name in last}}


def left_out_of(job: "TrainJob") -> dict[str, float]:
    """What a finished training left out: steps that were skipped, samples that could not be used."""
    last = read_log(job.log)[-1]
    return {name: last[name] for name in ("skipped_steps", "bad_samples") if name in last}


def pairs_between(phases: Sequence[ScheduledPhase], start: int, stop: int) -> int:
    """Image-caption pairs of steps start..stop-1."""
    return sum(
        max(0, min(stop, scheduled.stop) - max(start, scheduled.start)) * scheduled.schedule.optim.batch_size
        for scheduled in phases
    )


def read_log(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]  # what follows the last newline is still being written
