"""Numbers that are none: steps whose losses or gradients are not finite change nothing, and a run of them ends training."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from owseg import InputError

MAX_SKIPPED = 20
"""Steps in a row that may be skipped, where nothing else is said."""


def total_of(losses: dict[str, Tensor]) -> Tensor:
    """The sum of losses, whose gradient is not finite either where a loss is not: engines look at the gradients alone.

    Exact where all are finite: a factor of 1.
    """
    total = torch.stack(list(losses.values())).sum()
    return total * (1 + 0 * total.detach())


class Undo:
    """Takes back what a forward has done to a method's buffers, such as the running statistics of batch norms.

    Which ones a phase's forwards change shows in its first step; the others, such as momentum copies, are not watched.
    """

    def __init__(self, method: nn.Module) -> None:
        self._watched = dict(method.named_buffers())
        self._before: dict[str, Tensor] = {}
        self._settled = False

    @torch.no_grad()
    def remember(self) -> None:
        """Before a forward."""
        self._before = {name: buffer.clone() for name, buffer in self._watched.items()}

    @torch.no_grad()
    def settle(self) -> None:
        """After a step that counts, before anything else changes buffers."""
        if not self._settled:
            self._watched = {
                name: buffer for name, buffer in self._watched.items() if not torch.equal(buffer, self._before[name])
            }
            self._settled = True

    @torch.no_grad()
    def take_back(self) -> None:
        """After a step that was skipped."""
        for name, buffer in self._watched.items():
            buffer.copy_(self._before[name])


class Skipped:
    """Counts the steps that were skipped, and says when there are too many in a row."""

    def __init__(self, steps: int, most: int) -> None:
        self.most = min(most, max(1, steps // 2))
        """In a row; no more than half of a short training."""
        self.count = self._row = 0

    def __call__(self, skipped: bool, step: int, losses: dict[str, Tensor], checkpoint: int) -> None:
        """Step `step`, counted from 1, is done; `checkpoint` is the last one that was written, 0 = none.

        Raises InputError, on all ranks alike, where one more of a row was skipped than may be.
        """
        self._row = self._row + 1 if skipped else 0
        self.count += skipped
        if self._row >= self.most:
            raise InputError(
                f"{_what(losses)} not finite since step {step - self._row + 1}, in {self._row} steps in a row; lower optim.lr "
                f"or the loss's weight; {_kept(checkpoint)}"
            )


def refuse_diverged(wrong: str, step: int, checkpoint: int) -> None:
    """Raise InputError where weights that are to be kept are not finite (`wrong`, in words)."""
    if wrong:
        raise InputError(
            f"training diverged: {wrong} after step {step}; lower optim.lr or the loss's weight; {_kept(checkpoint)}"
        )


class Last(NamedTuple):
    """What the last step that counts came to, on this rank."""

    losses: dict[str, Tensor]
    diagnostics: dict[str, Tensor]


def _what(losses: dict[str, Tensor]) -> str:
    wrong = [name for name, loss in losses.items() if not loss.isfinite()]
    return f"loss '{wrong[0]}' is" if wrong else "gradients are"


def _kept(checkpoint: int) -> str:
    return f"the last good checkpoint, of step {checkpoint}, is kept" if checkpoint else "there was no checkpoint yet"
