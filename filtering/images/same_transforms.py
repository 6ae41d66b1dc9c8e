"""The four transforms of albumentations that img2dataset's Resizer uses, to the very pixel of version 1.4.24.

Albumentations itself takes 50 MB and a second in each process that resizes, and a tenth of each image's time: the Resizer
builds the transforms anew for each. Settings and results are named as there; pictures are [height, width] or
[height, width, 3] bytes.
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Transform = Callable[..., dict[str, NDArray[np.uint8]]]


def SmallestMaxSize(*, max_size: int, interpolation: int, p: float) -> Transform:  # noqa: N802 (as albumentations has it)
    """Scale the shorter side to `max_size`."""
    return _scaled(min, max_size, interpolation, p)


def LongestMaxSize(*, max_size: int, interpolation: int, p: float) -> Transform:  # noqa: N802
    """Scale the longer side to `max_size`."""
    return _scaled(max, max_size, interpolation, p)


def CenterCrop(*, height: int, width: int) -> Transform:  # noqa: N802
    """Cut the middle out of a picture that is at least as large."""

    def crop(*, image: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
        top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
        return {"image": image[top : top + height, left : left + width]}

    return crop


def PadIfNeeded(*, min_height: int, min_width: int, border_mode: int, value: list[int], p: float) -> Transform:  # noqa: N802
    """Put the picture in the middle of one of at least this size."""
    assert p == 1

    def pad(*, image: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
        down, across = (max(0, least - side) for least, side in zip((min_height, min_width), image.shape[:2], strict=True))
        if not down and not across:
            return {"image": image}
        top, left = down // 2, across // 2
        padded: Any = cv2.copyMakeBorder(image, top, down - top, left, across - left, border_mode, value=value)
        return {"image": padded}

    return pad


def _scaled(side: Callable[[int, int], int], max_size: int, interpolation: int, p: float) -> Transform:
    assert p == 1

    def scale(*, image: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
        height, width = image.shape[:2]
        factor = max_size / side(height, width)
        size = max(1, round(width * factor)), max(1, round(height * factor))
        if size == (width, height):
            return {"image": image}
        resized: Any = cv2.resize(image, size, interpolation=interpolation)
        return {"image": resized}

    return scale
