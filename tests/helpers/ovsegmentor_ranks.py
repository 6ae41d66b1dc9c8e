"""A rank's training of a tiny OVSegmentor: its rows of joined batches, in float64, with the joined batch's draws."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cluster.engine import DeepSpeedEngine
from helpers import tiny
from helpers.ranks import shard_all_parameters
from owseg.data import Batch, CaptionBatches
from owseg.engine import Engine, TorchEngine
from owseg.fit import fit
from owseg.methods.ovsegmentor import OvSegmentor
from owseg.optim import OptimConfig, ParameterGroup
from owseg.phases import ScheduledPhase
from owseg.shards import ShardReader

RUNS = {"plain": (0, 0), "zero1": (1, 0), "zero3": (3, 0), "zero3 from 2": (3, 2), "zero3 from 3": (3, 3)}
"""ZeRO stage (0 = the plain engine) and the step from whose checkpoint a run goes on: the change of phase is after step 2."""
Trained = dict[str, Any]
"""losses: by name, of every step; state: the method's tensors after the last; and what parameters were sharded."""


def place() -> tuple[int, int]:
    """This process' rank, and the number of ranks."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def share(rows: Tensor) -> Tensor:
    """This rank's rows of a joined batch."""
    rank, ranks = place()
    return rows.chunk(ranks)[rank]


def batches_of(folder: Path, method: OvSegmentor) -> Callable[[ScheduledPhase, int], Iterator[Batch]]:
    """This rank's rows of the batches that one process would take."""
    reader = ShardReader(sorted(folder.glob("*.tar")), entities=True)

    def batches(span: ScheduledPhase, step: int) -> Iterator[Batch]:
        joined = CaptionBatches(
            reader,
            method.tokenize,
            tiny.AUGMENT,
            normalisation=tiny.HALF,
            batch_size=span.schedule.optim.batch_size,
            seed=0,
            start=span.schedule.start,
            schedule=span.schedule.number,
            prepare=method.prepare,
            partners=span.phase.partners,
        )
        for number in range(step, span.stop):
            batch = joined[number]
            texts = {name: share(tokens) for name, tokens in batch.texts.items()}
            partner = None if batch.partner is None else share(batch.partner).double()
            image = share(batch.image).double()
            first = len(image) * place()[0]
            yield Batch(image, share(batch.tokens), [], [], texts, partner, first=first)

    return batches


def train(folder: Path, run: str, stage: int = 0, start: int = 0) -> Trained:
    """Two steps in each phase, the second one with partners and an optimiser of its own."""
    rank, ranks = place()
    config = tiny.ovsegmentor_config(2, 2, label_weight=0.5)
    home = folder / f"{run} {rank} of {ranks}"
    home.mkdir()
    torch.manual_seed(0)
    method = config.build(tiny.encoder(home)).double()
    found: Trained = {"losses": [], "state": {}, "sharded": []}
    engines: list[Engine] = []

    def make_engine(groups: list[ParameterGroup], optim: OptimConfig) -> Engine:
        if stage == 0:
            engines.append(TorchEngine(method, groups, optim))
        else:
            spread: dict[str, Any] = {"batch_per_worker": optim.batch_size // ranks, "zero_stage": stage, "bf16": False}
            engines.append(DeepSpeedEngine(method, groups, optim, device=torch.device("cpu"), **spread))
        return engines[-1]

    def checkpoint(step: int, save: Callable[[Path], None]) -> None:
        found["sharded"] = [name for name, parameter in method.named_parameters() if parameter.numel() == 0]
        if run == "zero3":
            (folder / str(step)).mkdir(exist_ok=True)
            save(folder / str(step))
            dist.barrier()
        with engines[-1].full_parameters():
            found["state"] = {name: tensor.clone() for name, tensor in method.state_dict().items()}

    fit(
        method,
        config.phases,
        config.optim,
        make_engine,
        batches_of(folder, method),
        seed=0,
        resume=folder / str(start) if start else None,
        log_every=1,
        checkpoint_every=1,
        on_log=lambda step, losses, lr, diagnostics: found["losses"].append(losses),
        on_checkpoint=checkpoint,
    )
    return found


def train_all(folder: Path) -> None:
    """A rank's part: each run's training into a file of the folder."""
    from deepspeed.accelerator import get_accelerator

    shard_all_parameters()
    # On a CPU that computes in float16, ZeRO 3 asks for the parameters' own type and refuses float64; elsewhere it takes any.
    get_accelerator().is_fp16_supported = lambda: False
    for run, (stage, start) in RUNS.items():
        torch.save(train(folder, run, stage, start), folder / f"{run}-{dist.get_rank()}.pt")
