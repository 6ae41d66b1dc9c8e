"""A training from image-caption tars to weights: in this process, in ranks of torchrun, and what Ray's workers share with them.

docs/training.md shows it from plain Python.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from owseg import InputError
from owseg.checkpoint import Checkpoint, write_model
from owseg.costs import cpu_seconds, forget_peak_memory, peak_memory_mb
from owseg.data import Batch, CaptionBatches, ShardReader, batches_from, check_batch_size
from owseg.encoders import PRETRAIN, EncoderConfig, build_encoder, load_encoder
from owseg.engine import TorchEngine
from owseg.fit import WEIGHTS, fit
from owseg.method_config import TrainableConfig
from owseg.normalisation import Normalisation
from owseg.optim import OptimConfig, ParameterGroup
from owseg.phases import ScheduledPhase, scheduled_phases
from owseg.published import load_start
from owseg.segmenter import build_trained
from owseg.trainable import TrainableMethod

CHECKPOINT = "checkpoint"
"""Folder below a plain training's own that holds its last checkpoint."""
JOB = "job.json"
"""In a checkpoint: the settings of the training that wrote it."""
COSTS = ("pairs", "cpu_seconds", "gpu_seconds", "peak_memory_mb")
"""What lines of the step log say of all that was spent until then, over all ranks and starts."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How a training process loops."""

    bf16: bool = False
    """Compute in bfloat16 where torch's autocast finds it safe."""
    loader_workers: int = 0
    """Processes beside each training process that decode and augment; 0 = the training process itself."""
    log_every: int = 10
    """Steps between logged losses."""
    checkpoint_every: int = 1000
    """Steps between checkpoints, from which a killed run resumes."""

    def __post_init__(self) -> None:
        for name, least in (("loader_workers", 0), ("log_every", 1), ("checkpoint_every", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, not {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """All that a training process needs to know. Paths are absolute: Ray gives workers another working directory."""

    method: TrainableConfig
    encoder: EncoderConfig
    normalisation: Normalisation = Normalisation()
    shards: tuple[Path, ...]
    out: Path
    start: Path | None = None
    """Weights that training begins with, official or this project's; None = as the method begins."""
    seed: int = 0
    train: LoopConfig = LoopConfig()

    @property
    def steps(self) -> int:
        """Optimiser steps over all phases."""
        return sum(phase.steps for phase in self.method.phases)

    @property
    def scheduled_phases(self) -> list[ScheduledPhase]:
        """The phases in their places."""
        return scheduled_phases(self.method.phases, self.method.optim)

    @property
    def log(self) -> Path:
        """One JSON line per logged step."""
        return self.out / "metrics.jsonl"

    @property
    def weights(self) -> Path:
        """The trained tensors, written when training is complete."""
        return self.out / WEIGHTS


def train(job: TrainJob, device: str | torch.device = "cpu") -> Path:
    """Train to the end with plain AdamW, from the last checkpoint where there is one; returns the trained weights' path.

    Alone, or as one of torchrun's ranks (gloo, or NCCL on a GPU), each of which calls it with the same job. The folder of the
    job gets `metrics.jsonl`, the weights, and `model.json`, which makes it a checkpoint that `segment` and `evaluate` take.
    """
    device = usable_device(device)
    started = "WORLD_SIZE" in os.environ and not dist.is_initialized()
    if started:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    try:
        job.out.mkdir(parents=True, exist_ok=True)
        method = build(job)
        resume = job.out / CHECKPOINT if (job.out / CHECKPOINT / WEIGHTS).is_file() else None
        if resume is not None:
            refuse_other_job(job, ranks, resume / JOB)
        log = StepLog(job, resume, Spent(device), write=rank == 0)

        def make_engine(groups: Sequence[ParameterGroup], optim: OptimConfig) -> TorchEngine:
            return TorchEngine(method, groups, optim, device, bf16=job.train.bf16)

        fit(
            method,
            job.method.phases,
            job.method.optim,
            make_engine,
            loader(job, method, rank, ranks),
            seed=job.seed,
            resume=resume,
            log_every=job.train.log_every,
            checkpoint_every=job.train.checkpoint_every,
            on_log=log,
            on_checkpoint=lambda step, save: _keep(job, save, ranks, first=rank == 0),
        )
        if rank == 0:
            shutil.copyfile(job.out / CHECKPOINT / WEIGHTS, job.weights)
            found = Checkpoint(method=job.method, encoder=job.encoder, normalisation=job.normalisation, weights=job.weights)
            write_model(found)
    finally:
        if started:
            dist.destroy_process_group()
    return job.weights


def usable_device(name: str | torch.device) -> torch.device:
    """The device of this name. Raises InputError where there is none here."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device: {str(name)!r} cannot be used here ({error}); give cpu, or cuda where there is a GPU"
        ) from error
    return device


def settings_of(job: TrainJob, ranks: int) -> dict[str, Any]:
    """All that decides the weights, as it is kept beside a checkpoint: a dotted key for each setting."""
    data = [[shard.name, shard.stat().st_size] for shard in job.shards]
    given = {"seed": job.seed, "ranks": ranks, "bf16": job.train.bf16, "shards": data, "start": job.start and str(job.start)}
    given |= {"method": asdict(job.method), "normalisation": asdict(job.normalisation)}
    if job.method.uses_clip:
        given["encoder"] = asdict(job.encoder)
    found: dict[str, Any] = json.loads(json.dumps(dict(_flat("", given))))
    return found


def _flat(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(f"{key}.{name}" if key else name, inner)
    else:
        yield key, value


def refuse_other_job(job: TrainJob, ranks: int, file: Path) -> None:
    """Raise InputError where a checkpoint was written by a training of other settings, whose weights these are not."""
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = None
    now = settings_of(job, ranks)
    if not isinstance(before, dict):
        raise InputError(f"out: {job.out} holds a checkpoint that does not say of what training it is; give another folder")
    for key in [*now, *(key for key in before if key not in now)]:
        if before.get(key) != now.get(key):
            raise InputError(
                f"out: {job.out} holds a training of other settings: {key} was {before.get(key)} and is now {now.get(key)}; "
                "give another folder, or delete that one"
            )


def _keep(job: TrainJob, save: Callable[[Path], None], ranks: int, *, first: bool) -> None:
    """Write a checkpoint beside the last one, and put it in its place when all ranks have written their part."""
    new, kept = job.out / f".{CHECKPOINT}", job.out / CHECKPOINT
    if first:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        (new / JOB).write_text(json.dumps(settings_of(job, ranks)), encoding="utf-8")
    _barrier()
    save(new)
    _barrier()
    if first:
        shutil.rmtree(kept, ignore_errors=True)
        os.replace(new, kept)
    _barrier()


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def build(job: TrainJob) -> TrainableMethod:
    """The method as its training begins."""
    torch.manual_seed(job.seed)  # fresh layers start out alike on every rank
    make_encoder = cache(lambda: (build_encoder if job.encoder.pretrained == PRETRAIN else load_encoder)(job.encoder))
    method = build_trained(job.method, make_encoder)
    method.initialise()  # also where training resumes: checkpoints hold no weights that stay frozen throughout
    if job.start is not None:
        load_start(method, job.method.phases, job.start)
    return method


def loader(job: TrainJob, method: TrainableMethod, rank: int, workers: int) -> Callable[[ScheduledPhase, int], Iterator[Batch]]:
    """A rank's batches as `fit` asks for them. Raises InputError where any phase's cannot be had, before the first begins."""
    reader = ShardReader(job.shards, entities=method.prepare is not None or any(phase.partners for phase in job.method.phases))
    for scheduled in job.scheduled_phases:
        key = f"method_settings.{job.method.name}.{scheduled.schedule.key}.batch_size"
        check_batch_size(scheduled.schedule.optim.batch_size, samples=len(reader), workers=workers, key=key)

    def batches(scheduled: ScheduledPhase, step: int) -> Iterator[Batch]:
        drawn = CaptionBatches(
            reader,
            method.tokenize,
            scheduled.phase.augment or job.method.augment,
            normalisation=job.normalisation,
            batch_size=scheduled.schedule.optim.batch_size,
            seed=job.seed,
            rank=rank,
            world_size=workers,
            start=scheduled.schedule.start,
            schedule=scheduled.schedule.number,
            prepare=method.prepare,
            partners=scheduled.phase.partners,
            views=method.views,
        )
        return batches_from(drawn, step, scheduled.stop, workers=job.train.loader_workers)

    return batches


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

    def __init__(self, job: TrainJob, resume: Path | None, spent: Spent, *, write: bool) -> None:
        done = json.loads((resume / "position.json").read_text(encoding="utf-8"))["step"] if resume else 0
        kept = [line for line in read_log(job.log) if line["step"] <= done] if write else []
        self.job, self.spent, self.write = job, spent, write
        self.step, self.time = done, time.monotonic()
        self.before: dict[str, float] = kept[-1] if kept else {}
        if write:
            job.log.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def __call__(self, step: int, losses: dict[str, float], lr: float, diagnostics: dict[str, float]) -> None:
        costs = self.spent.over_ranks()
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
        }
        line |= {"loss/total": sum(losses.values())} | {f"loss/{name}": value for name, value in losses.items()} | diagnostics
        with self.job.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def costs_of(job: TrainJob) -> dict[str, float]:
    """What a finished training took: steps, pairs seen, processor (or GPU) seconds and peak memory in MiB, over all ranks."""
    last = read_log(job.log)[-1]
    return {"steps": last["step"], **{name: last[name] for name in COSTS if name in last}}


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


def shards_of(folder: Path) -> Iterator[Path]:
    """The tars of a download folder, in order."""
    yield from sorted(folder.resolve().glob("*.tar"))
