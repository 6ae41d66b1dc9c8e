"""Training augmentation: what timm's transform makes of a photo, to the bit; photos are decoded no larger than crops need."""

import math
import random
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from owseg import InputError
from owseg.normalisation import Normalisation
from owseg.photos import reducible, upright

ASPECT = (3 / 4, 4 / 3)
"""Least and greatest width over height of a crop."""
ATTEMPTS = 10
"""Crops that are drawn before the largest one in the middle is taken, in very long photos."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Training augmentation, timm's order: resized crop, flip, RandAugment, normalisation, random erasing."""

    size: int = 224
    """Side of the square training crop in pixels."""
    crop: Literal["random", "centre"] = "random"
    """random: resized, and mirrored half the time; centre: the middle as it is, its short side resized to `size`."""
    min_area: float = 0.08
    """Smallest share of the image's area that a random crop may cover, 0..1."""
    rand_augment: str = "rand-m9-mstd0.5-inc1"
    """timm's RandAugment policy; empty = none."""
    erase: float = 0.25
    """Probability of erasing one random box with per-pixel noise."""
    reduced_decoding: bool = True
    """Decode a JPEG at 1/2, 1/4 or 1/8 of its sides where its crop still has `size` pixels a side; false = always whole."""

    def __post_init__(self) -> None:
        if not 0 < self.min_area <= 1 or not 0 <= self.erase <= 1:
            raise InputError("min_area must be above 0 and at most 1, erase within 0..1")


Box = tuple[float, float, float, float]
"""Left, top, right and bottom edge in an image, in its pixels."""


class Decoded(NamedTuple):
    """A photo, and the crop of it that training sees."""

    image: Image.Image
    """Upright, in RGB; of reduced size where the crop needs no more."""
    crop: Box


def draw_crop(width: int, height: int, min_area: float) -> Box:
    """A box of a share of the area, uniform in min_area..1, and of an aspect ratio whose logarithm is uniform (1409.4842, 6).

    Its edges are whole pixels. Draws from `random` as timm and torchvision do.
    """
    for _ in range(ATTEMPTS):
        area = random.uniform(min_area, 1.0) * (width * height)
        aspect = math.exp(random.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        wide, high = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if wide <= width and high <= height:
            top, left = random.randint(0, height - high), random.randint(0, width - wide)
            return left, top, left + wide, top + high
    wide, high = width, height
    if width / height < ASPECT[0]:
        high = round(width / ASPECT[0])
    elif width / height > ASPECT[1]:
        wide = round(height * ASPECT[1])
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


def centre_crop(width: int, height: int, size: int) -> Box:
    """The box of an image that torchvision's Resize(size) and CenterCrop(size) leave, in the image's pixels."""
    short = min(width, height)
    resized = [size if side == short else int(size * side / short) for side in (width, height)]
    wide, high = width / resized[0], height / resized[1]  # pixels of the image for one of the crop
    left, top = (round((side - size) / 2) for side in resized)
    return left * wide, top * high, (left + size) * wide, (top + size) * high


class TrainingTransform:
    """A photo in, [3, size, size] float32 out, in two parts, which draw from `random`, numpy and torch, one after the other."""

    def __init__(self, augment: AugmentConfig, normalisation: Normalisation) -> None:
        from timm.data import auto_augment  # takes seconds, and settings are read without it
        from timm.data.random_erasing import RandomErasing
        from timm.data.transforms_factory import create_transform

        for name in ("Posterize", "PosterizeIncreasing", "PosterizeOriginal"):
            auto_augment.NAME_TO_OP[name] = _posterize
        self._augment, self._size, self._centre = augment, augment.size, augment.crop == "centre"
        _, self._rand_augment, _ = create_transform(
            input_size=augment.size,
            is_training=True,
            color_jitter=None,
            auto_augment=augment.rand_augment or None,
            interpolation="bilinear",
            mean=normalisation.mean,
            separate=True,
        )
        self._erase = RandomErasing(augment.erase, mode="pixel", device="cpu") if augment.erase else None
        self._mean, self._std = (torch.tensor(values)[:, None, None] for values in (normalisation.mean, normalisation.std))

    def decode(self, image: Image.Image, *, whole: bool = False) -> Decoded:
        """Draw the crop of an opened photo, and decode what pixels it needs; `whole`: all of them.

        Raises one of UNREADABLE (`owseg.photos`).
        """
        if whole or not self._augment.reduced_decoding or not reducible(image):
            photo = upright(image)
            return Decoded(photo, self._draw_crop(*photo.size))
        left, top, right, bottom = self._draw_crop(*image.size)
        scale = 8
        while scale > 1 and min(right - left, bottom - top) < scale * self._size:  # so that nothing is enlarged
            scale //= 2
        image.draft(None, (image.width // scale, image.height // scale))
        return Decoded(upright(image), (left / scale, top / scale, right / scale, bottom / scale))

    def __call__(self, photo: Decoded) -> Tensor:
        """What training sees of a photo."""
        image = self._cropped(photo)
        if not self._centre and torch.rand(1) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image = self._rand_augment(image)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float()
        normalised = pixels.div_(255).sub_(self._mean).div_(self._std)
        return self._erase(normalised) if self._erase else normalised

    def _draw_crop(self, width: int, height: int) -> Box:
        return centre_crop(width, height, self._size) if self._centre else draw_crop(width, height, self._augment.min_area)

    def _cropped(self, photo: Decoded) -> Image.Image:
        if self._centre:
            return photo.image.resize((self._size, self._size), Image.Resampling.BICUBIC, box=photo.crop)
        left, top, right, bottom = photo.crop
        x, y = math.floor(left), math.floor(top)
        cut = photo.image.crop((x, y, math.ceil(right), math.ceil(bottom)))  # so that no pixel beside it has a say
        box = (left - x, top - y, right - x, bottom - y)
        return cut.resize((self._size, self._size), Image.Resampling.BILINEAR, box=box)


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keep the upper bits of each channel. timm draws 0, too, which Pillow refuses from 13 on; before, the image went black."""
    from timm.data import auto_augment

    found: Image.Image = auto_augment.posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)
    return found
