"""Losses and gradients that are not finite: what is skipped leaves no trace, and a run of it ends training, weights kept."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from helpers import tiny
from helpers.tensors import assert_same
from owseg import InputError, fit
from owseg.adam import SavedMoments
from owseg.data import Batch, CaptionBatches
from owseg.engine import TorchEngine
from owseg.fit import WEIGHTS, phase_groups
from owseg.flops import StepMeter
from owseg.optim import OptimConfig
from owseg.phases import Phase, ScheduledPhase
from owseg.shards import ShardReader
from owseg.steady import Skipped, Undo, total_of
from owseg.trainable import TrainableMethod
from owseg.training import LoopConfig, TrainJob, train
from owseg.weights import not_finite

NAN, INF = math.nan, math.inf
GOOD = 1.0
ROOT = -1.0
"""A loss of 0 whose gradient is not finite: the root of 0."""


class Norm(TrainableMethod):
    """A weight, a batch norm, and a count of steps; its loss is as wild as its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("steps", torch.zeros(()))
        self.extra_state_prefixes = ("steps", "norm.")
        with torch.no_grad():
            self.layer.weight.copy_(torch.eye(2))
            self.layer.bias.zero_()

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        x = self.norm(self.layer(batch.image * abs(batch.image[0, 0])))
        rooted = (self.layer.bias * 0).abs().sqrt().sum() if batch.image[0, 0] == ROOT else x.new_zeros(())
        self.diagnostics = {"seen": batch.image[0, 0].detach()}
        return {"fit": x.square().mean(), "rooted": rooted}

    def after_step(self) -> None:
        self.steps += 1


def batch_of(value: float) -> Batch:
    image = torch.tensor([[1.0, 2.0], [0.5, -1.0], [0.1, 0.7]])
    image[0, 0] = value
    return Batch(image, torch.zeros(3, 2, dtype=torch.int64), ["a"] * 3, ["k"] * 3)


def run(values: list[float], out: Path, **settings: Any) -> tuple[Norm, list[dict[str, float]], list[int]]:
    """Train over steps of these values; returns the method, what was logged, and the steps of its checkpoints."""
    torch.manual_seed(0)
    method, logged, kept = Norm(), list[dict[str, float]](), list[int]()
    phases, optim = (Phase(steps=len(values), train=("layer.",)),), OptimConfig(lr=0.1, min_lr=0.1, lr_batch=0, warmup=0)

    def batches(_: ScheduledPhase, start: int) -> Iterator[Batch]:
        return map(batch_of, values[start:])

    def on_checkpoint(step: int, save: Callable[[Path], None]) -> None:
        (out / str(step)).mkdir(parents=True)
        save(out / str(step))
        kept.append(step)

    try:
        fit.fit(
            method,
            phases,
            optim,
            lambda groups, optim: TorchEngine(method, groups, optim),
            batches,
            seed=0,
            log_every=1,
            on_log=lambda step, losses, lr, watched: logged.append({"step": step, **losses, **watched}),
            on_checkpoint=on_checkpoint,
            **{"checkpoint_every": 1, **settings},
        )
    except InputError as error:
        logged.append({"error": str(error)})  # type: ignore[dict-item]
    return method, logged, kept


@pytest.mark.parametrize("bad", [NAN, INF, -INF, ROOT, 3e38])
def test_a_step_that_is_not_finite_leaves_no_trace(tmp_path: Path, bad: float) -> None:
    """Parameters, optimiser's state, running statistics and hooks: as if the step had not been."""
    plain, _, _ = run([GOOD, 0.5, 0.25], tmp_path / "plain")
    method, logged, kept = run([GOOD, bad, 0.5, bad, 0.25], tmp_path / "bad")
    assert_same(dict(method.state_dict()), dict(plain.state_dict()))
    assert [line["skipped_steps"] for line in logged] == [0, 1, 1, 2, 2]
    assert [line["seen"] for line in logged] == [GOOD, GOOD, 0.5, 0.5, 0.25], "of the last step that counts"
    assert all(math.isfinite(line["fit"]) for line in logged)
    assert kept == [1, 3, 5]
    steps = {moments.steps for name in ("plain/3", "bad/5") for moments in SavedMoments(tmp_path / name).values()}
    assert steps == {3}


def test_a_run_of_them_ends_training_with_the_last_good_checkpoint_kept(tmp_path: Path) -> None:
    method, logged, kept = run([GOOD] * 8 + [NAN] * 32, tmp_path, max_skipped=5, checkpoint_every=4)
    assert logged[-1] == {
        "error": "loss 'fit' is not finite since step 9, in 5 steps in a row; lower optim.lr or the loss's weight; "
        "the last good checkpoint, of step 8, is kept"
    }
    assert kept == [4, 8]
    assert_same(load_file(tmp_path / "8" / WEIGHTS), dict(method.state_dict()))


def test_gradients_alone_are_named(tmp_path: Path) -> None:
    _, logged, _ = run([GOOD] + [ROOT] * 9, tmp_path, max_skipped=2, checkpoint_every=100)
    assert str(logged[-1]["error"]).startswith("gradients are not finite since step 2, in 2 steps in a row")
    assert str(logged[-1]["error"]).endswith("there was no checkpoint yet")


def test_a_checkpoint_that_is_due_waits_for_a_step_that_counts(tmp_path: Path) -> None:
    _, _, kept = run([GOOD, NAN, NAN, GOOD, GOOD, NAN], tmp_path, checkpoint_every=2, max_skipped=9)
    assert kept == [4, 6], "the last step's is written in any case: its weights are those of the last good step"


@pytest.mark.parametrize(("steps", "most", "expected"), [(1000, 20, 20), (6, 20, 3), (1, 20, 1), (1000, 1, 1)])
def test_short_trainings_end_sooner(steps: int, most: int, expected: int) -> None:
    assert Skipped(steps, most).most == expected


def test_weights_that_are_not_finite_are_never_kept(tmp_path: Path) -> None:
    """An update that overflows: the losses before it were fine."""
    method = Norm()
    engine = TorchEngine(method, phase_groups(method, (Phase(steps=1, train=("layer.",)),), OptimConfig())[0], OptimConfig())
    with torch.no_grad():
        method.layer.weight[0, 0] = INF
    save = fit._saver(method, (Phase(steps=1, train=("layer.",)),), engine, 7, 4, None)
    with pytest.raises(InputError, match=r"training diverged: layer\.weight is not finite after step 7; .* of step 4, is kept"):
        save(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("losses", [[1.5, -2.25], [0.1, 3e-30]])
def test_the_factor_that_spreads_what_is_not_finite_is_exact(losses: list[float]) -> None:
    given = [torch.tensor(value, requires_grad=True) for value in losses]
    total = total_of({str(index): loss for index, loss in enumerate(given)})
    total.backward()  # type: ignore[no-untyped-call]
    assert total == torch.stack(given).sum()
    assert [loss.grad for loss in given] == [1.0, 1.0]


METHODS: dict[str, Any] = {
    "clip": tiny.clip_config(1),
    "dino": tiny.dino_config(1),
    "tcl": tiny.tcl_config(1, 1),
    "ovsegmentor": tiny.ovsegmentor_config(1, 1),
    "vilseg": tiny.vilseg_config(1),
}


@pytest.mark.parametrize("name", METHODS)
def test_each_method_is_as_it_was(tmp_path: Path, name: str) -> None:
    """Batch norms, DINO's centre, momentum copies and moments among it, in the last phase."""
    torch.manual_seed(0)
    config, encoder = METHODS[name], tiny.encoder(tmp_path)
    method = config.build(encoder).train()
    phase = config.phases[-1]
    reader = ShardReader(tiny.write_shards(tmp_path, 16), entities=method.prepare is not None)
    settings = {"prepare": method.prepare, "views": method.views, "partners": phase.partners}
    drawn = CaptionBatches(reader, method.tokenize, tiny.AUGMENT, normalisation=tiny.HALF, batch_size=8, seed=0, **settings)
    engine = TorchEngine(method, phase_groups(method, config.phases, config.optim)[-1], config.optim)
    undo, meter = Undo(method), StepMeter(torch.device("cpu"))
    fit._step(method, engine, undo, meter, drawn[0], 0, 0, 1e-3)
    before = {key: tensor.clone() for key, tensor in method.state_dict().items()}
    moments = [{key: x.clone() for key, x in state.items()} for state in engine.optimizer.state.values()]
    assert not engine.skipped

    bad = drawn[1]._replace(image=torch.full_like(drawn[1].image, NAN))
    fit._step(method, engine, undo, meter, bad, 0, 1, 1e-3)

    assert engine.skipped
    assert_same(dict(method.state_dict()), before)
    for state, old in zip(engine.optimizer.state.values(), moments, strict=True):
        assert_same(state, old)
    fit._step(method, engine, undo, meter, drawn[1], 0, 1, 1e-3)
    assert not engine.skipped
    assert not not_finite(method.state_dict())


def test_a_learning_rate_that_is_too_high_ends_in_one_line(tmp_path: Path) -> None:
    """The whole training: nothing that is not finite is written, and the log can be read by anyone."""
    tiny.write_shards(tmp_path / "shards", 16)
    optim = OptimConfig(batch_size=8, lr=1e30, min_lr=1e30, lr_batch=0, warmup=0)
    config = tiny.clip_config(8)
    job = TrainJob(
        method=type(config)(phases=config.phases, optim=optim, augment=config.augment),
        encoder=tiny.encoder_config(tmp_path),
        shards=tuple(sorted((tmp_path / "shards").glob("*.tar"))),
        out=tmp_path / "out",
        train=LoopConfig(log_every=1, checkpoint_every=1),
    )
    with pytest.raises(InputError, match=r"not finite .*lower optim\.lr"):
        train(job)
    assert not job.weights.exists()
    for file in (tmp_path / "out").rglob("*.safetensors"):
        assert not not_finite(load_file(file))
    for line in job.log.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
