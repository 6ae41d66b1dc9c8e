"""Confusion counts and the scores that are read off them; counts are exact and merge by addition."""

import numpy as np

from owseg.evaluation.datasets import IGNORE


def confusion(prediction: np.ndarray, label: np.ndarray, classes: int) -> np.ndarray:
    """Pixel counts [classes, classes] int64, rows = label, columns = prediction; label 255 is left out."""
    counted = label != IGNORE
    pairs = label[counted].astype(np.int64) * classes + prediction[counted]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def class_iou(counts: np.ndarray) -> np.ndarray:
    """IoU per class in 0..1; NaN where a class occurs neither in the labels nor in the predictions."""
    intersection = np.diagonal(counts).astype(np.float64)
    union = counts.sum(axis=0) + counts.sum(axis=1) - np.diagonal(counts)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(union > 0, intersection / union, np.nan)


def mean_iou(counts: np.ndarray) -> float:
    """mIoU in percent: the mean over classes that occur, background included where there is one (mmsegmentation's)."""
    iou = class_iou(counts)
    return float(100 * np.nanmean(iou)) if np.isfinite(iou).any() else float("nan")


def pixel_accuracy(counts: np.ndarray) -> float:
    """Share of counted pixels that carry their label, in percent."""
    return float(100 * np.trace(counts) / max(counts.sum(), 1))
