"""ViL-Seg's vision-based contrast against recorded numbers of DINO's official code.

A case: student [crops * B, K] and teacher [2 * B, K] logits, crop-major; center [1, K]; ncrops, student_temp,
center_momentum; warmup_teacher_temp, final_teacher_temp, warmup_teacher_temp_epochs, nepochs and epoch. Results:
teacher_temp_schedule [nepochs], teacher_temp, loss, grad_student, center_after. And of the projection head:
head/weight/<official name>, head/x, head/output, head/cotangent, and gradients of the sum of output * cotangent as
head/grad_x and head/grad/<official name>.
"""

import numpy as np
import torch
from parity_comparison import GRADIENT, LOSS, NOTHING, Arrays, Comparison, double
from torch import Tensor

from owseg import InputError
from owseg.self_distillation import DistillationHead, distillation_loss, moved_centre, teacher_temperature

OUTPUT = 1e-5
"""Tolerance of outputs, centres and temperatures, absolute."""
LOSS_INPUTS = (
    *("student", "teacher", "center", "ncrops", "student_temp", "center_momentum", "epoch", "nepochs"),
    *("warmup_teacher_temp", "final_teacher_temp", "warmup_teacher_temp_epochs"),
)
LOSS_RESULTS = frozenset({"teacher_temp_schedule", "teacher_temp", "loss", "grad_student", "center_after"})
MOST_EPOCHS = 100_000
HEAD, WEIGHT, GRAD = "head/", "head/weight/", "head/grad/"
LAST = {"last_layer.weight_v": "direction", "last_layer.weight_g": "scale"}
"""Official names of the last layer's tensors, and ours; the others are the same."""


def compare_dino(_: None, case: Arrays) -> Comparison:
    """Loss, centre, temperatures and head, all in float64. Raises InputError where the case does not fit."""
    comparison = Comparison()
    try:
        if LOSS_RESULTS & case.keys():
            compare_loss(case, comparison)
        if any(name.startswith(HEAD) for name in case):
            compare_head(case, comparison)
    except KeyError as error:
        raise InputError(f"not a DINO case ({error.args[0]} is missing)") from error
    except (ArithmeticError, RuntimeError, IndexError, ValueError, TypeError) as error:
        raise InputError(f"not a DINO case ({error})") from error
    if not comparison.quantities:
        raise InputError("not a DINO case (it holds no results)")
    weights = [name for name in case if name.startswith(WEIGHT)]
    comparison.note_unknown(case, (*LOSS_INPUTS, "head/x", "head/cotangent", *weights))
    return comparison


def compare_loss(case: Arrays, comparison: Comparison) -> None:
    """The loss, its gradient, the centre after the step and the teacher's temperature."""
    student, teacher, centre = (double(case[key]) for key in ("student", "teacher", "center"))
    crops = int(case["ncrops"])
    if len(teacher) * crops != 2 * len(student):
        raise InputError(
            f"student has {len(student)} rows where {crops} crops of the teacher's give {len(teacher) * crops // 2}"
        )
    warmup = {
        "warmup": float(case["warmup_teacher_temp"]),
        "final": float(case["final_teacher_temp"]),
        "warmup_steps": int(case["warmup_teacher_temp_epochs"]),
    }
    epochs, epoch = int(case["nepochs"]), int(case["epoch"])
    if not 0 <= epoch < epochs <= MOST_EPOCHS:
        raise InputError(f"epoch {epoch} of {epochs} is none; a case has up to {MOST_EPOCHS}, counted from 0")
    schedule = [teacher_temperature(epoch, **warmup) for epoch in range(epochs)]
    temperature = schedule[epoch]
    if "teacher_temp_schedule" in case:
        comparison.add("teacher_temp_schedule", double(np.array(schedule)), double(case["teacher_temp_schedule"]), OUTPUT)
    if "teacher_temp" in case:
        comparison.add("teacher_temp", double(np.array(temperature)), double(case["teacher_temp"]), OUTPUT)
    student.requires_grad_()
    loss = distillation_loss(
        student, teacher, centre, student_temperature=float(case["student_temp"]), teacher_temperature=temperature
    ).mean()
    comparison.add("loss", loss.detach(), double(case["loss"]), LOSS, NOTHING[0])
    if "grad_student" in case:
        (gradient,) = torch.autograd.grad(loss, [student])
        comparison.add_scaled("grad_student", gradient, double(case["grad_student"]), GRADIENT)
    if "center_after" in case:
        after = moved_centre(centre, teacher, float(case["center_momentum"]))
        comparison.add("center_after", after, double(case["center_after"]), OUTPUT)


def compare_head(case: Arrays, comparison: Comparison) -> None:
    """The head's output, and its gradients."""
    weights = {name.removeprefix(WEIGHT): double(value) for name, value in case.items() if name.startswith(WEIGHT)}
    head = build_head(weights, norm_last_layer=f"{GRAD}last_layer.weight_g" not in case)
    x = double(case["head/x"]).requires_grad_()
    output = head(x)
    comparison.add("head/output", output.detach(), double(case["head/output"]), OUTPUT)
    if "head/cotangent" not in case:
        return
    ours = {GRAD + name: LAST.get(name, name) for name in weights}
    parameters = dict(head.named_parameters())
    wanted = {key: parameters[name] for key, name in ours.items() if key in case} | {"head/grad_x": x}
    gradients = torch.autograd.grad((output * double(case["head/cotangent"])).sum(), list(wanted.values()))
    for key, gradient in zip(wanted, gradients, strict=True):
        if key in case:
            comparison.add_scaled(key, gradient, double(case[key]), GRADIENT)


def build_head(weights: dict[str, Tensor], *, norm_last_layer: bool) -> DistillationHead:
    """The head with these weights, by official names."""
    layers = [name for name in weights if name.startswith("mlp.") and name.endswith(".weight")]
    first, last = weights["mlp.0.weight"], weights["last_layer.weight_v"]
    hidden = len(first) if len(layers) > 1 else 1
    head = DistillationHead(
        first.shape[1], hidden, last.shape[1], len(last), layers=len(layers), norm_last_layer=norm_last_layer
    ).double()
    head.load_state_dict({LAST.get(name, name): value for name, value in weights.items()})
    return head
