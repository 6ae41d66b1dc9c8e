"""DINO: a teacher that follows, crops that fit, and a loss that falls on shards."""

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import tiny
from owseg import InputError
from owseg.data import CaptionBatches
from owseg.engine import TorchEngine
from owseg.fit import fit
from owseg.methods.dino import Dino, DinoConfig
from owseg.phases import Phase
from owseg.shards import ShardReader
from owseg.vit import VitSize


def config(**settings: Any) -> DinoConfig:
    sizes: dict[str, Any] = {
        "image_size": VitSize(image_size=32, patch_size=8, width=32, depth=2, heads=2),
        "local_crops": 2,
        "local_size": 16,
        "hidden": 24,
        "bottleneck": 8,
        "outputs": 16,
        "warmup_teacher_steps": 0,
        "momentum": 0.9,
    }
    phases = (Phase(steps=20, train=("image.", "head.")),)
    return DinoConfig(**{"phases": phases, "optim": tiny.OPTIM, "augment": tiny.AUGMENT, **sizes, **settings})


def trained(method: Dino, shards: Path) -> list[dict[str, float]]:
    drawn = CaptionBatches(
        ShardReader(sorted(shards.glob("*.tar"))),
        method.tokenize,
        method.config.augment,
        normalisation=tiny.HALF,
        batch_size=8,
        seed=0,
        views=method.views,
    )
    logged: list[dict[str, float]] = []
    fit(
        method,
        method.config.phases,
        method.config.optim,
        lambda groups, optim: TorchEngine(method, groups, optim),
        lambda span, step: (drawn[number] for number in range(step, span.stop)),
        seed=0,
        log_every=1,
        on_log=lambda step, losses, lr, more: logged.append({**losses, **more}),
    )
    return logged


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    tiny.write_shards(tmp_path / "shards")
    return tmp_path / "shards"


def test_the_teacher_follows_the_student_and_both_look_at_images_alone(shards: Path) -> None:
    torch.manual_seed(0)
    method = Dino(config())
    before = {name: value.clone() for name, value in method.state_dict().items()}
    logged = trained(method, shards)
    state = method.state_dict()
    assert int(state["taken"]) == 20
    moved = [name for name in state if name.startswith("teacher.") and not torch.equal(state[name], before[name])]
    assert moved
    for name in moved:  # on the way from where both began to where the student is
        student = state[name.replace("teacher.", "image.")]
        assert (state[name] - student).norm() < (before[name] - student).norm()
    assert state["centre"].abs().sum() > 0
    assert all(0 < line["distillation/teacher_entropy"] < 2.78 for line in logged[1:])  # log 16 = 2.77
    assert {line.pop("distillation") > 0 for line in logged} == {True}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"local_size": 20}, r"^method_settings\.dino\.local_size: 20 pixels are no whole patches of 8; give a multiple"),
        ({"image_tower": "vit_base_patch16_siglip_224"}, r"^method_settings\.dino\.image_tower: "),
    ],
)
def test_what_does_not_fit_is_told(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        Dino(config(**settings))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"momentum": 1.5}, r"^momentum: 1\.5 is outside 0\.\.1"),
        ({"local_area": (0.5, 0.2)}, r"^local_area: \[0\.5, 0\.2\] must be two shares"),
        ({"student_temperature": 0.0}, r"^student_temperature: 0\.0 must be at least 0\.001"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        config(**settings)
