"""A training from image-caption tars to weights: in this process, in ranks of torchrun, and what Ray's workers share with them.

docs/training.md shows it from plain Python.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from owseg import InputError
from owseg.checkpoint import Checkpoint, sha256, write_model
from owseg.compiled import compile_blocks
from owseg.data import Batch, CaptionBatches, batches_from, check_batch_size
from owseg.encoders import PRETRAIN, EncoderConfig, build_encoder, load_encoder
from owseg.engine import TorchEngine, usable_device
from owseg.features import stored_features, texts_through
from owseg.fields import check_range, file_name, flatten, training_settings
from owseg.fit import WEIGHTS, fit
from owseg.ledger import LEDGER, Ledger
from owseg.left_out import MAX_SHARE, BadSamples
from owseg.listing import is_leftover
from owseg.method_config import TrainableConfig
from owseg.micro_batches import ensure_contrastive
from owseg.normalisation import Normalisation
from owseg.optim import OptimConfig, ParameterGroup
from owseg.phases import ScheduledPhase, scheduled_phases
from owseg.published import load_start
from owseg.segmenter import build_trained
from owseg.shards import ShardReader
from owseg.snapshots import newest_whole
from owseg.steady import MAX_SKIPPED
from owseg.step_log import Spent, StepLog
from owseg.stored_features import StoredFeatures
from owseg.trainable import TrainableMethod
from storage.copies import names_in, size_of
from storage.tar_cache import tars_of

log = logging.getLogger(__name__)

CHECKPOINT = "checkpoint"
"""Folder below a plain training's own that holds its last checkpoint."""
BEFORE = "checkpoint.before"
"""The one before, should the last one be damaged."""
JOB = "job.json"
"""In a checkpoint: the settings of the training that wrote it."""
_LEAST = (("micro_batch", 0), ("loader_workers", 0), ("log_every", 1), ("checkpoint_every", 1), ("max_skipped_steps", 1))


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How a training process loops."""

    bf16: bool = False
    """Compute in bfloat16 where torch's autocast finds it safe."""
    compile: bool = False
    """Compile transformer blocks with torch.compile, which takes time at the start and a C++ compiler; meant for GPUs."""
    micro_batch: int = 0
    """Pairs that a training process encodes at once; 0 = all of its batch. Fewer need less memory, and a second forward."""
    loader_workers: int = 0
    """Processes beside each training process that decode and augment; 0 = the training process itself."""
    log_every: int = 10
    """Steps between logged losses."""
    checkpoint_every: int = 1000
    """Steps between checkpoints, from which a killed run resumes."""
    caption_field: str = ""
    """Field of a sample's JSON that is its caption where it has no .txt; empty = such samples cannot be used."""
    max_bad_share: float = MAX_SHARE
    """Largest share of the samples, 0..1, that may be left out since they cannot be read; 3 always may."""
    max_skipped_steps: int = MAX_SKIPPED
    """Steps in a row, skipped since a loss or gradient is not finite, after which training stops; in short ones half of all."""

    def __post_init__(self) -> None:
        for name, least in _LEAST:
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, not {getattr(self, name)}")
        check_range(self, "max_bad_share", least=0, most=1)


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
    forgotten: tuple[str, ...] = ()
    """Keys of samples that are left out as if the tars did not have them."""
    features: Path | None = None
    """Folder of features of the shards, which training reads in the place of pixels; None = it reads pixels."""
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
    def bad_samples(self) -> Path:
        """One JSON line per sample that was left out; there only where some were."""
        return self.out / "bad_samples.jsonl"

    @property
    def ledger(self) -> Path:
        """Which samples each epoch showed, as digests (`owseg.ledger`)."""
        return self.out / f"{LEDGER}.json"

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
        resume = _last_checkpoint(job, ranks, first=rank == 0)
        step_log = StepLog(job, resume, Spent(device), write=rank == 0)

        def make_engine(groups: Sequence[ParameterGroup], optim: OptimConfig) -> TorchEngine:
            return TorchEngine(method, groups, optim, device, bf16=job.train.bf16)

        fit(
            method,
            job.method.phases,
            job.method.optim,
            make_engine,
            loader(job, method, rank, ranks, step_log.bad, step_log.ledger),
            seed=job.seed,
            resume=resume,
            log_every=job.train.log_every,
            checkpoint_every=job.train.checkpoint_every,
            max_skipped=job.train.max_skipped_steps,
            on_log=step_log,
            ledger=step_log.ledger,
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


def settings_of(job: TrainJob, ranks: int) -> dict[str, Any]:
    """All that decides the weights, as it is kept beside a checkpoint: a dotted key for each setting."""
    data = [[shard.name, size_of(shard)] for shard in job.shards]
    data += [["without", key] for key in sorted(job.forgotten)]
    given = {"seed": job.seed, "bf16": job.train.bf16, "shards": data}
    given |= {"caption_field": job.train.caption_field} if job.train.caption_field else {}
    given |= {"ranks": ranks} if job.method.depends_on_ranks else {}
    given |= {"start": sha256(job.start) if job.start else None}  # by content: a file may move
    given |= {"method": training_settings(job.method), "normalisation": asdict(job.normalisation)}
    if job.method.uses_clip:
        encoder = asdict(job.encoder)
        given["encoder"] = encoder | {key: file_name(encoder[key]) for key in ("model", "pretrained")}
    found: dict[str, Any] = json.loads(json.dumps(dict(flatten(given))))
    return found


def refuse_other_job(job: TrainJob, ranks: int, file: Path) -> None:
    """Raise InputError where a checkpoint was written by a training of other settings, whose weights these are not."""
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = None
    now = settings_of(job, ranks)
    if not isinstance(before, dict):
        raise InputError(f"out: {job.out} holds a checkpoint that does not say of what training it is; give another folder")
    for key in now:  # an older checkpoint also names what has no say in its weights
        if before.get(key) != now[key]:
            raise InputError(
                f"out: {job.out} holds a training of other settings: {key} was {before.get(key)} and is now {now.get(key)}; "
                "give another folder, or delete that one"
            )


def _last_checkpoint(job: TrainJob, ranks: int, *, first: bool) -> Path | None:
    """The last whole checkpoint of this very training; where there is none, it begins anew."""
    kept, before = job.out / CHECKPOINT, job.out / BEFORE
    resume, wrong = newest_whole([kept, before])
    for line in wrong if first else []:
        log.warning("%s; training %s", line, "resumes from the one before" if resume else "begins anew")
    if first and wrong:
        shutil.rmtree(kept, ignore_errors=True)  # lest it take the place of the whole one before it
    if resume is not None:
        refuse_other_job(job, ranks, resume / JOB)
    return resume


def _keep(job: TrainJob, save: Callable[[Path], None], ranks: int, *, first: bool) -> None:
    """Write a checkpoint beside the last two, and put it in its place when all ranks have written their part."""
    new, kept, before = (job.out / name for name in (f".{CHECKPOINT}", CHECKPOINT, BEFORE))
    if first:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        (new / JOB).write_text(json.dumps(settings_of(job, ranks)), encoding="utf-8")
    _barrier()
    save(new)
    _barrier()
    if first:
        if kept.is_dir():
            shutil.rmtree(before, ignore_errors=True)
            os.replace(kept, before)
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
    if job.train.micro_batch:
        ensure_contrastive(method, job.method.name).micro_batch = job.train.micro_batch
    if job.train.compile:
        compile_blocks(method)
    return method


def loader(
    job: TrainJob, method: TrainableMethod, rank: int, workers: int, bad: BadSamples, ledger: Ledger | None = None
) -> Callable[[ScheduledPhase, int], Iterator[Batch]]:
    """A rank's batches as `fit` asks for them; samples that cannot be used go into `bad`, those that are into `ledger`.

    Raises InputError where any phase's cannot be had, before the first begins.
    """
    reader = reader_of(job, method)
    bad.samples = reader.total
    bad.add(reader.bad)
    for scheduled in job.scheduled_phases:
        key = f"method_settings.{job.method.name}.{scheduled.schedule.key}.batch_size"
        check_batch_size(scheduled.schedule.optim.batch_size, samples=len(reader), workers=workers, key=key)
    features = stored_features(job.features, method, job.method, reader, job.normalisation, bf16=job.train.bf16)

    def batches(scheduled: ScheduledPhase, start: int) -> Iterator[Batch]:
        drawn = batches_of(job, method, reader, scheduled, rank, workers, features)
        drawn.prefetch(start)
        pin = next(method.parameters()).is_cuda  # the engine has moved the method by now
        given = batches_from(drawn, start, scheduled.stop, workers=job.train.loader_workers, pin=pin)
        for step, batch in enumerate(given, start=start):
            bad.add(batch.bad)
            if ledger is not None:
                ledger.add(drawn.schedule, drawn.epoch(step), step, batch.first, batch.keys)
            yield batch

    return batches


def reader_of(job: TrainJob, method: TrainableMethod) -> ShardReader:
    """The samples of a training."""
    entities = method.prepare is not None or any(phase.partners for phase in job.method.phases)
    return ShardReader(
        job.shards,
        entities=entities,
        caption_field=job.train.caption_field,
        max_bad_share=job.train.max_bad_share,
        forgotten=frozenset(job.forgotten),
        open_tars=tars_of(job.shards),
    )


def batches_of(
    job: TrainJob,
    method: TrainableMethod,
    reader: ShardReader,
    scheduled: ScheduledPhase,
    rank: int,
    workers: int,
    features: StoredFeatures | None = None,
) -> CaptionBatches:
    """A rank's batches of a phase, by step."""
    read, prepare = texts_through(method, features)
    return CaptionBatches(
        reader,
        read,
        scheduled.phase.augment or job.method.augment,
        normalisation=job.normalisation,
        batch_size=scheduled.schedule.optim.batch_size,
        seed=job.seed,
        rank=rank,
        world_size=workers,
        start=scheduled.schedule.start,
        schedule=scheduled.schedule.number,
        prepare=prepare,
        features=features,
        partners=scheduled.phase.partners,
        views=method.views,
    )


def shards_of(folder: Path) -> Iterator[Path]:
    """The tars of a download folder, in order."""
    folder = folder.resolve()
    yield from (folder / name for name in names_in(folder) if name.endswith(".tar") and not is_leftover(name))
