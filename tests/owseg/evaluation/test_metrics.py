"""Scores against their definitions, computed the slow way."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.paths import MASKS, needs
from helpers.voc import CONFIG, PLAIN, RandomLabels, write_voc
from owseg.evaluation import inference as protocol_module
from owseg.evaluation.datasets import BENCHMARKS, Item, list_items, read_image, read_label
from owseg.evaluation.inference import upsample_argmax
from owseg.evaluation.metrics import (
    boundary_confusion,
    boundary_iou,
    class_iou,
    confusion,
    frequency_weighted_iou,
    mean_iou,
    pixel_accuracy,
    sweep,
    threshold_counts,
)
from owseg.evaluation.pictures import PANORAMA, compose, draw_sweep, overlay, palette
from owseg.evaluation.protocols import protocol_of
from owseg.evaluation.scoring import report, score_items, threshold_sweep


def band_by_definition(mask: np.ndarray, width: int) -> np.ndarray:
    """Pixels of a mask with a pixel outside it, or the image's end, at most `width` rows and columns away."""
    height, breadth = mask.shape
    band = np.zeros_like(mask)
    for y, x in zip(*np.nonzero(mask), strict=True):
        around = [(y + dy, x + dx) for dy in range(-width, width + 1) for dx in range(-width, width + 1)]
        band[y, x] = any(not (0 <= v < height and 0 <= u < breadth) or not mask[v, u] for v, u in around)
    return band


@pytest.mark.parametrize(("shape", "width"), [((12, 17), 1), ((60, 100), 2), ((3, 2), 1), ((1, 9), 1)])
def test_boundary_iou_equals_the_definition(shape: tuple[int, int], width: int) -> None:
    rng = np.random.default_rng(sum(shape))
    classes, totals = 4, np.zeros((2, 4))
    counts = np.zeros((5, 5), dtype=np.int64)
    for _ in range(3):
        coarse = rng.integers(0, classes, (2, *[side // 6 + 1 for side in shape]))
        label, prediction = (m.repeat(6, 0).repeat(6, 1)[: shape[0], : shape[1]].astype(np.uint8) for m in coarse)
        label[rng.random(shape) < 0.02] = 255
        counts += boundary_confusion(prediction.astype(np.int64), label, classes)
        assert max(1, round(0.02 * float(np.hypot(*shape)))) == width
        for c in range(classes):
            counted = label != 255
            truth = band_by_definition(label == c, width) & counted
            said = band_by_definition(prediction == c, width) & counted
            totals[:, c] += (truth & said).sum(), (truth | said).sum()
    expected = np.divide(totals[0], totals[1], out=np.full(classes, np.nan), where=totals[1] > 0)
    np.testing.assert_allclose(class_iou(counts)[:classes], expected, rtol=0, atol=1e-12)
    assert boundary_iou(counts) == pytest.approx(100 * np.nanmean(expected), abs=1e-9)


def test_a_map_that_is_right_has_full_boundary_iou() -> None:
    label = np.zeros((40, 40), dtype=np.uint8)
    label[10:30, 10:30] = 1
    assert boundary_iou(boundary_confusion(label.astype(np.int64), label, 3)) == 100.0
    # One pixel off all around: IoU hardly falls, the two bands of one pixel do not meet at all.
    off = np.zeros_like(label, dtype=np.int64)
    off[11:29, 11:29] = 1
    assert class_iou(boundary_confusion(off, label, 3))[1] == 0.0
    assert class_iou(confusion(off, label, 3))[1] > 0.8


def test_frequency_weighted_iou_and_accuracy_by_hand() -> None:
    # Labels: 8 pixels of class 0, 2 of class 1. Predicted: 6 + 1 of class 0, 2 + 1 of class 1. Class 2 occurs nowhere.
    counts = np.array([[6, 2, 0], [1, 1, 0], [0, 0, 0]])
    assert frequency_weighted_iou(counts) == pytest.approx(100 * (0.8 * 6 / 9 + 0.2 * 1 / 4))
    assert pixel_accuracy(counts) == pytest.approx(70.0)


def test_a_sweep_equals_counting_anew_at_every_threshold() -> None:
    rng = np.random.default_rng(0)
    cuts = np.array([0.1, 0.25, 0.5, 0.9], dtype=np.float32)
    label = rng.integers(0, 5, (30, 40)).astype(np.uint8)
    label[rng.random(label.shape) < 0.1] = 255
    choice = rng.integers(0, 5, label.shape)
    confidence = rng.choice(np.array([0.0, 0.1, 0.2, 0.25, 0.5, 0.7, 0.95], dtype=np.float32), label.shape)
    swept = sweep(threshold_counts(choice, confidence, label, cuts, 5))
    for cut, counts in zip(cuts, swept, strict=True):
        np.testing.assert_array_equal(counts, confusion(np.where(confidence <= cut, 0, choice), label, 5))


@pytest.mark.parametrize("preset", ["tcl", "sclip"])
def test_one_pass_gives_what_a_run_with_each_threshold_gives(tmp_path: Path, preset: str) -> None:
    """The same confusion, pixel for pixel, as evaluating anew with that background threshold."""
    write_voc(tmp_path, count=4)
    items = list_items(BENCHMARKS["voc21"], tmp_path)
    thresholds = (-0.4, 0.05, 0.3, 0.7, 1.5)
    config = replace(CONFIG, preset=preset, thresholds=thresholds, window=32, stride=16)
    protocol = protocol_of(config, "voc21")
    score = score_items(RandomLabels(), protocol, items, config, PLAIN)
    own = 0.1
    assert score.threshold == own
    assert score.thresholds == tuple(sorted((*thresholds, own)))
    swept = dict(zip(score.thresholds, sweep(score.joint), strict=True))
    np.testing.assert_array_equal(swept[own], score.counts)
    for threshold in thresholds:
        segmenter, again = RandomLabels(), protocol
        if protocol.softmax:
            again = replace(protocol, softmax=replace(protocol.softmax, threshold=threshold))
        else:
            segmenter.background_threshold = threshold
        np.testing.assert_array_equal(swept[threshold], score_items(segmenter, again, items, config, PLAIN).counts)
    assert len({counts.tobytes() for counts in swept.values()}) > 2


def test_a_sweep_is_only_where_a_constant_decides(tmp_path: Path) -> None:
    write_voc(tmp_path, count=1)

    class OwnRule(RandomLabels):
        background_threshold = None

        def segment(self, image: torch.Tensor, classes: torch.Tensor, background: bool) -> torch.Tensor:
            scores = torch.einsum("bchw,nc->bnhw", image, classes)
            return torch.cat([scores.mean(dim=1, keepdim=True), scores], dim=1) if background else scores

    for name, segmenter in (("voc20", RandomLabels()), ("voc21", OwnRule())):
        protocol = protocol_of(CONFIG, name)
        score = score_items(segmenter, protocol, list_items(BENCHMARKS[name], tmp_path), CONFIG, PLAIN)
        assert score.thresholds == ()
        assert score.threshold is None
        assert "threshold_sweep" not in report(protocol, CONFIG, score)
        assert score.counts.sum() > 0


def test_the_best_threshold_is_told_as_what_it_is(tmp_path: Path) -> None:
    write_voc(tmp_path, count=2)
    protocol = protocol_of(CONFIG, "voc21")
    score = score_items(RandomLabels(), protocol, list_items(BENCHMARKS["voc21"], tmp_path), CONFIG, PLAIN)
    told = report(protocol, CONFIG, score)
    swept = told["threshold_sweep"]
    assert len(swept["mIoU"]) == 19  # 0.05, 0.1, ..., 0.95; the method's own, 0.1, is among them
    assert swept["mIoU"]["0.1"] == told["mIoU"] == mean_iou(score.counts)
    assert swept["best"]["mIoU"] == max(swept["mIoU"].values())
    assert "not a result" in swept["best"]["note"]
    assert threshold_sweep(score).best == swept["best"]["threshold"]
    draw_sweep({"voc21": score}, tmp_path / "curves" / "sweep.png", "random labels")
    assert read_image(tmp_path / "curves" / "sweep.png").std() > 1


@pytest.mark.parametrize("values", [1, 90 * 70 * 2, 90 * 70 * 3, 90 * 70 * 4, 2**23])
def test_argmax_in_chunks_equals_argmax_of_all(monkeypatch: pytest.MonkeyPatch, values: int) -> None:
    """Ties included: scores of few values, many planes equal to each other."""
    monkeypatch.setattr(protocol_module, "PLANE_VALUES", values)
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 3, (11, 50, 41), generator=generator) / 2
    scores[7] = scores[2]
    for size in ((90, 70), (50, 41), (31, 140)):
        whole = torch.nn.functional.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]
        best, winner = upsample_argmax(scores, size)
        assert torch.equal(best, whole.max(dim=0).values)
        assert torch.equal(winner, whole.argmax(dim=0))


@pytest.mark.parametrize("batch", [1, 2, 100])
def test_results_do_not_depend_on_the_batch_of_windows(tmp_path: Path, batch: int) -> None:
    write_voc(tmp_path, count=3)
    items = list_items(BENCHMARKS["voc21"], tmp_path)
    protocol = protocol_of(CONFIG, "voc21")
    one = score_items(RandomLabels(), protocol, items, CONFIG, PLAIN)
    other = score_items(RandomLabels(), protocol, items, replace(CONFIG, window_batch=batch), PLAIN)
    np.testing.assert_array_equal(one.counts, other.counts)
    np.testing.assert_array_equal(one.joint, other.joint)


@needs(MASKS)
def test_real_masks_are_read_and_drawn() -> None:
    ade, voc = MASKS / "ade20k", MASKS / "voc2012"
    pairs = [
        *((BENCHMARKS["ade20k"], path, ade / "annotations" / f"{path.stem}.png") for path in (ade / "images").glob("*.jpg")),
        *((BENCHMARKS["voc21"], path, path.with_suffix(".png")) for path in voc.glob("*.jpg")),
    ]
    assert len(pairs) == 4
    for benchmark, path, mask in pairs:
        image = read_image(path)
        label = read_label(benchmark, Item(path.stem, path, mask), (image.shape[0], image.shape[1]))
        assert set(np.unique(label)) <= {*range(len(benchmark.names)), 255}
        assert len(np.unique(label)) > 1
        drawn = overlay(image, label, palette(len(benchmark.names)))
        assert (drawn[label == 255] == image[label == 255]).all()
        assert (drawn[label != 255] != image[label != 255]).any()
        right = boundary_confusion(label, label, len(benchmark.names))
        assert boundary_iou(right) == 100.0


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (30, 40)])
def test_pictures_of_any_shape_stay_pictures(size: tuple[int, int]) -> None:
    drawn = compose([np.zeros((*size, 3), np.uint8)] * 3, ["image", "truth", "prediction"], [("cat", palette(1)[0])], "title")
    assert 60 < drawn.width < 4 * PANORAMA
    assert 60 < drawn.height < 600  # a panorama is as low as it is wide
