"""ViL-Seg's clustering loss against recorded numbers of IIC's official segmentation code.

A case: soft assignments p [B, C, h, w] of view 1 and mask [B, h, w] in its frame; of view 2 either q [B, C, h, w] in the same
frame, or q_raw in its own with affine2_to_1 [B, 2, 3]; lamb; half_T_sides, the shifts recorded. Results lie under
[ac0/ | ac1/]{collapsed,uncollapsed}/T<shift>/: loss, loss_no_lamb, and the loss's gradients grad_p, grad_q (of q in view 1's
frame) and grad_q_raw. With q_raw all come twice: ac0/ and ac1/ are the two rules of where a map's corners lie, and ac*/q is
the warped q_raw.
"""

from collections.abc import Iterator
from typing import Any

import torch
from parity_comparison import GRADIENT, LOSS, NOTHING, Arrays, Comparison, double
from torch import Tensor

from owseg import InputError
from owseg.methods.vilseg.clustering import agreement, warp

WARPED = 1e-5
"""Tolerance of warped assignments, absolute."""


def compare_iic(_: None, case: Arrays) -> Comparison:
    """Warped assignments, losses and gradients, all in float64. Raises InputError where the case does not fit."""
    comparison = Comparison()
    try:
        inputs = {key: double(case[key]) for key in ("p", "mask")}
        weight, shifts = float(case["lamb"]), [int(side) for side in case["half_T_sides"].ravel()]
        if wrong := [side for side in shifts if not 0 <= side < min(inputs["p"].shape[-2:])]:
            raise InputError(f"half_T_sides: {wrong[0]} is no shift of maps of {list(inputs['p'].shape[-2:])}")
        for prefix, corners in (("ac0/", False), ("ac1/", True)) if "q_raw" in case else (("", False),):
            raw = double(case["q_raw" if prefix else "q"])
            theta = double(case["affine2_to_1"]) if prefix else None
            if f"{prefix}q" in case and theta is not None:
                warped = warp(raw, theta, align_corners=corners)
                comparison.add(f"{prefix}q", warped, double(case[f"{prefix}q"]), WARPED)
            for key, found in results(inputs["p"], raw, inputs["mask"], theta, corners, weight, shifts):
                if f"{prefix}{key}" in case:
                    add(comparison, f"{prefix}{key}", found, double(case[f"{prefix}{key}"]))
    except KeyError as error:
        raise InputError(f"not an IIC case ({error.args[0]} is missing)") from error
    except (ArithmeticError, RuntimeError, IndexError, ValueError, TypeError) as error:
        raise InputError(f"not an IIC case ({error})") from error
    if not comparison.quantities:
        raise InputError("holds no results of an IIC case")
    comparison.note_unknown(case, ("p", "q", "q_raw", "mask", "lamb", "half_T_sides", "affine2_to_1"))
    return comparison


def results(
    p: Tensor, raw: Tensor, mask: Tensor, theta: Tensor | None, corners: bool, weight: float, shifts: list[int]
) -> Iterator[tuple[str, Tensor]]:
    """What training's own functions make of a case: losses and gradients in both forms, for each of the shifts."""
    for form in ("collapsed", "uncollapsed"):
        for shift in shifts:
            first, second = p.clone().requires_grad_(), raw.clone().requires_grad_()
            q = second if theta is None else warp(second, theta, align_corners=corners)
            settings: dict[str, Any] = {"weight": weight, "shifts": shift, "form": form}
            found = agreement(first, q, mask, **settings)
            place = f"{form}/T{shift}/"
            yield f"{place}loss", found.loss.detach()
            yield f"{place}loss_no_lamb", found.loss_unweighted.detach()
            wanted = [first, q] if theta is None else [first, q, second]
            names = ("grad_p", "grad_q", "grad_q_raw")
            for name, gradient in zip(names, torch.autograd.grad(found.loss, wanted), strict=False):
                yield f"{place}{name}", gradient


def add(comparison: Comparison, name: str, found: Tensor, expected: Tensor) -> None:
    """Compare a loss relatively, a gradient relatively to its largest entry."""
    if "/grad_" in f"/{name}":
        comparison.add_scaled(name, found, expected, GRADIENT)
    else:
        comparison.add(name, found, expected, LOSS, NOTHING[0])
