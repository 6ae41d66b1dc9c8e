"""timm's own training transform: the measuring stick of benchmarks/loader.py and tests/owseg/test_augmentation.py."""

from collections.abc import Callable

from PIL import Image
from timm.data.transforms_factory import create_transform
from torch import Tensor

from owseg.augmentation import AugmentConfig, TrainingTransform
from owseg.normalisation import Normalisation


def timm_transform(augment: AugmentConfig, normalisation: Normalisation) -> Callable[[Image.Image], Tensor]:
    """An RGB image in, [3, size, size] out."""
    TrainingTransform(augment, normalisation)  # with which timm's posterize works under Pillow 13
    transform: Callable[[Image.Image], Tensor] = create_transform(
        input_size=augment.size,
        is_training=True,
        scale=(augment.min_area, 1.0),
        color_jitter=None,
        auto_augment=augment.rand_augment or None,
        interpolation="bilinear",
        re_prob=augment.erase,
        re_mode="pixel",
        mean=normalisation.mean,
        std=normalisation.std,
    )
    return transform
