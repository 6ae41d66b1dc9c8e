"""Masks from run lengths in COCO's annotation format, which Pascal in Detail shares.

Runs of zeros and ones take turns, zeros first, down the columns. As text each number is a little-endian string of 5-bit
digits (sixth bit: more digits follow; fifth bit of the last: the sign), and from the fourth number on it is the difference to
the number two before. A total other than the image's pixels is refused: pycocotools 2.0.11 fills such masks with stray memory.
"""

from typing import Any

import numpy as np

from owseg import InputError


def decode(runs: Any, shape: tuple[int, int]) -> np.ndarray:
    """The mask [H, W] bool of `{"size": [H, W], "counts": numbers or text}`. Raises InputError where it is none of `shape`."""
    try:
        size, counts = tuple(runs["size"]), runs["counts"]
        lengths = _parse(counts) if isinstance(counts, str) else np.asarray(counts, np.int64)
        fits = size == shape and lengths.ndim == 1 and (lengths >= 0).all() and int(lengths.sum()) == shape[0] * shape[1]
    except (TypeError, ValueError, KeyError, IndexError, OverflowError) as error:
        raise InputError(f"not run lengths of a mask ({type(error).__name__}: {error})") from error
    if not fits:
        raise InputError(
            f"run lengths for {size}, {lengths.sum()} pixels in all, of an image of {shape}; they must be the same size"
        )
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(shape[::-1]).T


def _parse(text: str) -> np.ndarray:
    """The run lengths that COCO's compressed text stands for."""
    digits = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - ord("0")
    last = digits & 32 == 0
    if not len(digits) or not last[-1] or digits.min() < 0 or digits.max() > 63:
        raise ValueError("no run lengths in COCO's compressed text")
    ends = np.flatnonzero(last)
    starts = np.r_[0, ends[:-1] + 1]
    places = 5 * (np.arange(len(digits)) - np.repeat(starts, ends - starts + 1))
    numbers: np.ndarray = np.add.reduceat((digits & 31) << places, starts) - ((digits[ends] & 16) >> 4 << (places[ends] + 5))
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers
