"""Score a segmenter on a benchmark, in parts that merge by addition."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from owseg import InputError
from owseg.evaluation.datasets import Item, UnreadableError, read_image, read_label
from owseg.evaluation.inference import Prediction, embed_queries, predict, refuse_window
from owseg.evaluation.intervals import ImageCounts
from owseg.evaluation.metrics import (
    boundary_confusion,
    boundary_iou,
    class_iou,
    confusion,
    frequency_weighted_iou,
    intersection_union,
    mean_iou,
    pixel_accuracy,
    sweep,
    threshold_counts,
)
from owseg.evaluation.oracle import draw_regions, oracle_confusion
from owseg.evaluation.protocols import EvaluateConfig, Protocol, summary_of
from owseg.normalisation import Normalisation
from owseg.segmenter import DrawsRegions, Segmenter


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a part of a benchmark adds."""

    counts: np.ndarray
    """Confusion [n, n] int64, rows = label."""
    boundary: np.ndarray
    """Boundary confusion [n + 1, n + 1] int64."""
    images: dict[str, float]
    """Each image's own mIoU in percent, by id."""
    intersection: np.ndarray
    """[images, n] int64: what each image adds to each class's intersection, in the order of `images`."""
    union: np.ndarray
    """[images, n] int64: and to its union."""
    thresholds: tuple[float, ...] = ()
    """Background thresholds of the sweep, ascending, the method's own among them; () = no sweep."""
    joint: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 1), dtype=np.int64))
    """`threshold_counts` [n, n, T + 1] int64."""
    threshold: float | None = None
    """The background threshold that `counts` stand for; None where no constant decides."""
    seconds: float = 0.0
    """Time that the predictions took, reading files and counting left out."""
    peak_memory_mb: float = 0.0
    """The most memory that a process which scored held, in MiB."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Why an item was left out, by id."""
    oracle: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))
    """`oracle_confusion` [n, n] int64; [0, 0] where it was not asked for."""
    regions: int = 0
    """Regions that the method drew, summed over images; 0 where the oracle was not asked for."""
    shortened: tuple[str, ...] = ()
    """Names of classes that the method's text tower read without their end."""

    @property
    def by_image(self) -> ImageCounts:
        """What bootstrap intervals are made of."""
        return ImageCounts(tuple(self.images), self.intersection, self.union)

    @classmethod
    def empty(
        cls, classes: int, scored: int, threshold: float | None, thresholds: tuple[float, ...], *, oracle: bool
    ) -> "Score":
        """That of no image, on a benchmark with so many classes, of which so many are scored."""
        return cls(
            counts=np.zeros((classes, classes), dtype=np.int64),
            boundary=np.zeros((classes + 1, classes + 1), dtype=np.int64),
            images={},
            intersection=np.zeros((0, scored), dtype=np.int64),
            union=np.zeros((0, scored), dtype=np.int64),
            thresholds=thresholds,
            joint=np.zeros((classes, classes, len(thresholds) + 1) if thresholds else (0, 0, 1), dtype=np.int64),
            threshold=threshold,
            oracle=np.zeros((classes, classes) if oracle else (0, 0), dtype=np.int64),
        )

    def __add__(self, other: "Score") -> "Score":
        assert self.thresholds == other.thresholds
        assert self.threshold == other.threshold
        return Score(
            counts=self.counts + other.counts,
            boundary=self.boundary + other.boundary,
            images=self.images | other.images,
            intersection=np.concatenate([self.intersection, other.intersection]),
            union=np.concatenate([self.union, other.union]),
            thresholds=self.thresholds,
            joint=self.joint + other.joint,
            threshold=self.threshold,
            seconds=self.seconds + other.seconds,
            peak_memory_mb=max(self.peak_memory_mb, other.peak_memory_mb),
            skipped=self.skipped | other.skipped,
            oracle=self.oracle + other.oracle,
            regions=self.regions + other.regions,
            shortened=tuple(dict.fromkeys([*self.shortened, *other.shortened])),
        )


def background_threshold(segmenter: Segmenter, protocol: Protocol) -> float | None:
    """The threshold that decides on background here; None where there is no background or no constant decides."""
    if not protocol.benchmark.background:
        return None
    return protocol.softmax.threshold if protocol.softmax else segmenter.background_threshold


@torch.inference_mode()
def score_items(
    segmenter: Segmenter,
    protocol: Protocol,
    items: Iterable[Item],
    config: EvaluateConfig,
    normalisation: Normalisation,
    *,
    classes: Tensor | None = None,
    watch: Callable[[int], None] = lambda done: None,
) -> Score:
    """Predict and count every item. `classes`: the embeddings of `protocol.queries` where they are at hand.

    watch: called with the number of items done after each. Raises InputError that names a file. A file that cannot be decoded
    is left out and listed in `skipped` where the config says so; a label map of another size or with an unknown value always
    stops: such a set is not what it should be.
    """
    refuse_window(segmenter, protocol.view)
    if classes is None:
        classes = embed_queries(segmenter, protocol)
    threshold = background_threshold(segmenter, protocol)
    thresholds = tuple(sorted({*config.thresholds, threshold})) if threshold is not None and config.thresholds else ()
    size, scored = len(protocol.benchmark.names), protocol.benchmark.scored
    total = nothing = Score.empty(size, len(scored), threshold, thresholds, oracle=config.oracle)
    for done, item in enumerate(items, 1):
        try:
            image = read_image(item.image)
            label = read_label(protocol.benchmark, item, (image.shape[0], image.shape[1]))
        except UnreadableError as error:
            if config.unreadable == "stop":
                raise
            total += replace(nothing, skipped={item.id: str(error)})
            watch(done)
            continue
        began = time.perf_counter()
        try:
            prediction = predict(segmenter, image, classes, protocol, normalisation, batch=config.window_batch)
        except InputError as error:
            raise InputError(f"{item.image}: {error}") from error
        seconds = time.perf_counter() - began
        regions = None
        if config.oracle:
            regions = prediction.labels
            if isinstance(segmenter, DrawsRegions):
                regions = draw_regions(segmenter, image, classes, protocol, normalisation, batch=config.window_batch)
        total += _count(nothing, item.id, prediction, label, regions, scored, seconds)
        watch(done)
    return total


def _count(
    nothing: Score,
    id_: str,
    prediction: Prediction,
    label: np.ndarray,
    regions: np.ndarray | None,
    scored: Sequence[int],
    seconds: float,
) -> Score:
    """What an image adds to the score of no image.

    label: [H, W] uint8; regions: [H, W], where the oracle is asked for; scored: the labels that mIoU is over.
    """
    size = len(nothing.counts)
    counts = confusion(prediction.labels, label, size)
    intersection, union = (of_class[[*scored]] for of_class in intersection_union(counts))
    score = replace(
        nothing,
        counts=counts,
        boundary=boundary_confusion(prediction.labels, label, size),
        images={id_: mean_iou(counts, scored)},
        intersection=intersection[None],
        union=union[None],
        seconds=seconds,
    )
    if nothing.thresholds and prediction.confidence is not None:
        cuts = np.array([prediction.cut(value) for value in nothing.thresholds])
        score = replace(score, joint=threshold_counts(prediction.choice, prediction.confidence, label, cuts, size))
    if regions is not None:
        oracle, found = oracle_confusion(regions, label, size)
        score = replace(score, oracle=oracle, regions=found)
    return score


def report(protocol: Protocol, config: EvaluateConfig, score: Score) -> dict[str, Any]:
    """The scores of a whole benchmark, in percent, as written to its JSON file."""
    scored = protocol.benchmark.scored
    names = {label: protocol.benchmark.names[label] for label in scored}
    report: dict[str, Any] = {
        "dataset": protocol.benchmark.name,
        "preset": config.preset,
        "protocol": summary_of(config),
        "images": len(score.images),
        "skipped": score.skipped,
        "mIoU": mean_iou(score.counts, scored),
        "fwIoU": frequency_weighted_iou(score.counts, scored),
        "pixel_accuracy": pixel_accuracy(score.counts, scored),
        "boundary_IoU": boundary_iou(score.boundary, scored),
        "seconds_per_image": score.seconds / max(len(score.images), 1),
        "peak_memory_mb": score.peak_memory_mb,
        "IoU": _by_class(names, score.counts),
        "boundary_IoU_by_class": _by_class(names, score.boundary),
    }
    if score.oracle.size:
        report["oracle_mIoU"] = mean_iou(score.oracle, scored)
        report["regions_per_image"] = score.regions / max(len(score.images), 1)
    if score.threshold is not None:
        report["background_threshold"] = score.threshold
    if score.thresholds:
        swept = threshold_sweep(score)
        report["threshold_sweep"] = {
            "mIoU": {f"{threshold:g}": value for threshold, value in swept.curve.items()},
            "best": {
                "threshold": swept.best,
                "mIoU": swept.curve[swept.best],
                "note": "chosen on the test labels, not a result",
            },
        }
    return report


class Sweep(NamedTuple):
    """mIoU in percent over background thresholds."""

    curve: dict[float, float]
    best: float
    """The threshold with the highest mIoU: chosen on the test labels, so not a result."""


def threshold_sweep(score: Score) -> Sweep:
    """mIoU at every threshold of a score that has any."""
    curve = {value: mean_iou(counts) for value, counts in zip(score.thresholds, sweep(score.joint), strict=True)}
    return Sweep(curve, max(curve, key=lambda value: curve[value]))


def best_median_worst(*scores: Score) -> dict[str, str]:
    """Ids of the images with the highest, the middle and the lowest mIoU of their own, as a mean over several scores' rows."""
    means = {id_: np.mean([score.images.get(id_, np.nan) for score in scores]) for id_ in scores[0].images}
    ranked = sorted((value, id_) for id_, value in means.items() if np.isfinite(value))
    if not ranked:
        return {}
    return {"best": ranked[-1][1], "median": ranked[len(ranked) // 2][1], "worst": ranked[0][1]}


def _by_class(names: Mapping[int, str], counts: np.ndarray) -> dict[str, float | None]:
    """IoU in percent by class, of the labels that `names` has; None where a class occurs nowhere."""
    iou = 100 * class_iou(counts)
    return {name: None if np.isnan(iou[label]) else float(iou[label]) for label, name in names.items()}
