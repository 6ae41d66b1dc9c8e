"""What the training loop asks of a method: one base class whose hooks do nothing until a method overrides them."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from owseg.data import Batch, Prepare, Views
from owseg.noise import of_places
from owseg.normalisation import Normalisation
from owseg.optim import Quirks
from owseg.phases import Phase
from owseg.text import Tokenizer


class TrainableMethod(nn.Module, ABC):
    """A method that trains. `losses` is all that it must have.

    Raises TypeError where a subclass has a public name that looks like a misspelt hook: nothing would ever ask for it.
    """

    tokenize: Tokenizer
    """Reads captions; set by the method."""
    quirks: Quirks = Quirks()
    """What the method's official implementation does to parameters besides its loss."""
    extra_state_prefixes: tuple[str, ...] = ()
    """Name prefixes of tensors that no phase trains but `begin_phase` or `after_step` changes: checkpoints hold them too."""
    prepare: Prepare | None = None
    """Makes a batch's further token ids from its captions and their entities; None = there are none."""
    views: Views | None = None
    """Draws further crops of an image beside the augmented one; None = there are none."""
    diagnostics: dict[str, Tensor]
    """Scalars by name that the last `losses` left, logged beside the losses; the same names on all ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.diagnostics = {}

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        _refuse_misspelt(cls.__name__, vars(cls))

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalar losses of a rank's batch, already weighted: the loop sums all of them."""

    def initialise(self) -> None:
        """Load the pretrained weights that training starts from, where the method asks for any."""

    def begin_phase(self, phase: Phase) -> None:
        """Called before a phase's first step, all tensors whole and gradients off."""

    def after_step(self) -> None:
        """Called after each optimiser step, all tensors whole and gradients off."""

    def save_towers(self, folder: Path, normalisation: Normalisation) -> dict[str, str]:
        """Write what of the method other libraries can load, each into a folder below `folder`: its name, and what loads it.

        A CLIP that the method is built around is no part of this: its owner writes it. normalisation: of the images.
        """
        del folder, normalisation
        return {}

    def overrides(self, hook: str) -> bool:
        """Whether the method has its own `hook`, so that the loop need not gather sharded tensors for one that does nothing."""
        return getattr(type(self), hook) is not getattr(TrainableMethod, hook)


def losses_of(method: TrainableMethod, batch: Batch) -> dict[str, Tensor]:
    """`method.losses(batch)`. Raises TypeError that names the method where these are no named scalars."""
    with of_places(batch.first, len(batch.image), batch.image.device):
        found: Any = method.losses(batch)
    if not isinstance(found, dict) or not found or not all(isinstance(one, Tensor) and one.ndim == 0 for one in found.values()):
        raise TypeError(f"{type(method).__name__}.losses must return {{name: scalar tensor}} with one at least")
    return found


HOOKS = frozenset(name for name in (*vars(TrainableMethod), *TrainableMethod.__annotations__) if not name.startswith("_"))


def _refuse_misspelt(owner: str, names: Iterable[str]) -> None:
    for name in names:
        near = [] if name in HOOKS or name.startswith("_") else get_close_matches(name, HOOKS, n=1, cutoff=0.8)
        if near:
            raise TypeError(f"{owner}.{name} looks like {near[0]}, which the training loop would not find; rename it")
