"""A rank's losses, step by step, of tiny trainings that are as random as they get, on each engine."""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from cluster.engine import DeepSpeedEngine
from helpers import tiny
from helpers.ranks import save_into, shard_all_parameters
from owseg.augmentation import AugmentConfig
from owseg.engine import Engine, TorchEngine
from owseg.fit import fit
from owseg.left_out import BadSamples
from owseg.method_config import TrainableConfig
from owseg.methods.talk2dino import Talk2DinoConfig
from owseg.optim import OptimConfig, ParameterGroup
from owseg.training import LoopConfig, TrainJob, build, loader

AUGMENT = AugmentConfig(size=32, rand_augment="rand-m9-mstd0.5-inc1", erase=0.5)


def _ovsegmentor(steps: int) -> TrainableConfig:
    """With batches of 16: a batch norm over fewer rows amplifies rounding."""
    config = tiny.ovsegmentor_config(steps // 2, steps - steps // 2, drop_path=0.1, label_weight=1.0)
    larger = replace(tiny.OPTIM, batch_size=16)
    first, second = config.phases
    return replace(config, optim=larger, phases=(first, replace(second, optim=replace(larger, lr=5e-4))))


METHODS: dict[str, Callable[[int], TrainableConfig]] = {
    "clip": lambda steps: tiny.clip_config(steps),
    "dino": lambda steps: tiny.dino_config(steps),
    "tcl": lambda steps: tiny.tcl_config(steps // 2, steps - steps // 2),
    "ovsegmentor": _ovsegmentor,
    "vilseg": lambda steps: tiny.vilseg_config(steps),
    "tcl-entities": lambda steps: replace(tiny.tcl_config(steps // 2, steps - steps // 2), texts="entities"),
    "talk2dino": lambda steps: tiny.talk2dino_config(steps),
    "talk2dino-entity": lambda steps: tiny.talk2dino_config(steps, head="entity"),
}

LOOPS = {"float32": LoopConfig(), "bf16": LoopConfig(bf16=True), "parts": LoopConfig(micro_batch=3)}


def job_of(config: TrainableConfig, home: Path, shards: Path, loop: LoopConfig) -> TrainJob:
    """A training of `config` on the tars of `shards`, with all augmentation on; its files go to `home`."""
    augment = AUGMENT
    if isinstance(config, Talk2DinoConfig):  # whose frozen tower reads images as they are
        config = replace(config, image_weights=tiny.write_tower(home))
        augment = replace(AUGMENT, rand_augment="", erase=0.0)
    return TrainJob(
        method=replace(config, augment=augment),  # type: ignore[call-arg]
        encoder=tiny.encoder_config(home),
        normalisation=tiny.HALF,
        shards=tuple(sorted(shards.glob("*.tar"))),
        out=home,
        train=loop,
    )


def record(folder: Path, steps: str, *cells: str) -> None:
    """Train each cell, "NAME METHOD ENGINE HOW FIRST LAST": from the checkpoint of step FIRST, 0 = none, to that of LAST.

    ENGINE is torch or a ZeRO stage; HOW is one of `LOOPS`. Rank 0 writes the losses to NAME.json, by step; checkpoints
    lie in NAME.
    """
    shard_all_parameters()
    for cell in cells:
        name, method, engine, how, first, last = cell.split()
        losses = _train(folder, METHODS[method](int(steps)), engine, LOOPS[how], name, int(first), int(last))
        if dist.get_rank() == 0:
            path = folder / f"{name}.json"
            before = json.loads(path.read_text()) if path.exists() else {}
            path.write_text(json.dumps(before | losses))


class _EnoughError(Exception):
    pass


def _train(
    folder: Path, config: TrainableConfig, engine: str, how: LoopConfig, name: str, first: int, last: int
) -> dict[int, dict[str, float]]:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    home = folder / f"rank{rank}"
    home.mkdir(exist_ok=True)
    job = job_of(config, home, folder, how)
    method = build(job)
    cpu = torch.device("cpu")

    def make(groups: Sequence[ParameterGroup], optim: OptimConfig) -> Engine:
        if engine == "torch":
            return TorchEngine(method, groups, optim, bf16=how.bf16)
        own = optim.batch_size // ranks
        return DeepSpeedEngine(method, groups, optim, batch_per_worker=own, zero_stage=int(engine), bf16=how.bf16, device=cpu)

    losses: dict[int, dict[str, float]] = {}

    def log(step: int, values: dict[str, float], lr: float, watched: dict[str, float]) -> None:
        losses[step] = values

    def keep(step: int, save: Callable[[Path], None]) -> None:
        if step in (last, job.steps):
            save_into(folder / name)(step, save)
        if step == last:
            raise _EnoughError

    with suppress(_EnoughError):
        fit(
            method,
            job.method.phases,
            job.method.optim,
            make,
            loader(job, method, rank, ranks, BadSamples(home / "bad.jsonl", 1.0, write=False)),
            seed=0,
            resume=folder / name / str(first) if first else None,
            log_every=1,
            checkpoint_every=1,
            on_log=log,
            on_checkpoint=keep,
        )
    return losses
