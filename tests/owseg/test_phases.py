"""Phases: which of them are one training, what a new one starts afresh, and a method's hooks over them."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cluster.train_config import TrainConfig
from helpers import tiny
from helpers.tensors import assert_same
from owseg import InputError
from owseg.data import Batch, CaptionBatches
from owseg.engine import TorchEngine
from owseg.fit import WEIGHTS, fit, learned_state, load_learned
from owseg.left_out import BadSamples
from owseg.optim import OptimConfig, lr_at
from owseg.phases import Phase, ScheduledPhase, scheduled_phases
from owseg.shards import ShardReader
from owseg.step_log import pairs_between
from owseg.trainable import TrainableMethod
from owseg.training import TrainJob, loader

FIRST = OptimConfig(batch_size=8, lr=1e-2, min_lr=1e-3, lr_batch=0, warmup=2)
SECOND = OptimConfig(batch_size=4, lr=3e-2, min_lr=0.0, lr_batch=0, warmup=1, weight_decay=0.5, clip_norm=0.1)
PHASES = (Phase(steps=4, train=("layer.", "head.")), Phase(steps=5, train=("layer.",), partners=True, optim=SECOND))


class Follower(TrainableMethod):
    """A regression whose layer has a momentum copy, which the second phase's loss asks for."""

    extra_state_prefixes = ("momentum",)

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(3, 4), nn.Linear(4, 1)
        self.register_buffer("momentum", torch.zeros(4, 3))
        self.calls: list[str] = []

    def begin_phase(self, phase: Phase) -> None:
        self.calls.append("with partners" if phase.partners else "alone")
        self.momentum.copy_(self.layer.weight)

    def after_step(self) -> None:
        self.momentum.lerp_(self.layer.weight.detach(), 0.1)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        hidden = self.layer(batch.image.mean(dim=(2, 3)))
        target = batch.tokens[:, :1].float()
        losses = {"fit": (self.head(hidden) - target).square().mean()}
        if batch.partner is not None:
            losses["follow"] = (hidden - batch.partner.mean(dim=(2, 3)) @ self.momentum.T).square().mean()
        return losses


def batch_at(step: int, size: int, partners: bool) -> Batch:
    generator = torch.Generator().manual_seed(step)
    images, others = torch.randn(2, size, 3, 2, 2, generator=generator)
    tokens = torch.randint(5, (size, 2), generator=generator)
    return Batch(images, tokens, [], [], partner=others if partners else None)


def made(span: ScheduledPhase, step: int) -> Iterator[Batch]:
    for number in range(step, span.stop):
        yield batch_at(number, span.schedule.optim.batch_size, span.phase.partners)


def train(
    phases: tuple[Phase, ...],
    optim: OptimConfig = FIRST,
    *,
    out: Path | None = None,
    resume: Path | None = None,
    method: Follower | None = None,
    batches: Callable[[ScheduledPhase, int], Iterator[Batch]] = made,
) -> tuple[Follower, list[float]]:
    """A trained method and the learning rates it was trained at; with `out` every step's checkpoint is there."""
    torch.manual_seed(0)
    method = method or Follower()
    rates: list[float] = []

    def checkpoint(step: int, save: Callable[[Path], None]) -> None:
        if out is not None:
            (out / str(step)).mkdir(parents=True)
            save(out / str(step))

    fit(
        method,
        phases,
        optim,
        lambda groups, own: TorchEngine(method, groups, own),
        batches,
        seed=0,
        resume=resume,
        log_every=1,
        checkpoint_every=1,
        on_log=lambda step, losses, lr, diagnostics: rates.append(lr),
        on_checkpoint=checkpoint,
    )
    return method, rates


def test_phases_up_to_one_with_its_own_optim_are_one_training() -> None:
    alone = replace(PHASES[0], steps=2)
    places = scheduled_phases((alone, PHASES[0], PHASES[1], alone), FIRST)
    assert [(span.start, span.stop) for span in places] == [(0, 2), (2, 6), (6, 11), (11, 13)]
    schedules = [(s.number, s.optim, s.key, s.start, s.stop) for s in (span.schedule for span in places)]
    assert schedules == [(0, FIRST, "optim", 0, 6)] * 2 + [(1, SECOND, "phases.2.optim", 6, 13)] * 2


def test_a_first_phase_may_have_its_own_optim() -> None:
    (span,) = scheduled_phases(PHASES[1:], FIRST)
    assert span.schedule == (0, SECOND, "phases.0.optim", 0, 5)


def test_a_phase_with_its_own_optim_is_a_training_of_its_own() -> None:
    """Bit for bit what two runs give, the second from the first one's weights: schedule, moments and decay are its own."""
    together, rates = train(PHASES)

    first, _ = train(PHASES[:1])
    later = [batch_at(step, SECOND.batch_size, partners=True) for step in range(4, 9)]
    again, own_rates = train(PHASES[1:], method=first, batches=lambda span, step: iter(later[step : span.stop]))

    assert rates == [lr_at(FIRST, step, 4) for step in range(4)] + [lr_at(SECOND, step, 5) for step in range(5)]
    assert own_rates == rates[4:]
    assert_same(again.state_dict(), together.state_dict())


def test_a_phase_without_one_goes_on_with_the_last() -> None:
    second = replace(PHASES[1], partners=False)
    whole, rates = train((PHASES[0], second))
    parted, same = train((PHASES[0], replace(second, steps=2), replace(second, steps=3, optim=None)))
    assert rates == same
    assert_same(parted.layer.state_dict(), whole.layer.state_dict())
    assert_same(parted.head.state_dict(), whole.head.state_dict())


@pytest.mark.parametrize("step", [1, 3, 4, 5, 8])
def test_a_resumed_run_ends_the_same_over_a_new_training(tmp_path: Path, step: int) -> None:
    """In the middle of either phase and at the boundary, with what the method changes without gradients."""
    whole, rates = train(PHASES, out=tmp_path / "whole")
    resumed, rest = train(PHASES, resume=tmp_path / "whole" / str(step))
    assert_same(resumed.state_dict(), whole.state_dict())
    assert rest == rates[step:]
    assert resumed.calls == (["with partners"] if step <= PHASES[0].steps else [])  # not where a phase goes on


def test_hooks_are_called_where_a_phase_begins_and_after_steps(tmp_path: Path) -> None:
    method, _ = train((replace(PHASES[0], steps=1), replace(PHASES[0], steps=1)), out=tmp_path)
    assert method.calls == ["alone", "alone"]
    before = Follower()
    load_learned(before, PHASES, tmp_path / "1" / WEIGHTS)
    expected = before.layer.weight.lerp(method.layer.weight, 0.1)
    torch.testing.assert_close(method.momentum, expected)


def test_a_checkpoint_holds_what_is_trained_and_what_is_kept(tmp_path: Path) -> None:
    method, _ = train(PHASES)
    assert learned_state(method, PHASES).keys() == {"layer.weight", "layer.bias", "head.weight", "head.bias", "momentum"}
    assert learned_state(method, PHASES[1:]).keys() == {"layer.weight", "layer.bias", "momentum"}


# ---------------------------------------------------------------------------------------------------------------- batches


def keys(folder: Path, steps: range, **settings: int) -> list[str]:
    reader = ShardReader(sorted(folder.glob("*.tar")))
    drawn = CaptionBatches(
        reader,
        lambda texts: torch.zeros(len(texts), 2),
        tiny.AUGMENT,
        normalisation=tiny.HALF,
        seed=0,
        **{"batch_size": 8, **settings},
    )
    return [key for step in steps for key in drawn[step].keys]


def test_every_epoch_visits_every_sample_in_a_new_order(tmp_path: Path) -> None:
    tiny.write_shards(tmp_path)
    epochs = [keys(tmp_path, range(start, start + 5)) for start in (0, 5, 10)]
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert len(set(epochs[0])) == 40
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_new_training_begins_with_an_epoch_of_its_own(tmp_path: Path) -> None:
    """Whole and in a new order, even where the phase before left off within one."""
    tiny.write_shards(tmp_path)
    first, later = keys(tmp_path, range(5)), keys(tmp_path, range(3, 13), start=3, schedule=1, batch_size=4)
    assert sorted(later) == sorted(first)
    assert later != first


@pytest.mark.parametrize(
    ("sizes", "key"),
    [
        ((8, 5), r"phases\.1\.optim\.batch_size: 5 does not divide over 2"),
        ((8, 44), r"phases\.1\.optim\.batch_size: 44 is more"),
        ((7, 8), r"method_settings\.tcl\.optim\.batch_size: 7"),
        ((8, 8), None),
    ],
)
def test_a_batch_size_that_cannot_be_is_told_before_training(tmp_path: Path, sizes: tuple[int, int], key: str | None) -> None:
    first, second = (OptimConfig(batch_size=size) for size in sizes)
    config = replace(tiny.tcl_config(), optim=first)
    config = replace(config, phases=(config.phases[0], replace(config.phases[1], optim=second)))
    encoder = tiny.encoder(tmp_path)
    job = TrainJob(
        method=config,
        encoder=tiny.encoder_config(tmp_path),
        shards=tuple(tiny.write_shards(tmp_path)),
        out=tmp_path,
        seed=0,
        train=TrainConfig(),
    )
    method = config.build(encoder)
    if key is None:
        batches = loader(job, method, 0, 2, BadSamples(tmp_path / "bad.jsonl", 0.0, write=False))
        assert [len(batch.keys) for span in job.scheduled_phases for batch in batches(span, span.start)] == [4] * 6
    else:
        with pytest.raises(InputError, match=key):
            loader(job, method, 0, 2, BadSamples(tmp_path / "bad.jsonl", 0.0, write=False))


def test_a_rate_counts_each_step_with_its_own_batch_size() -> None:
    assert pairs_between(scheduled_phases(PHASES, FIRST), 2, 7) == 2 * 8 + 3 * 4
    assert pairs_between(scheduled_phases(PHASES, FIRST), 0, 9) == 4 * 8 + 5 * 4


def test_a_training_that_diverges_is_ended(tmp_path: Path) -> None:
    method = Follower()
    with torch.no_grad():
        method.head.weight.fill_(torch.inf)
    with pytest.raises(InputError, match=r"loss 'fit' is not finite since step 1, in 4 steps in a row; lower optim\.lr"):
        fit(method, PHASES, FIRST, lambda groups, optim: TorchEngine(method, groups, optim), made, seed=0, log_every=1)
