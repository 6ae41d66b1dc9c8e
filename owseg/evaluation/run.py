"""Score a segmenter on a benchmark, in parts that merge by addition."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from owseg import InputError
from owseg.encoders import EncoderConfig
from owseg.evaluation.datasets import BENCHMARKS, Benchmark, Item, read_image, read_label, read_names
from owseg.evaluation.metrics import class_iou, confusion, mean_iou, pixel_accuracy
from owseg.evaluation.protocol import EvaluateConfig, predict
from owseg.methods import Segmenter


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a part of a benchmark adds: confusion counts, and each image's own mIoU (percent) by id."""

    counts: np.ndarray
    images: dict[str, float]

    def __add__(self, other: "Score") -> "Score":
        return Score(counts=self.counts + other.counts, images=self.images | other.images)


def benchmark_of(name: str, config: EvaluateConfig) -> Benchmark:
    """The benchmark with the class names that `config` gives it. Raises InputError for a missing or bad list."""
    benchmark = BENCHMARKS[name]
    if not config.classes:
        return benchmark
    path = Path(config.classes) / f"{name}.txt"
    if not path.is_file():
        raise InputError(f"evaluate.classes: {path} is missing; it must list the class names of {name}, one a line")
    names = read_names(path)
    if benchmark.background and names[:1] != ("background",):
        raise InputError(f"{path}: the first class of {name} must be background")
    return replace(benchmark, names=names)


def foreground(benchmark: Benchmark) -> Sequence[str]:
    """The class names that are embedded as text: all but the background."""
    return benchmark.names[1:] if benchmark.background else benchmark.names


@torch.inference_mode()
def score_items(
    segmenter: Segmenter,
    benchmark: Benchmark,
    items: Iterable[Item],
    config: EvaluateConfig,
    encoder: EncoderConfig,
) -> Score:
    """Predict and count every item."""
    classes = segmenter.embed_classes(foreground(benchmark))
    total = np.zeros((len(benchmark.names), len(benchmark.names)), dtype=np.int64)
    images = {}
    for item in items:
        image = read_image(item.image)
        label = read_label(benchmark, item, image.shape[:2])
        prediction = predict(segmenter, image, classes, benchmark.background, config, encoder.mean, encoder.std)
        counts = confusion(prediction, label, len(benchmark.names))
        total += counts
        images[item.id] = mean_iou(counts)
    return Score(counts=total, images=images)


def report(benchmark: Benchmark, score: Score) -> dict[str, object]:
    """The scores of a whole benchmark, in percent, as written to its JSON file."""
    iou = 100 * class_iou(score.counts)
    return {
        "dataset": benchmark.name,
        "images": len(score.images),
        "mIoU": mean_iou(score.counts),
        "pixel_accuracy": pixel_accuracy(score.counts),
        "IoU": {name: None if np.isnan(value) else float(value) for name, value in zip(benchmark.names, iou, strict=True)},
    }


def best_median_worst(score: Score) -> dict[str, str]:
    """Ids of the images with the highest, the middle and the lowest mIoU of their own."""
    ranked = sorted((value, id_) for id_, value in score.images.items() if np.isfinite(value))
    if not ranked:
        return {}
    return {"best": ranked[-1][1], "median": ranked[len(ranked) // 2][1], "worst": ranked[0][1]}
