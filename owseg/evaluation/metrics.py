"""Confusion counts and the scores that are read off them; counts are exact and merge by addition."""

from collections.abc import Sequence

import cv2
import numpy as np

from owseg.evaluation.datasets import IGNORE

BOUNDARY_RATIO = 0.02
"""Width of a boundary band as a share of the image's diagonal (Cheng et al., 2103.16562)."""


Labels = Sequence[int] | slice
"""Which classes a score is over (`EvalDataset.scored`)."""
ALL = slice(None)


def confusion(prediction: np.ndarray, label: np.ndarray, classes: int) -> np.ndarray:
    """Pixel counts [classes, classes] int64, rows = label, columns = prediction; label 255 is left out."""
    counted = label != IGNORE
    pairs = label[counted].astype(np.int64) * classes + prediction[counted]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def boundary_confusion(prediction: np.ndarray, label: np.ndarray, classes: int) -> np.ndarray:
    """Counts [classes + 1, classes + 1] of boundary pixels; the last row and column are pixels inside a region.

    A pixel lies in its class's boundary band where it is at most d pixels away (in rows and in columns) from another value or
    from beyond the image, d = 0.02 x diagonal rounded, at least 1: what is left of a mask when its erosion, d times by 3 x 3
    and with zeros around the image, is taken away (the authors' `mask_to_boundary`). Ignored pixels are another value to
    their neighbours, and are left out of both maps.
    """
    width = max(1, round(BOUNDARY_RATIO * float(np.hypot(*label.shape))))
    counted = label != IGNORE
    truth = np.where(boundary_band(label, width), label, classes)[counted].astype(np.int64)
    said = np.where(boundary_band(prediction, width), prediction, classes)[counted]
    side = classes + 1
    return np.bincount(truth * side + said, minlength=side * side).reshape(side, side)


def boundary_band(labels: np.ndarray, width: int) -> np.ndarray:
    """Which pixels [H, W] of a label map (values below 65536) have another value or the image's end within `width` pixels."""
    window = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    values = labels.astype(np.uint16)
    # All classes at once: a neighbourhood holds one value only where its minimum is its maximum.
    band: np.ndarray = cv2.erode(values, window) != cv2.dilate(values, window)
    band[:width] = band[-width:] = True
    band[:, :width] = band[:, -width:] = True
    return band


def threshold_counts(
    choice: np.ndarray, confidence: np.ndarray, label: np.ndarray, cuts: np.ndarray, classes: int
) -> np.ndarray:
    """Joint counts [classes, classes, T + 1] int64 of label, choice, and how many of the T ascending cuts confidence exceeds.

    `sweep` makes of them the confusion at every threshold; label 255 is left out.
    """
    counted = label != IGNORE
    bucket = np.searchsorted(cuts, confidence[counted], side="left")
    pairs = (label[counted].astype(np.int64) * classes + choice[counted]) * (len(cuts) + 1) + bucket
    shape = (classes, classes, len(cuts) + 1)
    counts: np.ndarray = np.bincount(pairs, minlength=int(np.prod(shape))).reshape(shape)
    return counts


def sweep(joint: np.ndarray) -> np.ndarray:
    """Confusion [T, classes, classes] at each of T thresholds: pixels that do not exceed it are background, class 0."""
    below = joint[..., :-1].cumsum(axis=-1)
    counts: np.ndarray = np.moveaxis(joint.sum(axis=-1, keepdims=True) - below, -1, 0).copy()
    counts[:, :, 0] += below.sum(axis=1).T
    return counts


def class_iou(counts: np.ndarray) -> np.ndarray:
    """IoU per class in 0..1; NaN where a class occurs neither in the labels nor in the predictions."""
    return class_iou_of(*intersection_union(counts))


def intersection_union(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Intersection and union [classes] int64 of each class, in pixels."""
    intersection = np.diagonal(counts)
    return intersection, counts.sum(axis=0) + counts.sum(axis=1) - intersection


def class_iou_of(intersection: np.ndarray, union: np.ndarray) -> np.ndarray:
    """IoU in 0..1 of intersections and unions of any shape; NaN where there is no union."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(union > 0, intersection / union, np.nan)


def mean_iou(counts: np.ndarray, scored: Labels = ALL) -> float:
    """mIoU in percent: the mean over scored classes that occur, background among them where there is one (mmsegmentation's)."""
    return _mean(class_iou(counts)[scored])


def boundary_iou(counts: np.ndarray, scored: Labels = ALL) -> float:
    """Mean boundary IoU in percent of `boundary_confusion`'s counts, over the scored classes that have a boundary anywhere."""
    return _mean(class_iou(counts)[:-1][scored])


def frequency_weighted_iou(counts: np.ndarray, scored: Labels = ALL) -> float:
    """IoU in percent, scored classes weighted by their share of the pixels that are labelled with any of them."""
    pixels = counts.sum(axis=1)[scored]
    return float(100 * np.nansum(pixels / max(pixels.sum(), 1) * class_iou(counts)[scored]))


def pixel_accuracy(counts: np.ndarray, scored: Labels = ALL) -> float:
    """Share of the pixels labelled with scored classes that carry their label, in percent."""
    return float(100 * np.diagonal(counts)[scored].sum() / max(counts.sum(axis=1)[scored].sum(), 1))


def _mean(iou: np.ndarray) -> float:
    return float(100 * np.nanmean(iou)) if np.isfinite(iou).any() else float("nan")
