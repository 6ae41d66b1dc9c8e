"""The default augmentation, whatever is drawn: also where RandAugment keeps no bit of a pixel."""

import random

import numpy as np
import torch
from PIL import Image

from owseg.augmentation import training_transform
from owseg.data import AugmentConfig
from owseg.normalisation import Normalisation


def test_no_bits_are_black() -> None:
    """One in some thousand images of a training draws it; here one in three."""
    rand_augment = "rand-m10-mstd0-n15-inc1"
    default = AugmentConfig()
    transform = training_transform(
        size=32, min_area=default.min_area, rand_augment=rand_augment, erase=0.0, normalisation=Normalisation()
    )
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    for seed in range(20):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        assert transform(image).shape == (3, 32, 32)
