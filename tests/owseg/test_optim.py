"""Learning-rate schedules against the schedulers that they follow."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from timm.scheduler.cosine_lr import CosineLRScheduler

from owseg import InputError
from owseg.adam import Moments, torch_state
from owseg.optim import OptimConfig, ParameterGroup, adamw, lr_at

TIMM = OptimConfig(batch_size=1024, lr=6.4e-4, min_lr=1.6e-4, warmup_lr=1.6e-5, lr_batch=4096, schedule="cosine_unshifted")


def timm_trace(config: OptimConfig, total: int) -> list[float]:
    """The rates of steps as a training loop has them that updates timm's scheduler after each step, with the step's number."""
    scale = config.batch_size / config.lr_batch
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=config.lr * scale)
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=total,
        lr_min=config.min_lr * scale,
        warmup_lr_init=config.warmup_lr * scale,
        warmup_t=config.warmup,
        t_in_epochs=False,
    )
    rates = []
    for step in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step_update(step)
    return rates


@pytest.mark.parametrize("warmup", [0, 20, 200])
def test_timms_schedule_is_timms_scheduler(warmup: int) -> None:
    config = OptimConfig(**{**vars(TIMM), "warmup": warmup})
    found = [lr_at(config, step, 200) for step in range(200)]
    assert found == pytest.approx(timm_trace(config, 200), rel=1e-12)


def test_timms_schedule_lags_a_step_and_leaves_the_warm_up_below_the_peak() -> None:
    """Of the official recipe at a global batch of 1,024, with 20 steps of warm-up."""
    config = OptimConfig(**{**vars(TIMM), "warmup": 20})
    rates = [lr_at(config, step, 200) for step in range(200)]
    assert rates[0] == rates[1] == pytest.approx(4e-6)
    assert rates[2] == pytest.approx(4e-6 + (1.6e-4 - 4e-6) / 20)
    assert max(rates) == rates[21] == pytest.approx(4e-5 + 0.5 * 1.2e-4 * (1 + 0.9510565), rel=1e-6)
    assert rates[199] > 4e-5


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"warmup": -1}, "warmup: -1 must be at least 0"),
        ({"lr": -1.0}, "lr: -1.0 must be positive"),
        ({"lr_batch": -1}, "lr_batch: -1 must be at least 0"),
        ({"eps": -1.0}, "eps: -1.0 must be positive"),
        ({"clip_norm": -1.0}, "clip_norm: -1.0 must be positive"),
        ({"weight_decay": -1.0}, "weight_decay: -1.0 must be at least 0"),
        ({"betas": (2.0, 2.0)}, "betas: "),
        ({"betas": (0.9,)}, "betas: "),
        ({"schedule": "cosine_unshifted", "warmup_lr": -1e-5}, "warmup_lr"),
        ({"warmup_lr": 1e-5}, "schedule=cosine_unshifted"),
    ],
)
def test_a_schedule_that_cannot_be_is_told(settings: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        OptimConfig(**settings)


@pytest.mark.parametrize(("is_cuda", "fused"), [(True, True), (False, None)])
def test_on_a_gpu_a_step_is_fused(monkeypatch: pytest.MonkeyPatch, is_cuda: bool, fused: bool | None) -> None:
    """Elsewhere torch chooses, as it always did."""
    given: dict[str, object] = {}
    monkeypatch.setattr(torch.optim, "AdamW", lambda groups, **settings: given.update(settings))
    parameter: Any = SimpleNamespace(is_cuda=is_cuda)
    adamw([ParameterGroup("all", {"one": parameter}, 0.0)], OptimConfig())
    assert given["fused"] is fused


def test_a_fused_step_finds_all_of_its_state_on_the_device() -> None:
    zero = torch.zeros(3)
    state = torch_state(Moments(5, zero, zero), torch.device("meta"))
    assert {tensor.device.type for tensor in state.values()} == {"meta"}
