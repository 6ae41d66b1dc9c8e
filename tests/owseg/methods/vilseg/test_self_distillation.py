"""ViL-Seg's teacher, its centre, and distillation against its definition."""

from pathlib import Path

import pytest
import torch

from helpers import tiny
from helpers.vilseg import batch_of
from owseg.self_distillation import distillation_loss, teacher_temperature


def test_the_teacher_follows_and_starts_as_a_copy(shards: Path) -> None:
    torch.manual_seed(0)
    method = tiny.vilseg_config(momentum=0.9).build(None)
    assert method.teacher is not None
    first, other = method.image.vit.blocks[0].attn.qkv.weight, method.teacher.vit.blocks[0].attn.qkv.weight
    with torch.no_grad():
        first += 1
        method.begin_phase(method.config.phases[0])
        assert torch.equal(first, other)
        before = other.clone()
        first += 1
        method.after_step()
        assert torch.allclose(other, before + 0.1)
        method.begin_phase(method.config.phases[0])
        assert torch.allclose(other, before + 0.1), "a later phase goes on with the teacher there is"
    assert not any("teacher" in name for name, _ in method.named_parameters())


def test_the_centre_follows_the_teacher_in_training_alone(shards: Path) -> None:
    torch.manual_seed(0)
    method = tiny.vilseg_config().build(None)
    method.losses(batch_of(method, shards))
    assert method.centre.abs().sum() > 0
    method.eval()
    centre = method.centre.clone()
    method.losses(batch_of(method, shards))
    assert torch.equal(method.centre, centre)


def test_distillation_against_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(n * 3, 7, generator=generator, dtype=torch.float64) for n in (4, 2))
    centre = torch.randn(1, 7, generator=generator, dtype=torch.float64)
    terms = []
    for view in range(2):
        for crop in range(4):
            if crop == view:
                continue
            for image in range(3):
                target = ((teacher[view * 3 + image] - centre[0]) / 0.05).softmax(dim=0)
                terms.append(-(target * (student[crop * 3 + image] / 0.2).log_softmax(dim=0)).sum())
    found = distillation_loss(student, teacher, centre, student_temperature=0.2, teacher_temperature=0.05)
    assert found.shape == (3,)
    assert found.mean().item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-12)


def test_the_teacher_s_temperature_warms_up() -> None:
    warm = [teacher_temperature(step, warmup=0.04, final=0.07, warmup_steps=4) for step in range(6)]
    assert warm == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.07, 0.07])
    assert teacher_temperature(0, warmup=0.04, final=0.07, warmup_steps=0) == 0.07
    assert teacher_temperature(0, warmup=0.04, final=0.07, warmup_steps=1) == 0.04
