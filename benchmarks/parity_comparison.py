"""What comparisons with an official implementation share: arrays in, quantities with their tolerances, a table out."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from owseg import InputError

Arrays = dict[str, np.ndarray]
LOSS, GRADIENT, MAP = 1e-5, 1e-4, 1e-4
"""Tolerances: losses relative, gradients relative in norm, maps and embeddings absolute."""
LABELS = 1e-3
"""Tolerated share of pixels with another label: ties at the borders of regions may break either way."""
NOTHING = 1e-7, 1e-9
"""A loss or gradient (in norm) that differs by less than this passes: relative differences near zero say nothing in float32."""


class Quantity(NamedTuple):
    """One compared quantity."""

    name: str
    difference: float
    tolerance: float
    kind: str
    """What the difference is: relative, absolute, a share of the largest entry, or of pixels."""
    passed: bool


@dataclass
class Comparison:
    """What a case said of an implementation."""

    quantities: list[Quantity] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, found: Tensor, expected: Tensor, tolerance: float, nothing: float | None = None) -> None:
        """Compare by the largest absolute difference, or, where `nothing` is given, by the relative difference in norm."""
        check_shapes(name, found, expected)
        both = (found == expected) | (found.isnan() & expected.isnan())  # where the official code gives NaN, so must ours
        error = torch.where(both, 0.0, found.double() - expected.double()).nan_to_num(torch.inf)
        if nothing is None:
            difference = error.abs().max().item()
            passed = difference <= tolerance
        else:
            size = expected.double().nan_to_num(0.0, 0.0, 0.0).norm().item()
            difference = error.norm().item() / max(size, 1e-30)
            passed = difference <= tolerance or error.norm().item() <= nothing
        self.quantities.append(Quantity(name, difference, tolerance, "absolute" if nothing is None else "relative", passed))

    def add_scaled(self, name: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
        """Compare by the largest difference, relative to the largest expected entry (gradients of IIC and DINO)."""
        check_shapes(name, found, expected)
        error = (found.double() - expected.double()).abs().max().item()
        difference = error / max(expected.double().abs().max().item(), 1e-30)
        passed = difference <= tolerance or error <= NOTHING[1]
        self.quantities.append(Quantity(name, difference, tolerance, "of largest", passed))

    def add_labels(self, name: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
        """Compare label maps by the share of pixels that differ."""
        check_shapes(name, found, expected)
        difference = (found != expected).double().mean().item()
        self.quantities.append(Quantity(name, difference, tolerance, "of pixels", difference <= tolerance))

    def note_unknown(self, case: Arrays, inputs: Iterable[str]) -> None:
        """A line for each array of a case that is neither an input nor was compared."""
        compared = {quantity.name for quantity in self.quantities}
        self.notes += [f"not known, not compared: {key}" for key in sorted(case.keys() - set(inputs) - compared)]

    def table(self) -> str:
        """All quantities: failures, then the largest share of its tolerance first."""
        width = max(len(quantity.name) for quantity in self.quantities)
        lines = [f"{'quantity':{width}}  tolerance         difference"]
        for name, difference, tolerance, kind, passed in sorted(
            self.quantities, key=lambda q: (q.passed, -q.difference / q.tolerance)
        ):
            verdict = ("pass" if difference <= tolerance else "pass: no more than rounding") if passed else "FAIL"
            lines.append(f"{name:{width}}  {tolerance:.0e} {kind:10}  {difference:12.2e}  {verdict}")
        agreed = sum(quantity.passed for quantity in self.quantities)
        return "\n".join([*lines, *self.notes, f"{agreed} of {len(self.quantities)} quantities agree"])

    @property
    def passed(self) -> bool:
        """Whether every quantity is within its tolerance."""
        return all(quantity.passed for quantity in self.quantities)


def check_shapes(name: str, found: Tensor, expected: Tensor) -> None:
    """Raise InputError where what a case holds has another shape than what the weights give."""
    if found.shape != expected.shape:
        raise InputError(f"{name} has shape {list(expected.shape)} where the weights give {list(found.shape)}")


def indices(weights: Arrays, prefix: str) -> int:
    """How many different numbers follow a prefix in the weights' names."""
    return len({name.removeprefix(prefix).split(".")[0] for name in weights if name.startswith(prefix)})


def tensor(array: np.ndarray) -> Tensor:
    """An array of any number type as float32. Raises InputError for one of something else."""
    return double(array).float()


def double(array: np.ndarray) -> Tensor:
    """An array of any number type as float64. Raises InputError for one of something else."""
    if array.dtype.kind not in "fiub":
        raise InputError(f"holds an array of {array.dtype} where numbers belong")
    return torch.from_numpy(array.astype(np.float64))
