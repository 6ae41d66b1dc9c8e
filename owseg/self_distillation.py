"""Self-distillation: a student's crops must predict what a teacher says of the whole image; so is ViL-Seg's vision contrast.

The loss, the centre and the head are DINO's (Caron et al., 2104.14294), with the teacher's momentum fixed: in ViL-Seg, one that
goes to 1 would stop taking up what the texts teach (SILC, 2310.13355).
"""

from abc import abstractmethod
from itertools import pairwise
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from owseg.data import Batch
from owseg.losses import at_least_float32, global_mean_rows
from owseg.micro_batches import ContrastiveMethod
from owseg.phases import Phase


class Temperatures(Protocol):
    """What a method's settings say of the softmaxes."""

    @property
    def student_temperature(self) -> float: ...
    @property
    def teacher_temperature(self) -> float: ...
    @property
    def warmup_teacher_temperature(self) -> float: ...
    @property
    def warmup_teacher_steps(self) -> int: ...


def loss_at(settings: Temperatures, step: int, student: Tensor, teacher: Tensor, centre: Tensor) -> Tensor:
    """`distillation_loss` [B] with the temperatures of a step."""
    sharp = teacher_temperature(
        step,
        warmup=settings.warmup_teacher_temperature,
        final=settings.teacher_temperature,
        warmup_steps=settings.warmup_teacher_steps,
    )
    student_temperature = settings.student_temperature
    return distillation_loss(student, teacher, centre, student_temperature=student_temperature, teacher_temperature=sharp)


def distillation_loss(
    student: Tensor, teacher: Tensor, centre: Tensor, *, student_temperature: float, teacher_temperature: float
) -> Tensor:
    """DINO's cross-entropy [B], in nats: the mean over all pairs of a global view (teacher) and another crop (student).

    student: logits [crops * B, K], crop-major, the two global views first; teacher: [2 * B, K]; centre: [1, K], subtracted from
    the teacher's logits. No gradient reaches the teacher. In at least float32.
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher, centre = (x.to(at_least_float32(x)) for x in (student, teacher.detach(), centre))
        targets = F.softmax((teacher - centre) / teacher_temperature, dim=-1).chunk(2)
        crops = F.log_softmax(student / student_temperature, dim=-1).chunk(len(student) // len(targets[0]))
        pairs = [
            -(target * crop).sum(dim=-1)
            for view, target in enumerate(targets)
            for number, crop in enumerate(crops)
            if number != view
        ]
        return torch.stack(pairs).mean(dim=0)


@torch.no_grad()
def moved_centre(centre: Tensor, teacher: Tensor, momentum: float) -> Tensor:
    """The centre [1, K] after a step: it follows the mean of the teacher's logits [n, K] of all ranks."""
    return centre * momentum + global_mean_rows(teacher.to(centre)) * (1 - momentum)


def teacher_temperature(step: int, *, warmup: float, final: float, warmup_steps: int) -> float:
    """The teacher's temperature at a step: linear from `warmup` to `final` over `warmup_steps`, both ends included."""
    if step >= warmup_steps:
        return final
    return warmup + (final - warmup) * step / max(warmup_steps - 1, 1)


class DistillationHead(nn.Module):
    """DINO's projection head: linear layers with GELU between, L2 normalisation, a weight-normalised last layer. No batch norm.

    Linear layers are numbered as DINO's. The last layer's rows are `scale` times a direction; with `norm_last_layer` their
    scale stays 1 and the direction alone is learned (DINO's default).
    """

    def __init__(
        self, width: int, hidden: int, bottleneck: int, out: int, *, layers: int = 3, norm_last_layer: bool = True
    ) -> None:
        super().__init__()
        widths = [width, *[hidden] * (layers - 1), bottleneck]
        steps: list[nn.Module] = []
        for number, (before, after) in enumerate(pairwise(widths)):
            steps += [nn.GELU()] * (number > 0) + [nn.Linear(before, after)]
        self.mlp = nn.Sequential(*steps)
        for step in self.mlp:
            if isinstance(step, nn.Linear):
                nn.init.trunc_normal_(step.weight, std=0.02)
                nn.init.zeros_(step.bias)
        self.direction = nn.Parameter(torch.empty(out, bottleneck).uniform_(-(bottleneck**-0.5), bottleneck**-0.5))
        scale = torch.ones(out, 1)
        if norm_last_layer:
            self.register_buffer("scale", scale)
        else:
            self.scale = nn.Parameter(scale)

    def forward(self, x: Tensor) -> Tensor:
        """Features [n, width] → logits [n, out]."""
        features = F.normalize(self.mlp(x), dim=-1, eps=1e-12)
        logits: Tensor = features @ (self.scale * F.normalize(self.direction, dim=-1)).T
        return logits


class SelfDistilled(ContrastiveMethod):
    """A method with a teacher, `teacher` and `teacher_head`, that follows its student step by step."""

    centre: Tensor
    """[1, K]: what the teacher says on average."""
    taken: Tensor
    """[] int64: steps taken so far."""

    def keep_teacher_state(self, outputs: int, momentum: float) -> None:
        """Add what training keeps beside weights. outputs: K; momentum: how much of the teacher stays at each step, 0..1."""
        self._momentum = momentum
        self.register_buffer("centre", torch.zeros(1, outputs))
        self.register_buffer("taken", torch.zeros((), dtype=torch.int64))
        self.extra_state_prefixes = ("teacher.", "teacher_head.", "centre", "taken")

    @torch.no_grad()
    def begin_phase(self, phase: Phase) -> None:
        """The teacher starts out as a copy of the student."""
        del phase
        if self.taken == 0:
            self.move_teacher(momentum=0.0)

    @torch.no_grad()
    def after_step(self) -> None:
        """The teacher follows the student."""
        self.move_teacher(self._momentum)
        self.taken += 1

    @abstractmethod
    def move_teacher(self, momentum: float) -> None:
        """Move the teacher, where there is one, towards the student."""

    def shared(self, batch: Batch) -> dict[str, Tensor]:
        """The centre as it is: `combine` moves it."""
        del batch
        return {"centre": self.centre.clone()}
