"""The one training loop: phases in order, steps that depend on (seed, step) alone, checkpoints that any step restarts from."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from owseg import InputError
from owseg.data import Batch, seed_step
from owseg.engine import Engine, Phase
from owseg.optim import OptimConfig, lr_at

WEIGHTS = "method.safetensors"
MakeEngine = Callable[[Sequence[tuple[str, nn.Parameter]]], Engine]


class OnLog(Protocol):
    """Called with the last finished step, the losses (means over ranks) and the learning rate."""

    def __call__(self, step: int, losses: dict[str, float], lr: float) -> None: ...


class OnCheckpoint(Protocol):
    """Called on every rank after `step` steps; `save(folder)` writes a checkpoint there (every rank must call it)."""

    def __call__(self, step: int, save: Callable[[Path], None]) -> None: ...


def learned_state(method: nn.Module, phases: Sequence[Phase]) -> dict[str, Tensor]:
    """The tensors that any phase trains (and the buffers beside them): what a checkpoint of the method holds."""
    prefixes = tuple(prefix for phase in phases for prefix in phase.train)
    return {name: tensor.contiguous() for name, tensor in method.state_dict().items() if name.startswith(prefixes)}


def load_learned(method: nn.Module, phases: Sequence[Phase], path: Path) -> None:
    """Load `learned_state` from a safetensors file. Raises InputError where names or shapes do not fit."""
    try:
        state = load_file(path)
    except Exception as error:  # safetensors raises its own untyped errors for truncated and foreign files
        raise InputError(f"{path}: not a readable checkpoint ({error})") from error
    expected = learned_state(method, phases)
    wrong = sorted(name for name in expected.keys() | state.keys() if name not in state or name not in expected) or sorted(
        name for name, tensor in expected.items() if tensor.shape != state[name].shape
    )
    if wrong:
        raise InputError(f"{path}: belongs to another architecture (first difference: {wrong[0]})")
    method.load_state_dict(state, strict=False)


def set_trainable(method: nn.Module, phase: Phase) -> list[tuple[str, nn.Parameter]]:
    """Freeze all but the phase's parameters and return those. Raises InputError where a prefix names none."""
    for prefix in phase.train:
        if not any(name.startswith(prefix) for name, _ in method.named_parameters()):
            raise InputError(f"phases.train: no parameter name begins with {prefix!r}")
    trainable = []
    for name, parameter in method.named_parameters():
        parameter.requires_grad_(name.startswith(phase.train))
        if parameter.requires_grad:
            trainable.append((name, parameter))
    return trainable


def fit(
    method: nn.Module,
    phases: Sequence[Phase],
    optim: OptimConfig,
    make_engine: MakeEngine,
    batches: Callable[[int, int], Iterator[Batch]],
    *,
    seed: int,
    resume: Path | None = None,
    log_every: int = 10,
    checkpoint_every: int = 1000,
    on_log: OnLog | None = None,
    on_checkpoint: OnCheckpoint | None = None,
) -> None:
    """Train `method` in place.

    batches(start, stop) yields this rank's batches of steps start..stop-1. `resume` is a folder that a checkpoint was saved
    to; training goes on after its step as if it had never stopped, given as many ranks as before. One schedule runs over
    all phases; an engine, and with it the optimiser's state, lives for one phase.
    """
    rank = dist.get_rank() if dist.is_initialized() else 0
    total = sum(phase.steps for phase in phases)
    done = 0
    if resume is not None:
        done = int(json.loads((resume / "position.json").read_text())["step"])
        load_learned(method, phases, resume / WEIGHTS)
    method.train()
    start = 0
    for phase in phases:
        stop = start + phase.steps
        if done >= stop:
            start = stop
            continue
        engine = make_engine(set_trainable(method, phase))
        if resume is not None and done > start:
            engine.load(resume)
        for step, batch in zip(range(max(start, done), stop), batches(max(start, done), stop), strict=True):
            seed_step(seed, step, rank)
            losses = engine.step(batch, lr_at(optim, step, total))
            after_step = getattr(method, "after_step", None)
            if after_step is not None:
                after_step()
            finished = step + 1
            if finished % log_every == 0 or finished == total:
                means = _mean_over_ranks(losses)  # a collective: every rank takes part, whether or not it logs
                if on_log is not None:
                    on_log(finished, means, lr_at(optim, step, total))
            if on_checkpoint is not None and (finished % checkpoint_every == 0 or finished == total):
                on_checkpoint(finished, _saver(method, phases, engine, finished))
        start = stop


def _saver(method: nn.Module, phases: Sequence[Phase], engine: Engine, step: int) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        engine.save(folder)
        if not dist.is_initialized() or dist.get_rank() == 0:
            save_file({name: tensor.cpu() for name, tensor in learned_state(method, phases).items()}, folder / WEIGHTS)
            (folder / "position.json").write_text(json.dumps({"step": step}))

    return save


def _mean_over_ranks(losses: dict[str, Tensor]) -> dict[str, float]:
    values = torch.stack([loss.float() for loss in losses.values()])
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return dict(zip(losses, values.tolist(), strict=True))
