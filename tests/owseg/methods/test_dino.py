"""DINO: ViL-Seg's vision-based contrast, number by number; a teacher that follows, crops that fit, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import tiny
from helpers.vilseg import batch_of
from owseg import InputError
from owseg.data import CaptionBatches
from owseg.engine import TorchEngine
from owseg.fit import fit
from owseg.methods.dino import Dino
from owseg.methods.vilseg import VilSeg
from owseg.shards import ShardReader


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


def test_its_loss_is_vil_seg_s_vision_based_contrast(shards: Path) -> None:
    """The same towers, heads, crops and temperatures give the same numbers, gradients and centre."""
    torch.manual_seed(0)
    warm = {"warmup_teacher_temperature": 0.05, "teacher_temperature": 0.07, "warmup_teacher_steps": 4}
    dino = Dino(tiny.dino_config(colour_jitter=0.0, **warm)).double()
    vilseg = VilSeg(tiny.vilseg_config(colour_jitter=0.0, vision_weight=0.5, **warm)).double()
    for method in (dino, vilseg):
        method.centre.copy_(torch.linspace(-1, 1, 16)[None])
        method.taken += 2
    dino.image.load_state_dict(vilseg.image.state_dict())
    dino.head.load_state_dict(vilseg.vision_head.state_dict())
    assert vilseg.teacher is not None
    assert vilseg.teacher_head is not None
    dino.teacher.load_state_dict(vilseg.teacher.state_dict())
    dino.teacher_head.load_state_dict(vilseg.teacher_head.state_dict())
    batch = batch_of(vilseg, shards)
    batch = batch._replace(image=batch.image.double(), views={name: view.double() for name, view in batch.views.items()})
    own, theirs = dino.losses(batch)["distillation"], vilseg.losses(batch)["vision"] / 0.5
    torch.testing.assert_close(own, theirs, rtol=1e-12, atol=0)
    own.backward()
    theirs.backward()
    for part, other in ((dino.image, vilseg.image), (dino.head, vilseg.vision_head)):
        for (name, parameter), (_, twin) in zip(part.named_parameters(), other.named_parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, twin.grad, rtol=1e-9, atol=1e-12, msg=name)
    torch.testing.assert_close(dino.centre, vilseg.centre, rtol=1e-12, atol=0)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    tiny.write_shards(tmp_path / "shards")
    return tmp_path / "shards"


def test_the_teacher_follows_the_student_and_both_look_at_images_alone(shards: Path) -> None:
    torch.manual_seed(0)
    method = Dino(tiny.dino_config(20, momentum=0.9))
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


def test_without_small_crops_the_whole_ones_are_compared(shards: Path) -> None:
    (first, *_) = trained(Dino(tiny.dino_config(2, local_crops=0)), shards)
    assert first["distillation"] > 0


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"local_size": 20}, r"^method_settings\.dino\.local_size: 20 pixels are no whole patches of 8; give a multiple"),
        ({"image_tower": "vit_base_patch16_siglip_224"}, r"^method_settings\.dino\.image_tower: "),
    ],
)
def test_what_does_not_fit_is_told(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        Dino(tiny.dino_config(**settings))


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
        tiny.dino_config(**settings)
