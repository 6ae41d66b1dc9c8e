"""What every method's settings are: frozen dataclasses that build the method. A method's own settings are further fields."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from owseg.augmentation import AugmentConfig
from owseg.encoders import EncoderConfig
from owseg.fields import setting
from owseg.optim import OptimConfig
from owseg.phases import Phase
from owseg.published_layout import Layout


class Tower(NamedTuple):
    """What a pretraining makes for other methods."""

    title: str
    """What messages and tables call it."""
    prefix: str
    """Of its tensors' names among those that were trained."""
    file: str
    """Which they are written to, in the training's folder."""
    asked: str
    """The setting by which a run is told to train it."""


@dataclass(frozen=True, kw_only=True)
class MethodConfig(ABC):
    """A method, ready to be built; `build` returns a torch module that is a `Segmenter`."""

    name: str
    """Method name."""

    @property
    def uses_clip(self) -> bool:
        """Whether it is built around the run's CLIP; where it is not, `build` gets None."""
        return True

    @property
    def tower(self) -> Tower | None:
        """The tower that it trains for other methods; such a pretraining segments nothing. None = it segments."""
        return None

    @abstractmethod
    def build(self, encoder: Any) -> Any:
        """The method around an `owseg.encoders.Encoder`, or around None."""

    @abstractmethod
    def supervision(self, encoder: EncoderConfig) -> str:
        """What its masks are learned from, in the words of the comparison table."""

    def for_dataset(self, dataset: str) -> Self:
        """The settings on one dataset, where the method's official ones depend on it."""
        del dataset
        return self


@dataclass(frozen=True, kw_only=True)
class TrainableConfig(MethodConfig):
    """A method that trains; `build` returns a `TrainableMethod`."""

    phases: tuple[Phase, ...] = setting((), training_only=True)
    """Training phases."""
    optim: OptimConfig = setting(OptimConfig(), training_only=True)
    """Optimiser and schedule."""
    augment: AugmentConfig = setting(AugmentConfig(), training_only=True)
    """Training augmentation."""

    @property
    def depends_on_ranks(self) -> bool:
        """Whether its losses are others on other numbers of ranks: official forms compute some by rank (docs/fidelity.md)."""
        return getattr(self, "fidelity", "exact") == "official"

    @property
    def reads_features(self) -> bool:
        """Whether features may stand in for pixels: its towers never learn, and it sees an image always the same way.

        It then builds a `FrozenFeatures` (owseg/features.py).
        """
        return False

    @property
    def official_layout(self) -> Layout | None:
        """How the method's published checkpoints name its tensors; None where none were published."""
        return None
