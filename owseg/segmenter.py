"""What the evaluator asks of a method, and methods made ready for it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from owseg import InputError
from owseg.encoders import Encoder, EncoderConfig, load_encoder
from owseg.fit import learned_state
from owseg.method_config import MethodConfig, TrainableConfig
from owseg.published import load_trained
from owseg.text import Tokenizer, prompt_templates, shortened
from owseg.trainable import TrainableMethod


class Segmenter(Protocol):
    """What the evaluator asks of a method."""

    @property
    def background_threshold(self) -> float | None:
        """Value of the constant plane that `segment` puts in front; None where background is decided in another way."""
        ...

    def embed_classes(self, names: Sequence[str]) -> Tensor:
        """Class embeddings [n, E]; background is never among the names."""
        ...

    def segment(self, image: Tensor, classes: Tensor, background: bool) -> Tensor:
        """Scores [B, n, H, W] of normalised windows [B, 3, H, W]; with `background` a plane for it comes first."""
        ...

    def to(self, device: torch.device) -> "Segmenter":
        """Itself, moved to a device."""
        ...


@runtime_checkable
class DrawsRegions(Protocol):
    """What a segmenter may have besides if it groups pixels before it names them: its groups, for oracle mIoU.

    A method without this is judged by the masks that it predicts.
    """

    @property
    def regions_across_windows(self) -> bool:
        """Whether an id means the same region in all windows of an image."""
        ...

    def regions(self, image: Tensor, classes: Tensor) -> Tensor:
        """Region ids [B, H, W] int64 of normalised windows [B, 3, H, W], -1 = none; classes: their embeddings [n, E]."""
        ...


@runtime_checkable
class ReadsPrompts(Protocol):
    """What a segmenter has besides if it puts class names into templates and reads them with a text tower."""

    tokenize: Tokenizer
    config: MethodConfig
    """With `templates`, where it has any but the bare name."""


@runtime_checkable
class ReadsWholePatches(Protocol):
    """What a segmenter has besides if windows shall be whole patches of its tower."""

    patch_size: int
    """Side of a patch in pixels."""


def shortened_names(segmenter: Segmenter, names: Sequence[str]) -> tuple[str, ...]:
    """The class names that a method reads without their end. Raises InputError where two are the same to it."""
    if not isinstance(segmenter, ReadsPrompts):
        return ()
    return shortened(segmenter.tokenize, names, prompt_templates(getattr(segmenter.config, "templates", "plain")))


def build_trained(config: TrainableConfig, make_encoder: Callable[[], Encoder]) -> TrainableMethod:
    """A method that trains; the encoder is made only where the method uses one."""
    method: TrainableMethod = config.build(make_encoder() if config.uses_clip else None)
    return method


def load_frozen(method: TrainableMethod, config: TrainableConfig) -> None:
    """Load the weights of towers that no phase trains: as they were pretrained, and not among the trained ones."""
    if method.state_dict().keys() - learned_state(method, config.phases).keys():
        method.initialise()


def load_segmenter(config: MethodConfig, encoder: EncoderConfig, weights: Path | None) -> Segmenter:
    """A method ready to segment. Raises InputError where a file is missing or belongs to another architecture."""
    if not isinstance(config, TrainableConfig):
        free: Segmenter = config.build(load_encoder(encoder) if config.uses_clip else None).eval()
        return free
    if weights is None:
        raise InputError(f"{config.name} needs trained weights; run the train stage first")
    method = build_trained(config, lambda: load_encoder(encoder))
    load_frozen(method, config)
    load_trained(method, config.phases, weights)
    trained: Any = method.eval()
    return trained  # type: ignore[no-any-return]  # all that train but CLIP segment, too
