"""timm's training augmentation, whole again where Pillow has become stricter than timm."""

from collections.abc import Callable
from typing import Any

from PIL import Image
from torch import Tensor

from owseg.normalisation import Normalisation


def training_transform(
    *, size: int, min_area: float, rand_augment: str, erase: float, normalisation: Normalisation
) -> Callable[[Image.Image], Tensor]:
    """Resized crop, flip, RandAugment, normalisation, erasing: an RGB image in, [3, size, size] out."""
    from timm.data import auto_augment  # takes seconds, and settings are read without it
    from timm.data.transforms_factory import create_transform

    for name in ("Posterize", "PosterizeIncreasing", "PosterizeOriginal"):
        auto_augment.NAME_TO_OP[name] = _posterize
    transform: Callable[[Image.Image], Tensor] = create_transform(
        input_size=size,
        is_training=True,
        scale=(min_area, 1.0),
        color_jitter=None,
        auto_augment=rand_augment or None,
        interpolation="bilinear",
        re_prob=erase,
        re_mode="pixel",
        mean=normalisation.mean,
        std=normalisation.std,
    )
    return transform


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keep the upper bits of each channel. timm draws 0, too, which Pillow refuses from 13 on; before, the image went black."""
    from timm.data import auto_augment

    found: Image.Image = auto_augment.posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)
    return found
