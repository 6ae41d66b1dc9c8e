"""From an image to a class map: scale, slide, upsample, decide. Nothing here holds all classes at the image's own size."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from owseg import InputError
from owseg.evaluation.protocols import Protocol, SoftmaxRule, View
from owseg.normalisation import Normalisation
from owseg.pamr import pamr
from owseg.segmenter import ReadsWholePatches, Segmenter
from owseg.vit import refuse_partial_patches

WINDOW_BATCH = 4
PLANE_VALUES = 2**22
"""Scores that are upsampled at once (16 MiB of float32)."""


def refuse_window(segmenter: object, view: View) -> None:
    """Raise InputError where a method wants whole patches, and windows of this size have a part of one at their edge."""
    if isinstance(segmenter, ReadsWholePatches):
        refuse_partial_patches(view.window, segmenter.patch_size, "evaluate.window")


def embed_queries(segmenter: Segmenter, protocol: Protocol) -> Tensor:
    """Embeddings [queries, E] of a protocol's texts; a query with further names has the mean over all of them, renormalised."""
    if not any(protocol.further):
        return segmenter.embed_classes(protocol.queries)
    names = [(query, *more) for query, more in zip(protocol.queries, protocol.further, strict=True)]
    embedded = segmenter.embed_classes(texts_of(protocol))
    parts = torch.split(embedded, [len(some) for some in names])
    return torch.stack([part[0] if len(part) == 1 else F.normalize(part.mean(dim=0), dim=0) for part in parts])


def texts_of(protocol: Protocol) -> list[str]:
    """All texts that a protocol has embedded: its queries, each with its further names behind it."""
    further = protocol.further or [()] * len(protocol.queries)
    return [name for query, more in zip(protocol.queries, further, strict=True) for name in (query, *more)]


def resize(image: np.ndarray, view: View) -> np.ndarray:
    """Scale [H, W, 3] uint8 keeping its aspect (mmcv's rescale to (max_long_side, short_side), rounding half up)."""
    height, width = image.shape[:2]
    factor = min(view.max_long_side / max(height, width), view.short_side / min(height, width))
    size = (max(int(width * factor + 0.5), 1), max(int(height * factor + 0.5), 1))
    scaled: np.ndarray = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    return scaled


def normalise(image: np.ndarray, normalisation: Normalisation) -> Tensor:
    """[H, W, 3] uint8 → [3, H, W] float32.

    In mmcv's units of 0..255, for the same bits: where an image is flat, PAMR's affinities amplify the last one.
    """
    pixels = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)
    mean, std = normalisation.mean, normalisation.std
    centre, spread = (torch.tensor([255 * value for value in values])[:, None, None] for values in (mean, std))
    return (pixels - centre) / spread


def window_starts(length: int, window: int, stride: int) -> Iterator[int]:
    """Left edges of the windows along one axis; the last one ends at the border (mmsegmentation's)."""
    for i in range(max(length - window + stride - 1, 0) // stride + 1):
        yield min(i * stride, max(length - window, 0))


def windows_of(height: int, width: int, view: View) -> list[tuple[slice, slice]]:
    """Rows and columns of an image's windows, row by row."""
    return [
        (slice(top, min(top + view.window, height)), slice(left, min(left + view.window, width)))
        for top in window_starts(height, view.window, view.stride)
        for left in window_starts(width, view.window, view.stride)
    ]


def slide(
    segmenter: Segmenter, image: Tensor, classes: Tensor, background: bool, view: View, *, batch: int = WINDOW_BATCH
) -> Tensor:
    """Scores [n or 1 + n, H, W] of a normalised image [3, H, W]: window scores, averaged where windows overlap.

    All windows of an image have one size, so they run in batches, of fewer windows where those are shown enlarged; sums are
    taken in the order of the windows.
    """
    batch = windows_at_once(batch, view)
    height, width = image.shape[-2:]
    boxes = windows_of(height, width, view)
    total: Tensor | None = None
    counts = image.new_zeros(height, width)
    for start in range(0, len(boxes), batch):
        some = boxes[start : start + batch]
        windows = torch.stack([image[:, rows, columns] for rows, columns in some])
        scores = window_scores(segmenter, windows, classes, background, view)
        if len(boxes) == 1:
            return scores[0]
        if total is None:
            total = scores.new_zeros(scores.shape[1], height, width)
        for (rows, columns), score in zip(some, scores, strict=True):
            total[:, rows, columns] += score
            counts[rows, columns] += 1
    assert total is not None
    return total.div_(counts)


def windows_at_once(batch: int, view: View) -> int:
    """How many windows take no more memory, as large as they are shown, than `batch` of the view's own size."""
    return max(1, int(batch / view.grid_scale**2))


def enlarged(windows: Tensor, view: View) -> Tensor:
    """Windows [B, 3, H, W] as the method is shown them."""
    if view.grid_scale == 1:
        return windows
    size = [round(view.grid_scale * side) for side in windows.shape[-2:]]
    return F.interpolate(windows, size=size, mode="bilinear", align_corners=False)


def window_scores(segmenter: Segmenter, windows: Tensor, classes: Tensor, background: bool, view: View) -> Tensor:
    """Scores [B, n or 1 + n, H, W] of windows [B, 3, H, W], which the method sees enlarged where the view says so.

    Refinement comes last, at the windows' own size and one window at a time, for the sake of memory. A plane that a method
    draws for the background itself is refined like the others.
    """
    height, width = windows.shape[-2:]
    scores = segmenter.segment(enlarged(windows, view), classes, background)
    if view.grid_scale != 1:
        scores = F.interpolate(scores, size=(height, width), mode="bilinear", align_corners=False)
    if view.refine == "pamr":
        scores = torch.cat(
            [pamr(window, planes) for window, planes in zip(torch.split(windows, 1), torch.split(scores, 1), strict=True)]
        )
    return scores


def predict_scores(
    segmenter: Segmenter,
    image: np.ndarray,
    classes: Tensor,
    background: bool,
    view: View,
    normalisation: Normalisation,
    *,
    batch: int = WINDOW_BATCH,
) -> Tensor:
    """Scores [n or 1 + n, h, w] of an RGB image [H, W, 3] uint8 at the scaled size, on the device of `classes`.

    Raises InputError where they are not finite, as weights make them whose training was lost.
    """
    scaled = normalise(resize(image, view), normalisation).to(classes.device)
    scores = slide(segmenter, scaled, classes, background, view, batch=batch)
    if not math.isfinite(float(scores.amax())):  # NaN wins every maximum
        raise InputError("the method's scores are not finite numbers; look at its weights and settings")
    return scores


def upsample(scores: Tensor, size: tuple[int, int]) -> Iterator[Tensor]:
    """Scores [n, h, w] at another size, bilinear without aligned corners, a few planes [k, H, W] at a time."""
    step = max(1, PLANE_VALUES // (size[0] * size[1]))
    for start in range(0, len(scores), step):
        # Planes as a batch of single channels: torch rounds differently at other counts of channels (3, for one).
        yield F.interpolate(scores[start : start + step, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def upsample_argmax(scores: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(max, argmax) [H, W] over scores [n, h, w] upsampled to `size`; the first of equals wins, as argmax does."""
    best = scores.new_full(size, -torch.inf)
    winner = torch.zeros(size, dtype=torch.int64, device=scores.device)
    for index, plane in enumerate(plane for planes in upsample(scores, size) for plane in planes):
        # Strictly greater: an equal score of a later class must not win.
        winner.masked_fill_(plane > best, index)
        torch.maximum(best, plane, out=best)
    return best, winner


class Prediction(NamedTuple):
    """A class for every pixel, and how sure it is; pixels that are not sure enough are background."""

    choice: np.ndarray
    """[H, W] labels int64, before a threshold."""
    confidence: np.ndarray | None = None
    """[H, W] float32; None where no threshold decides."""
    threshold: float | None = None
    """The background threshold that holds here."""
    strict: bool = False
    """Whether a confidence that equals the threshold is still sure (SCLIP), or not (TCL: argmax takes the first maximum)."""

    @property
    def labels(self) -> np.ndarray:
        """[H, W] labels at the threshold that holds."""
        if self.confidence is None or self.threshold is None:
            return self.choice
        return self.at(self.threshold)

    def at(self, threshold: float) -> np.ndarray:
        """[H, W] labels at another threshold."""
        assert self.confidence is not None
        return np.where(self.confidence <= self.cut(threshold), 0, self.choice)

    def cut(self, threshold: float) -> np.float32:
        """The highest confidence that is background at a threshold, in the precision of the scores."""
        value = np.float32(threshold)
        return np.nextafter(value, np.float32(-np.inf)) if self.strict else value


def predict(
    segmenter: Segmenter,
    image: np.ndarray,
    classes: Tensor,
    protocol: Protocol,
    normalisation: Normalisation,
    *,
    batch: int = WINDOW_BATCH,
) -> Prediction:
    """The prediction for an RGB image [H, W, 3] uint8 at its own size: scores upsampled, then decided.

    classes: embeddings of `protocol.queries`. A constant background plane is not drawn but compared with, so that neither the
    average over windows nor the upsampling rounds it.
    """
    background = protocol.benchmark.background and protocol.softmax is None
    threshold = segmenter.background_threshold if background else None
    own_plane = background and threshold is None
    scores = predict_scores(segmenter, image, classes, own_plane, protocol.view, normalisation, batch=batch)
    labels = torch.tensor((0,) * own_plane + protocol.class_of_query, device=scores.device)
    size = (image.shape[0], image.shape[1])
    if protocol.softmax is not None:
        return _softmax_prediction(scores, labels, size, protocol.softmax, background=protocol.benchmark.background)
    best, winner = upsample_argmax(scores, size)
    choice = labels[winner].cpu().numpy()
    return Prediction(choice) if threshold is None else Prediction(choice, best.cpu().numpy(), threshold)


def _softmax_prediction(
    scores: Tensor, labels: Tensor, size: tuple[int, int], rule: SoftmaxRule, *, background: bool
) -> Prediction:
    """SCLIP's rule in its own order (`postprocess_result`): softmax over queries, synonyms, small classes, threshold.

    scores: [queries, h, w]; labels: the class of each query.
    """
    best, winner = upsample_argmax(scores, size)
    choice = labels[winner]
    if not background:
        return Prediction(choice.cpu().numpy())
    if rule.min_share > 0:
        areas = torch.bincount(choice.flatten(), minlength=int(labels.max()) + 1).double()
        areas[0] = 0
        kept = areas > rule.min_share * areas.sum()
        kept[0] = True
        left = kept[labels]
        best, winner = upsample_argmax(scores[left], size)
        choice = labels[left][winner]
    evidence = torch.full(size, -torch.inf, device=scores.device)
    for planes in upsample(scores, size):
        evidence = torch.logaddexp(evidence, torch.logsumexp(rule.scale * planes, dim=0))
    probability = torch.exp(rule.scale * best - evidence)
    return Prediction(choice.cpu().numpy(), probability.cpu().numpy(), rule.threshold, strict=True)
