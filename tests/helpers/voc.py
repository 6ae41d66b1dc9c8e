"""A small data set in VOC's format, and a segmenter whose scores are easy to repeat."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from owseg.evaluation.protocols import EvaluateConfig, SoftmaxRule
from owseg.normalisation import Normalisation

CONFIG = EvaluateConfig(short_side=32, max_long_side=146, window=32, stride=16)  # 146 / 32 = 2048 / 448 = 4.57
PLAIN = Normalisation(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def write_voc(root: Path, count: int = 6, seed: int = 0) -> None:
    """VOC2012 in its own layout, with random shapes, void borders and images of odd sizes."""
    rng = np.random.default_rng(seed)
    base = root / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (base / folder).mkdir(parents=True)
    ids = [f"2007_{i:06}" for i in range(count)]
    for i, id_ in enumerate(ids):
        height, width = int(rng.integers(30, 70)), int(rng.integers(30, 70))
        if i == 0:
            height, width = 33, 200  # aspect above 4.57
        label = rng.integers(0, 21, (height // 8 + 1, width // 8 + 1)).repeat(8, 0).repeat(8, 1)[:height, :width]
        label[rng.random(label.shape) < 0.05] = 255
        image = rng.integers(0, 256, (height, width, 3))
        Image.fromarray(image.astype(np.uint8)).save(base / "JPEGImages" / f"{id_}.jpg")
        mask = Image.fromarray(label.astype(np.uint8), mode="P")
        mask.putpalette([value for i in range(256) for value in (i, 255 - i, i // 2)])
        mask.save(base / "SegmentationClass" / f"{id_}.png")
    (base / "ImageSets" / "Segmentation" / "val.txt").write_text("\n".join(ids) + "\n")


class RandomLabels:
    """Scores drawn from the image itself, so that a second computation can repeat them."""

    background_threshold = 0.1

    def embed_classes(self, names: list[str]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(len(names))
        return torch.randn(len(names), 3, generator=generator)

    def segment(self, image: torch.Tensor, classes: torch.Tensor, background: bool) -> torch.Tensor:
        scores = torch.einsum("bchw,nc->bnhw", image, classes)
        return torch.nn.functional.pad(scores, (0, 0, 0, 0, 1, 0), value=self.background_threshold) if background else scores


def sclip_by_definition(scores: torch.Tensor, class_of_query: tuple[int, ...], rule: SoftmaxRule) -> np.ndarray:
    """Softmax over all queries, maximum over synonyms, small foreground classes zeroed, then unsure pixels to class 0."""
    probability = (scores.double() * rule.scale).softmax(dim=0)
    classes = max(class_of_query) + 1
    of = torch.tensor(class_of_query)
    best = torch.stack([probability[of == c].amax(dim=0) for c in range(classes)])
    if rule.min_share > 0:
        areas = torch.tensor([(best.argmax(dim=0) == c).sum() for c in range(1, classes)])
        for c, area in enumerate(areas, start=1):
            if not area > rule.min_share * areas.sum():
                best[c] = 0
    labels = best.argmax(dim=0)
    labels[best.amax(dim=0) < rule.threshold] = 0
    return labels.numpy()
