"""The one training loop: phases in order, steps that depend on (seed, step) alone, checkpoints that any step restarts from."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from owseg import InputError
from owseg.adam import AdamState, Moments, SavedMoments, write_share
from owseg.costs import Waits
from owseg.data import Batch
from owseg.engine import Engine
from owseg.flops import StepMeter
from owseg.ledger import LEDGER, Ledger
from owseg.noise import of_step
from owseg.optim import OptimConfig, ParameterGroup, parameter_groups
from owseg.phases import Phase, ScheduledPhase, scheduled_phases
from owseg.snapshots import POSITION, step_of, write_part
from owseg.steady import MAX_SKIPPED, Last, Skipped, Undo, refuse_diverged
from owseg.trainable import TrainableMethod
from owseg.weights import differences, not_finite

WEIGHTS = "method.safetensors"
MakeEngine = Callable[[Sequence[ParameterGroup], OptimConfig], Engine]


class OnLog(Protocol):
    """Called on every rank with the last finished step, the losses (means over ranks), the learning rate and diagnostics.

    Losses and diagnostics are those of the last step that was not skipped, none where all were; "skipped_steps" is how many
    were since `fit` began, "data_wait_share" the share of time, since the call before, in which this rank waited for batches.
    "grad_norm" is that of the last step's gradients before they are clipped. On a GPU whose peak is known (`owseg.flops`),
    "mfu" is what this rank's steps make of it.
    """

    def __call__(self, step: int, losses: dict[str, float], lr: float, diagnostics: dict[str, float]) -> None: ...


class CheckpointNow(Protocol):
    """Whether a checkpoint shall be written after a step, before its time: called on every rank, which all get the same."""

    def __call__(self, step: int) -> bool: ...


class OnCheckpoint(Protocol):
    """Called on every rank after `step` steps; `save(folder)` writes a checkpoint there (every rank must call it)."""

    def __call__(self, step: int, save: Callable[[Path], None]) -> None: ...


def learned_state(method: TrainableMethod, phases: Sequence[Phase]) -> dict[str, Tensor]:
    """What a checkpoint holds: the tensors that any phase trains, buffers beside them, and those of `extra_state_prefixes`."""
    prefixes = (*(prefix for phase in phases for prefix in phase.train), *method.extra_state_prefixes)
    return {name: tensor.contiguous() for name, tensor in method.state_dict().items() if name.startswith(prefixes)}


def load_learned(method: TrainableMethod, phases: Sequence[Phase], path: Path) -> None:
    """Load `learned_state` from a safetensors file. Raises InputError where names or shapes do not fit."""
    try:
        state = load_file(path)
    except Exception as error:  # safetensors raises its own untyped errors for truncated and foreign files
        raise InputError(f"{path}: not a readable checkpoint ({error})") from error
    wrong = differences(state, learned_state(method, phases))
    if wrong:
        raise InputError(f"{path}: belongs to another architecture ({wrong})")
    method.load_state_dict(state, strict=False)


def named_parameters(method: TrainableMethod, phase: Phase) -> list[tuple[str, nn.Parameter]]:
    """The parameters that a phase trains. Raises InputError where a prefix names none."""
    named = list(method.named_parameters())
    for prefix in phase.train:
        if not any(name.startswith(prefix) for name, _ in named):
            raise InputError(f"phases.train: no parameter name begins with {prefix!r}")
    return [(name, parameter) for name, parameter in named if name.startswith(phase.train)]


def phase_groups(method: TrainableMethod, phases: Sequence[Phase], optim: OptimConfig) -> list[list[ParameterGroup]]:
    """What each phase trains, grouped for its engine. Raises InputError where a prefix names no parameter."""
    prefixes = [phase.train for phase in phases]
    quirks = method.quirks
    return [
        parameter_groups(named_parameters(method, scheduled.phase), prefixes, scheduled.schedule.optim.weight_decay, quirks)
        for scheduled in scheduled_phases(phases, optim)
    ]


def fit(
    method: TrainableMethod,
    phases: Sequence[Phase],
    optim: OptimConfig,
    make_engine: MakeEngine,
    batches: Callable[[ScheduledPhase, int], Iterator[Batch]],
    *,
    seed: int,
    resume: Path | None = None,
    log_every: int = 10,
    checkpoint_every: int = 1000,
    max_skipped: int = MAX_SKIPPED,
    on_log: OnLog | None = None,
    on_checkpoint: OnCheckpoint | None = None,
    checkpoint_now: CheckpointNow | None = None,
    ledger: Ledger | None = None,
) -> None:
    """Train `method` in place.

    batches(scheduled, step) yields this rank's batches of a phase from `step` on; checkpoints keep the `ledger` of them.
    `resume` is a folder that one was saved to: training resumes after its step as if it had never stopped, on any ranks.

    Each phase has an engine of its own, which takes over the optimiser's state of parameters that the phase before trained too
    (one that pauses starts afresh). A phase with an `optim` of its own begins a new training: weights alone are kept.

    A step whose losses or gradients are not finite changes nothing, and no checkpoint is written after it but the last one.
    Raises InputError after `max_skipped` of them in a row, and where weights to be kept are not finite.
    """
    total, done = sum(phase.steps for phase in phases), 0
    if resume is not None:
        done = step_of(resume)
        load_learned(method, phases, resume / WEIGHTS)
    method.train()
    kept, due, last, skipped, waits = done, False, Last({}, {}), Skipped(total, max_skipped), Waits()
    carried: AdamState = {}
    for scheduled, groups in zip(scheduled_phases(phases, optim), phase_groups(method, phases, optim), strict=True):
        if done > scheduled.stop or done == total:
            continue
        _freeze_all_but(method, groups)
        engine = make_engine(groups, scheduled.schedule.optim)
        if resume is not None and done > scheduled.start:  # at its very end, too: the next engine takes over from this one
            engine.set_moments(SavedMoments(resume))
        else:
            engine.set_moments(carried if scheduled.start > scheduled.schedule.start else {})
            _call(method, engine, "begin_phase", scheduled.phase)
        first, undo, meter = max(scheduled.start, done), Undo(method), StepMeter(next(method.parameters()).device)
        for step, batch in zip(range(first, scheduled.stop), waits.timed(batches(scheduled, first)), strict=True):
            losses = _step(method, engine, undo, meter, batch, seed, step, scheduled.schedule.lr(step))
            finished = step + 1
            last = last if engine.skipped else Last(losses, method.diagnostics)
            skipped(engine.skipped, finished, losses, kept)
            if finished % log_every == 0 or finished == total:
                spent = _spent(skipped, waits, meter, engine)
                _tell(on_log, finished, last, scheduled.schedule.lr(step), spent)
            due = due or finished % checkpoint_every == 0 or (checkpoint_now is not None and checkpoint_now(finished))
            if on_checkpoint is not None and (finished == total or (due and not engine.skipped)):
                on_checkpoint(finished, _saver(method, phases, engine, finished, kept, ledger))
                kept, due = finished, False
        carried = _copied(engine.moments()) if scheduled.stop < total else {}
        engine.release()


def _spent(skipped: Skipped, waits: Waits, meter: StepMeter, engine: Engine) -> dict[str, float]:
    """What a log tells beside losses; no norm of gradients that a step was skipped for."""
    norm = {} if engine.skipped else {"grad_norm": engine.grad_norm}
    return {"skipped_steps": float(skipped.count), "data_wait_share": waits.share(), **meter.share(), **norm}


def _copied(moments: Iterator[tuple[str, Moments]]) -> AdamState:
    """The state apart from the engine's own tensors."""
    return {name: Moments(steps, mean.clone(), square.clone()) for name, (steps, mean, square) in moments}


def _step(
    method: TrainableMethod, engine: Engine, undo: Undo, meter: StepMeter, batch: Batch, seed: int, step: int, lr: float
) -> dict[str, Tensor]:
    """A step with what belongs to it; one that is skipped leaves the method as it was."""
    undo.remember()
    with of_step(seed, step), meter.step():
        losses = engine.step(batch, lr)
    if engine.skipped:
        undo.take_back()
    else:
        undo.settle()
        _call(method, engine, "after_step")
    return losses


def _tell(on_log: OnLog | None, step: int, last: Last, lr: float, spent: dict[str, float]) -> None:
    means, watched = map(_mean_over_ranks, last)  # collectives: every rank takes part, whether or not it logs
    if on_log is not None:
        on_log(step, means, lr, watched | spent)


def _call(method: TrainableMethod, engine: Engine, name: str, *arguments: object) -> None:
    """Call a method's own hook with all its tensors whole and gradients off."""
    if method.overrides(name):
        with engine.full_parameters(), torch.no_grad():
            getattr(method, name)(*arguments)


def _freeze_all_but(method: TrainableMethod, groups: Sequence[ParameterGroup]) -> None:
    method.zero_grad(set_to_none=True)  # what the phase before has left, of parameters that now stay as they are
    method.requires_grad_(False)
    for group in groups:
        for parameter in group.parameters.values():
            parameter.requires_grad_()


def _saver(
    method: TrainableMethod, phases: Sequence[Phase], engine: Engine, step: int, kept: int, ledger: Ledger | None
) -> Callable[[Path], None]:
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)

    def write(folder: Path, position: dict[str, Any]) -> None:
        write_share(engine.moments(), folder, rank, ranks)
        with engine.full_parameters():
            if rank == 0:
                save_file({name: tensor.cpu() for name, tensor in learned_state(method, phases).items()}, folder / WEIGHTS)
                (folder / POSITION).write_text(json.dumps(position), encoding="utf-8")

    def save(folder: Path) -> None:
        with engine.full_parameters():
            refuse_diverged(_not_finite_anywhere(learned_state(method, phases)), step, kept)
        position = {"step": step} | ({LEDGER: ledger.over_ranks()} if ledger else {})
        write_part(folder, rank, ranks, lambda own: write(own, position))

    return save


def _not_finite_anywhere(state: dict[str, Tensor]) -> str:
    """What any rank's tensors say of numbers that are not finite: buffers may be another on each. Every rank must call it."""
    wrong = not_finite(state)
    found = _mean_over_ranks({"wrong": torch.tensor(float(bool(wrong)), device=next(iter(state.values())).device)})
    return wrong or ("a tensor of another rank is not finite" if found["wrong"] else "")


def _mean_over_ranks(losses: dict[str, Tensor]) -> dict[str, float]:
    if not losses:
        return {}
    values = torch.stack([loss.float() for loss in losses.values()])
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return dict(zip(losses, values.tolist(), strict=True))
