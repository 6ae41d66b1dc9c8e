"""Batches larger than memory: samples are encoded a few at a time, and compared all at once.

Contrastive losses are no sums over samples, so that gradients of small batches do not add up to that of a large one. What
they compare is small, though: each sample's encoding. Encodings of the whole batch are made a micro-batch at a time, of which
nothing but the encodings is kept; backward goes from the losses to them, and encodes each micro-batch once more to go on to
the parameters. Losses and gradients are those of the whole batch (GradCache, 2101.06983), for one more forward.
"""

from abc import abstractmethod
from contextvars import copy_context
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from owseg import InputError
from owseg.data import Batch
from owseg.flops import checkpoint_contexts
from owseg.noise import of_places
from owseg.trainable import TrainableMethod


class ContrastiveMethod(TrainableMethod):
    """A method whose losses compare samples of a batch: `encode` looks at each by itself, `combine` compares."""

    micro_batch: int = 0
    """Samples that are encoded at once; 0 = the rank's whole batch."""

    def shared(self, batch: Batch) -> dict[str, Tensor]:
        """What `encode` needs of the rank's whole batch, or of all ranks', by name. No gradient goes through it."""
        del batch
        return {}

    @abstractmethod
    def encode(self, batch: Batch, shared: dict[str, Tensor]) -> dict[str, Tensor]:
        """What `combine` needs of each sample, by name: tensors [B, ...], a row for each sample of (a part of) the batch.

        A row must not depend on the rows beside it, nor the method's tensors change: each sample is encoded twice.
        """

    @abstractmethod
    def combine(self, encoded: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The losses of a rank's whole batch, as `TrainableMethod.losses`, of its samples' encodings."""

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The losses; only one micro-batch's activations are held at a time."""
        with torch.no_grad():
            shared = self.shared(batch)
        count = len(batch.image)
        if not 0 < self.micro_batch < count:
            return self.combine(self.encode(batch, shared), batch)
        parts = [batch.part(first, min(first + self.micro_batch, count)) for first in range(0, count, self.micro_batch)]
        encoded = [self._encode_again(part, shared) for part in parts]
        return self.combine({name: torch.cat([part[name] for part in encoded]) for name in encoded[0]}, batch)

    def _encode_again(self, part: Batch, shared: dict[str, Tensor]) -> dict[str, Tensor]:
        """`encode` that keeps nothing but its result, and is run again in backward, with the same noise."""
        # Backward runs outside of the step, on a GPU in another thread: the context says what step's noise is drawn.
        again = partial(copy_context().run, self._encode_part, part, shared)
        encoded: dict[str, Tensor] = checkpoint(again, use_reentrant=False, context_fn=checkpoint_contexts)
        return encoded

    def _encode_part(self, part: Batch, shared: dict[str, Tensor]) -> dict[str, Tensor]:
        with of_places(part.first, len(part.image), part.image.device):
            return self.encode(part, shared)


def ensure_contrastive(method: TrainableMethod, name: str) -> ContrastiveMethod:
    """The method, which shall go through in micro-batches. Raises InputError where it cannot."""
    if not isinstance(method, ContrastiveMethod):
        raise InputError(f"train.micro_batch: {name} has no `encode` and `combine` that it could go through; leave it 0")
    return method
