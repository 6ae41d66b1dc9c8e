"""Training on Ray Train: every rank runs `owseg.fit`, checkpoints go to the run's folder, and the driver watches."""

import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from cluster import InputError
from cluster.costs import cpu_seconds, forget_peak_memory, peak_memory_mb
from cluster.engine import DeepSpeedEngine
from cluster.progress import Progress
from cluster.session import SessionConfig, ensure_session, selector_of
from filtering.files import replacing
from owseg.data import Batch, CaptionBatches, ShardReader, batches_from, check_batch_size
from owseg.encoders import PRETRAIN, EncoderConfig, build_encoder, load_encoder
from owseg.engine import Engine, TorchEngine
from owseg.fit import WEIGHTS, fit
from owseg.method_config import TrainableConfig
from owseg.optim import OptimConfig, ParameterGroup
from owseg.phases import ScheduledPhase, scheduled_phases
from owseg.segmenter import build_trained
from owseg.trainable import TrainableMethod

POLL_SECONDS = 0.5
PAIRS_PER_WORKER = 16
"""Of a step, below which more processes cost more than they bring."""
COSTS = ("pairs", "cpu_seconds", "gpu_seconds", "peak_memory_mb")
"""What lines of the step log say of all that was spent until then, over all ranks and starts."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How training is spread and how often it is saved."""

    workers: int = 1
    """Training processes; with GPUs one each; 0 = by this machine's cores, at least 16 pairs of a batch for each."""
    use_gpu: bool = False
    """Give each training process a GPU."""
    engine: Literal["deepspeed", "torch"] = "deepspeed"
    """What carries out steps: deepspeed (ZeRO) or torch (plain AdamW, the reference)."""
    zero_stage: int = 1
    """DeepSpeed ZeRO stage, 1 to 3: what is sharded over the workers (1 optimiser state, 2 gradients too, 3 weights too)."""
    bf16: bool = False
    """Compute in bfloat16 where torch's autocast finds it safe."""
    threads: int = 1
    """CPU threads of each training process; 0 = this machine's cores shared out among the processes."""
    loader_workers: int = 0
    """Processes beside each training process that decode and augment; 0 = the training process itself."""
    log_every: int = 10
    """Steps between logged losses."""
    checkpoint_every: int = 1000
    """Steps between checkpoints, from which a killed run goes on."""
    max_failures: int = 2
    """Times that a failed worker group is restarted from its last checkpoint before the run gives up."""

    def __post_init__(self) -> None:
        for name, least in (("workers", 0), ("threads", 0), ("log_every", 1), ("checkpoint_every", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.use_gpu and not self.workers:
            raise InputError("workers must be given with use_gpu: 0 goes by the machine's cores")
        if self.zero_stage not in (1, 2, 3):
            raise InputError(f"zero_stage must be 1, 2 or 3, not {self.zero_stage}")

    def spread(self, batches: Sequence[int], cores: int) -> "TrainConfig":
        """The same with `workers` and `threads` in numbers, for a method's batch sizes on a machine with so many cores."""
        fitting = (n for n in range(cores, 1, -1) if all(size % n == 0 and size >= n * PAIRS_PER_WORKER for size in batches))
        workers = self.workers or next(fitting, 1)
        return replace(self, workers=workers, threads=self.threads or max(1, cores // workers))


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """All that a training process needs to know. Paths are absolute: Ray gives workers another working directory."""

    method: TrainableConfig
    encoder: EncoderConfig
    shards: tuple[Path, ...]
    out: Path
    seed: int
    train: TrainConfig

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


Observe = Callable[[list[dict[str, Any]]], None]
"""Receives newly logged steps, oldest first: {"step", "lr", "samples_per_second", costs, "loss/<name>"...}."""


def train(job: TrainJob, session: SessionConfig, observe: Observe) -> Path:
    """Train to the end, going on from the last checkpoint where there is one, and return the trained weights' path."""
    ensure_session(session)
    import ray.train
    from ray.train.torch import TorchTrainer

    job.out.mkdir(parents=True, exist_ok=True)
    cpus = job.train.threads + job.train.loader_workers if job.train.use_gpu else 0.5
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"job": job},
        scaling_config=ray.train.ScalingConfig(
            num_workers=job.train.workers,
            use_gpu=job.train.use_gpu,
            resources_per_worker={"CPU": cpus, **({"GPU": 1} if job.train.use_gpu else {})},
            label_selector=selector_of(session.train_label),
        ),
        run_config=ray.train.RunConfig(
            name="checkpoints",
            storage_path=str(job.out),
            failure_config=ray.train.FailureConfig(max_failures=job.train.max_failures, controller_failure_limit=3),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )
    with _watch(job, observe):
        result = trainer.fit()
    with result.checkpoint.as_directory() as folder, replacing(job.weights) as temporary:
        shutil.copyfile(Path(folder) / WEIGHTS, temporary)
    return job.weights


def train_worker(config: dict[str, Any]) -> None:
    """What every rank runs, inside Ray Train's worker group."""
    import ray.train

    job: TrainJob = config["job"]
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(job.train.threads)
    device = torch.device("cuda", torch.cuda.current_device()) if job.train.use_gpu else torch.device("cpu")
    spent = _Spent(device)

    method = _build(job)
    batches = loader(job, method, rank, world_size)

    def make_engine(groups: Sequence[ParameterGroup], optim: OptimConfig) -> Engine:
        if job.train.engine == "torch":
            return TorchEngine(method, groups, optim, device, bf16=job.train.bf16)
        return DeepSpeedEngine(
            method,
            groups,
            optim,
            batch_per_worker=optim.batch_size // world_size,
            zero_stage=job.train.zero_stage,
            bf16=job.train.bf16,
            device=device,
        )

    def on_checkpoint(step: int, save: Callable[[Path], None]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder))
            ray.train.report({"step": step}, checkpoint=ray.train.Checkpoint.from_directory(folder))

    with ExitStack() as stack:
        checkpoint = ray.train.get_checkpoint()
        resume = Path(stack.enter_context(checkpoint.as_directory())) if checkpoint else None
        log = _StepLog(job, resume, spent, write=rank == 0)
        fit(
            method,
            job.method.phases,
            job.method.optim,
            make_engine,
            batches,
            seed=job.seed,
            resume=resume,
            log_every=job.train.log_every,
            checkpoint_every=job.train.checkpoint_every,
            on_log=log,
            on_checkpoint=on_checkpoint,
        )


def _build(job: TrainJob) -> TrainableMethod:
    """The method as its training begins."""
    torch.manual_seed(job.seed)  # fresh layers start out alike on every rank
    make_encoder = cache(lambda: (build_encoder if job.encoder.pretrained == PRETRAIN else load_encoder)(job.encoder))
    method = build_trained(job.method, make_encoder)
    method.initialise()  # also where training goes on: checkpoints hold no weights that stay frozen throughout
    return method


def loader(job: TrainJob, method: TrainableMethod, rank: int, workers: int) -> Callable[[ScheduledPhase, int], Iterator[Batch]]:
    """A rank's batches as `fit` asks for them. Raises InputError where any phase's cannot be had, before the first begins."""
    reader = ShardReader(job.shards, entities=method.prepare is not None or any(phase.partners for phase in job.method.phases))
    for span in job.scheduled_phases:
        key = f"method_settings.{job.method.name}.{span.schedule.key}.batch_size"
        check_batch_size(span.schedule.optim.batch_size, samples=len(reader), workers=workers, key=key)

    def batches(span: ScheduledPhase, step: int) -> Iterator[Batch]:
        drawn = CaptionBatches(
            reader,
            method.tokenize,
            span.phase.augment or job.method.augment,
            mean=job.encoder.mean,
            std=job.encoder.std,
            batch_size=span.schedule.optim.batch_size,
            seed=job.seed,
            rank=rank,
            world_size=workers,
            start=span.schedule.start,
            schedule=span.schedule.number,
            prepare=method.prepare,
            partners=span.phase.partners,
            views=method.views,
        )
        return batches_from(drawn, step, span.stop, workers=job.train.loader_workers)

    return batches


class _Spent:
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


class _StepLog:
    """The record of losses and costs, which rank 0 writes. Every rank has one, as every rank has its costs.

    Steps after the checkpoint that a run resumes from are cut off, with what they cost: they will be taken again.
    """

    def __init__(self, job: TrainJob, resume: Path | None, spent: _Spent, *, write: bool) -> None:
        done = json.loads((resume / "position.json").read_text())["step"] if resume else 0
        kept = [line for line in _read_log(job.log) if line["step"] <= done] if write else []
        self.job, self.spent, self.write = job, spent, write
        self.step, self.time = done, time.monotonic()
        self.before: dict[str, float] = kept[-1] if kept else {}
        if write:
            job.log.write_text("".join(json.dumps(line) + "\n" for line in kept))

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
        with self.job.log.open("a") as file:
            file.write(json.dumps(line) + "\n")


def costs_of(job: TrainJob) -> dict[str, float]:
    """What a finished training took: steps, pairs seen, processor (or GPU) seconds and peak memory in MiB, over all ranks."""
    last = _read_log(job.log)[-1]
    return {"steps": last["step"], **{name: last[name] for name in COSTS if name in last}}


def pairs_between(phases: Sequence[ScheduledPhase], start: int, stop: int) -> int:
    """Image-caption pairs of steps start..stop-1."""
    return sum(max(0, min(stop, span.stop) - max(start, span.start)) * span.schedule.optim.batch_size for span in phases)


def _read_log(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1]]  # what follows the last newline is still being written


class _watch:  # noqa: N801 - reads as a verb: `with _watch(...)`
    """Follows the step log from the driver: progress on the terminal, new steps to `observe`."""

    def __init__(self, job: TrainJob, observe: Observe) -> None:
        self.job, self.observe = job, observe
        self.stop = threading.Event()
        self.seen = 0

    def __enter__(self) -> None:
        lines = _read_log(self.job.log)
        start = lines[-1]["step"] if lines else 0
        self.progress = Progress(f"train {self.job.method.name}", total=self.job.steps, unit="steps", start=start)
        self.progress.__enter__()
        self.thread = threading.Thread(target=self._follow, daemon=True)
        self.thread.start()

    def __exit__(self, *error: Any) -> None:
        self.stop.set()
        self.thread.join()
        self.progress.__exit__(*error)

    def _follow(self) -> None:
        while not self.stop.wait(POLL_SECONDS):
            self._look()
        self._look()

    def _look(self) -> None:
        new = [line for line in _read_log(self.job.log) if line["step"] > self.seen]
        if new:
            self.seen = new[-1]["step"]
            self.observe(new)
            note = f"loss {new[-1]['loss/total']:.3f}, {new[-1]['samples_per_second']:.0f} pairs/s"
            self.progress.update(self.seen, note)


def shards_of(folder: Path) -> Iterator[Path]:
    """The tars of a download folder, in order."""
    yield from sorted(folder.resolve().glob("*.tar"))
