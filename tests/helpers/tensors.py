"""Comparisons of tensors by name."""

from collections.abc import Mapping

import torch
from torch import Tensor


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, rtol: float = 0.0, atol: float = 0.0) -> None:
    """The same names, and each tensor's elements equal up to the tolerances: bit for bit unless told otherwise."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


def assert_near(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], share: float, least: float = 1e-9) -> None:
    """The same names, and the norm of each difference at most a share of the expected norm (or `least`, near 0)."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).norm() <= share * value.norm() + least, name
