"""What the base class of trainable methods catches: hooks that nothing would ever ask for, and a method without losses."""

import pytest
import torch
from torch import Tensor

from owseg.data import Batch
from owseg.phases import Phase
from owseg.trainable import HOOKS, TrainableMethod, losses_of


@pytest.mark.parametrize(
    ("misspelt", "right"),
    [
        ("after_steps", "after_step"),
        ("begin_phases", "begin_phase"),
        ("initialize", "initialise"),
        ("extra_state_prefix", "extra_state_prefixes"),
        ("diagnostic", "diagnostics"),
        ("prepares", "prepare"),
    ],
)
def test_a_misspelt_hook_is_refused_where_the_class_is_made(misspelt: str, right: str) -> None:
    with pytest.raises(TypeError, match=rf"Method\.{misspelt} looks like {right}, .* rename it"):
        type("Method", (TrainableMethod,), {misspelt: lambda self: None, "losses": lambda self, batch: {}})


def test_hooks_by_their_names_and_other_names_are_left_alone() -> None:
    class Method(TrainableMethod):
        extra_state_prefixes = ("teacher.",)

        def losses(self, batch: Batch) -> dict[str, Tensor]:
            return {}

        def begin_phase(self, phase: Phase) -> None: ...

        def embed(self, image: Tensor) -> Tensor:
            return image

        def _after_steps(self) -> None: ...

    method = Method()
    assert method.overrides("begin_phase")
    assert not method.overrides("after_step")
    assert {"losses", "after_step", "begin_phase", "quirks", "views"} <= HOOKS


def test_a_method_without_losses_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="losses"):
        type("Method", (TrainableMethod,), {})()


@pytest.mark.parametrize("given", [{}, None, 0.5, torch.zeros(()), {"loss": 0.5}, {"loss": torch.zeros(2)}])
def test_losses_that_are_no_named_scalars_name_the_method(given: object) -> None:
    method = type("Odd", (TrainableMethod,), {"losses": lambda self, batch: given})()
    with pytest.raises(TypeError, match=r"Odd\.losses must return"):
        losses_of(method, Batch(torch.zeros(1), torch.zeros(1), [], []))
