"""Oracle mIoU: against naming every pixel the slow way, and the regions that it judges."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.voc import CONFIG, PLAIN, RandomLabels, write_voc
from owseg.evaluation.datasets import BENCHMARKS, list_items, read_image, read_label
from owseg.evaluation.inference import predict
from owseg.evaluation.metrics import confusion, mean_iou, pixel_accuracy
from owseg.evaluation.oracle import draw_regions, oracle_confusion, slide_regions
from owseg.evaluation.protocols import View, protocol_of
from owseg.evaluation.scoring import report, score_items
from owseg.segmenter import DrawsRegions

CLASSES = 3


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Regions (-1 and 5, 7, 1000) and labels [6, 9] with ignored pixels; region 7 has no others."""
    rng = np.random.default_rng(seed)
    regions = rng.choice([-1, 5, 7, 1000], size=(6, 9))
    label = rng.integers(0, CLASSES, regions.shape).astype(np.uint8)
    label[rng.random(label.shape) < 0.2] = 255
    label[regions == 7] = 255
    return regions, label


@pytest.mark.parametrize("seed", range(4))
def test_no_other_naming_of_the_regions_has_more_pixels_right(seed: int) -> None:
    regions, label = scene(seed)
    counts, found = oracle_confusion(regions, label, CLASSES)
    ids = np.unique(regions)
    assert found == len(ids) == 4
    named = np.empty(regions.shape, dtype=np.int64)
    for region in ids:
        inside = label[regions == region]
        named[regions == region] = max(range(CLASSES), key=lambda name, inside=inside: (inside == name).sum())
    np.testing.assert_array_equal(counts, confusion(named, label, CLASSES))
    for names in product(range(CLASSES), repeat=len(ids)):
        other = np.array(names)[np.searchsorted(ids, regions)]
        assert pixel_accuracy(counts) >= pixel_accuracy(confusion(other, label, CLASSES))


def test_finer_regions_never_have_fewer_pixels_right() -> None:
    """Every mask named by its class is one naming of regions that lie within masks."""
    for seed in range(4):
        prediction, label = scene(seed)[0] % CLASSES, scene(seed)[1]
        halves = prediction * 2 + (np.arange(prediction.shape[1]) > 4)
        own, masks, finer = (
            pixel_accuracy(counts)
            for counts in (
                confusion(prediction, label, CLASSES),
                oracle_confusion(prediction, label, CLASSES)[0],
                oracle_confusion(halves, label, CLASSES)[0],
            )
        )
        assert own <= masks <= finer


def test_oracle_miou_may_be_lower_than_miou() -> None:
    """More pixels right is no higher mIoU: a class that is nowhere the most frequent one is lost."""
    label = np.repeat(np.array([0, 1, 0], dtype=np.uint8), [51, 49, 1000])[None]
    regions = np.repeat([0, 1], [100, 1000])[None]
    named_by_method = np.where(regions == 0, 1, 0)
    best = oracle_confusion(regions, label, 2)[0]
    assert pixel_accuracy(best) > pixel_accuracy(confusion(named_by_method, label, 2))
    assert mean_iou(best) < mean_iou(confusion(named_by_method, label, 2))


class Stripes:
    """Regions by column within the window: the left third is 0, the next 1, the rest none."""

    def __init__(self, across_windows: bool) -> None:
        self.regions_across_windows = across_windows

    def regions(self, image: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        third = torch.arange(image.shape[-1]) * 3 // image.shape[-1]
        return torch.where(third == 2, -1, third).expand(len(image), *image.shape[-2:])


@pytest.mark.parametrize("across_windows", [False, True])
@pytest.mark.parametrize("batch", [1, 4])
def test_a_pixel_takes_the_region_of_the_window_whose_centre_is_nearest(across_windows: bool, batch: int) -> None:
    view = View(short_side=12, window=12, stride=6)
    drawn = slide_regions(Stripes(across_windows), torch.zeros(3, 14, 26), torch.zeros(0), view, batch=batch)
    windows = [(top, left) for top in (0, 2) for left in (0, 6, 12, 14)]
    for y, x in product(range(14), range(26)):
        holding = [(top, left) for top, left in windows if top <= y < top + 12 and left <= x < left + 12]
        top, left = min(holding, key=lambda window: (y - window[0] - 5.5) ** 2 + (x - window[1] - 5.5) ** 2)
        third = (x - left) * 3 // 12
        number = 0 if across_windows else 2 * windows.index((top, left))
        assert drawn[y, x] == (-1 if third == 2 else number + third)


class Quadrants(RandomLabels):
    """RandomLabels that groups a window's pixels by the quadrant they lie in."""

    regions_across_windows = False

    def regions(self, image: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        height, width = image.shape[-2:]
        lower, right = torch.arange(height) * 2 // height, torch.arange(width) * 2 // width
        return (2 * lower[:, None] + right).expand(len(image), -1, -1)


@pytest.mark.parametrize("segmenter", [RandomLabels(), Quadrants()])
def test_a_set_is_scored_by_the_methods_regions_or_by_its_masks(tmp_path: Path, segmenter: RandomLabels) -> None:
    write_voc(tmp_path, count=3)
    protocol = protocol_of(CONFIG, "voc21")
    items = list_items(BENCHMARKS["voc21"], tmp_path)
    classes = segmenter.embed_classes(protocol.queries)
    expected = np.zeros((21, 21), dtype=np.int64)
    regions = 0
    for item in items:
        image = read_image(item.image)
        label = read_label(protocol.benchmark, item, image.shape[:2])
        if isinstance(segmenter, DrawsRegions):
            drawn = draw_regions(segmenter, image, classes, protocol, PLAIN)
        else:
            drawn = predict(segmenter, image, classes, protocol, PLAIN).labels
        assert drawn.shape == label.shape
        counts, found = oracle_confusion(drawn, label, 21)
        expected += counts
        regions += found
    assert isinstance(segmenter, DrawsRegions) == isinstance(segmenter, Quadrants)
    config = replace(CONFIG, oracle=True)
    one, two = (score_items(segmenter, protocol, part, config, PLAIN) for part in (items[:1], items[1:]))
    told = report(protocol, config, one + two)
    np.testing.assert_array_equal((one + two).oracle, expected)
    assert told["oracle_mIoU"] == mean_iou(expected)
    assert told["regions_per_image"] == regions / 3
    plain = score_items(segmenter, protocol, items, CONFIG, PLAIN)
    np.testing.assert_array_equal(plain.counts, (one + two).counts)
    assert "oracle_mIoU" not in report(protocol, CONFIG, plain)
