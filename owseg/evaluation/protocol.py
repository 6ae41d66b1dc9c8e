"""TCL's unified protocol: one size, one window and one background rule for every benchmark."""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from owseg import InputError
from owseg.evaluation.datasets import BENCHMARKS
from owseg.methods import Segmenter


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Where the benchmarks live and how they are scored."""

    root: str = ""
    """Folder that holds VOCdevkit, coco_stuff164k, cityscapes and ade; empty = the miniature world's benchmarks."""
    classes: str = ""
    """Folder of <dataset>.txt files with class names that replace the benchmarks' own; empty = the official names."""
    datasets: tuple[str, ...] = tuple(BENCHMARKS)
    """Benchmarks to score, in the order of the table."""
    short_side: int = 448
    """Images are scaled so that their short side has this many pixels."""
    max_long_side: int = 2048
    """... unless the long side would exceed this many pixels."""
    window: int = 448
    """Side of the sliding window in pixels."""
    stride: int = 224
    """Step of the sliding window in pixels."""
    limit: int = 0
    """Score only the first this many images of each set; 0 = all."""
    pictures: bool = True
    """Draw overlays of the best, median and worst image of each set."""

    def __post_init__(self) -> None:
        for name in self.datasets:
            if name not in BENCHMARKS:
                raise InputError(f"datasets: {name!r} is none of {', '.join(BENCHMARKS)}")
        if min(self.short_side, self.window, self.stride) < 1 or self.stride > self.window:
            raise InputError("short_side, window and stride must be positive, and stride at most window")


def resize(image: np.ndarray, config: EvaluateConfig) -> np.ndarray:
    """Scale [H, W, 3] uint8 keeping its aspect (mmcv's rescale to (max_long_side, short_side), rounding half up)."""
    height, width = image.shape[:2]
    factor = min(config.max_long_side / max(height, width), config.short_side / min(height, width))
    size = (int(width * factor + 0.5), int(height * factor + 0.5))
    scaled: np.ndarray = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    return scaled


def normalise(image: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """[H, W, 3] uint8 → [3, H, W] float32."""
    tensor = torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)
    return (tensor - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def window_starts(length: int, window: int, stride: int) -> Iterator[int]:
    """Left edges of the windows along one axis; the last one ends at the border (mmsegmentation's)."""
    for i in range(max(length - window + stride - 1, 0) // stride + 1):
        yield min(i * stride, max(length - window, 0))


def slide(segmenter: Segmenter, image: Tensor, classes: Tensor, background: bool, config: EvaluateConfig) -> Tensor:
    """Scores [n or 1 + n, H, W] of a normalised image [3, H, W]: window scores, averaged where windows overlap.

    All windows of an image have one size, so they run as one batch.
    """
    height, width = image.shape[-2:]
    boxes = [
        (top, left, min(top + config.window, height), min(left + config.window, width))
        for top in window_starts(height, config.window, config.stride)
        for left in window_starts(width, config.window, config.stride)
    ]
    crops = torch.stack([image[:, top:bottom, left:right] for top, left, bottom, right in boxes])
    scores = segmenter.segment(crops, classes, background)
    total = scores.new_zeros(scores.shape[1], height, width)
    counts = scores.new_zeros(height, width)
    for (top, left, bottom, right), score in zip(boxes, scores, strict=True):
        total[:, top:bottom, left:right] += score
        counts[top:bottom, left:right] += 1
    return total / counts


def predict(
    segmenter: Segmenter,
    image: np.ndarray,
    classes: Tensor,
    background: bool,
    config: EvaluateConfig,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> np.ndarray:
    """Class map [H, W] int64 of an RGB image [H, W, 3] uint8, at the image's own size (scores upsampled, then argmax)."""
    scaled = normalise(resize(image, config), mean, std).to(classes.device)
    scores = slide(segmenter, scaled, classes, background, config)
    scores = F.interpolate(scores[None], size=image.shape[:2], mode="bilinear", align_corners=False)[0]
    return scores.argmax(dim=0).cpu().numpy()
