"""The evaluator against the definition: readers, protocol arithmetic, and an independent mIoU."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from helpers.tiny import blocks
from helpers.voc import CONFIG, PLAIN, RandomLabels, write_voc
from owseg import InputError
from owseg.evaluation.datasets import BENCHMARKS, Item, list_items, read_image, read_label
from owseg.evaluation.inference import normalise, predict, resize, slide, window_starts
from owseg.evaluation.metrics import class_iou, confusion, mean_iou
from owseg.evaluation.protocols import EvaluateConfig, View, protocol_of
from owseg.evaluation.scoring import Score, best_median_worst, report, score_items
from owseg.normalisation import Normalisation
from owseg.photos import read_photo

VIEW = View(short_side=32, window=32, stride=16)


class Brightest:
    """A segmenter whose classes are the colour channels: red, green, blue."""

    background_threshold = 0.3

    def embed_classes(self, names: list[str]) -> torch.Tensor:
        return torch.eye(3)[: len(names)]

    def segment(self, image: torch.Tensor, classes: torch.Tensor, background: bool) -> torch.Tensor:
        assert not background  # the evaluator compares with a constant plane and does not ask for it
        return torch.einsum("bchw,nc->bnhw", image, classes)


def predict_by_definition(segmenter: RandomLabels, image: np.ndarray, classes: torch.Tensor, background: bool) -> torch.Tensor:
    """Every plane at the image's own size, one window at a time (sections 5.2 to 5.4 of the protocol)."""
    height, width = image.shape[:2]
    factor = min(146 / max(height, width), 32 / min(height, width))
    scaled = cv2.resize(image, (int(width * factor + 0.5), int(height * factor + 0.5)), interpolation=cv2.INTER_LINEAR)
    tensor = torch.from_numpy(scaled.astype(np.float32) / 255).permute(2, 0, 1)
    h, w = tensor.shape[1:]
    total = torch.zeros(len(classes) + background, h, w)
    counts = torch.zeros(h, w)
    for row in range(max(h - 32 + 15, 0) // 16 + 1):
        for column in range(max(w - 32 + 15, 0) // 16 + 1):
            bottom, right = min(16 * row + 32, h), min(16 * column + 32, w)
            top, left = max(bottom - 32, 0), max(right - 32, 0)
            crop = tensor[None, :, top:bottom, left:right]
            total[:, top:bottom, left:right] += segmenter.segment(crop, classes, background)[0]
            counts[top:bottom, left:right] += 1
    return torch.nn.functional.interpolate((total / counts)[None], (height, width), mode="bilinear", align_corners=False)[0]


@pytest.mark.parametrize("name", ["voc21", "voc20"])
def test_miou_equals_an_independent_computation(tmp_path: Path, name: str) -> None:
    """From the definition, over a whole data set: intersections and unions summed, then divided, then averaged."""
    write_voc(tmp_path)
    benchmark = BENCHMARKS[name]
    protocol = protocol_of(CONFIG, name)
    segmenter = RandomLabels()
    items = list_items(benchmark, tmp_path)

    score = score_items(segmenter, protocol, items, CONFIG, PLAIN)

    classes = segmenter.embed_classes(benchmark.names[1:] if benchmark.background else benchmark.names)
    intersection, union = [0] * len(benchmark.names), [0] * len(benchmark.names)
    sizes = [resize(read_image(item.image), protocol.view).shape for item in items]
    assert sizes[0][:2] == (24, 146)  # beyond an aspect of 4.57 the long side decides
    assert all(min(height, width) == 32 for height, width, _ in sizes[1:])
    for item in items:
        image = np.asarray(Image.open(item.image).convert("RGB"))
        truth = np.asarray(Image.open(item.label)).astype(int)
        if benchmark.reduce_zero:
            truth = np.where((truth == 0) | (truth == 255), 255, truth - 1)
        scores = predict_by_definition(segmenter, image, classes, benchmark.background)
        prediction = scores.argmax(dim=0).numpy()
        for c in range(len(benchmark.names)):
            said, is_ = (prediction == c) & (truth != 255), truth == c
            intersection[c] += int((said & is_).sum())
            union[c] += int((said | is_).sum())
    expected = 100 * np.mean([i / u for i, u in zip(intersection, union, strict=True) if u])
    assert mean_iou(score.counts) == pytest.approx(expected, abs=1e-9)


def score_of(counts: np.ndarray, images: dict[str, float] | None = None) -> Score:
    return replace(Score.empty(len(counts), len(counts), None, (), oracle=False), counts=counts, images=images or {})


def test_classes_that_never_occur_are_left_out() -> None:
    counts = np.zeros((4, 4), dtype=np.int64)
    counts[0, 0], counts[1, 0], counts[1, 1] = 6, 2, 2
    iou = class_iou(counts)
    assert iou[:2] == pytest.approx([6 / 8, 2 / 4])
    assert np.isnan(iou[2:]).all()
    assert mean_iou(counts) == pytest.approx(62.5)


def test_ignored_pixels_count_nowhere() -> None:
    label = np.array([[0, 1], [255, 255]], dtype=np.uint8)
    assert confusion(np.array([[0, 1], [1, 0]]), label, 2).tolist() == [[1, 0], [0, 1]]


def test_counts_stay_exact_beyond_single_precision() -> None:
    counts = np.full((2, 2), 2**24 + 1, dtype=np.int64)
    total = score_of(counts) + score_of(np.ones((2, 2), dtype=np.int64))
    assert total.counts[0, 0] == 2**24 + 2


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 640), (448, 597)), ((200, 1000), (410, 2048)), ((1024, 2048), (448, 896)), ((100, 100), (448, 448))],
)
def test_resize_is_mmcvs_rescale(size: tuple[int, int], expected: tuple[int, int]) -> None:
    """factor = min(2048 / long, 448 / short), sides rounded half up: beyond an aspect of 4.57 the long side decides."""
    view = protocol_of(EvaluateConfig(), "voc21").view
    assert resize(np.zeros((*size, 3), dtype=np.uint8), view).shape[:2] == expected


@pytest.mark.parametrize(
    ("length", "starts"), [(448, [0]), (300, [0]), (449, [0, 1]), (597, [0, 149]), (672, [0, 224]), (896, [0, 224, 448])]
)
def test_windows_end_at_the_border(length: int, starts: list[int]) -> None:
    assert list(window_starts(length, 448, 224)) == starts


def test_overlapping_windows_are_averaged() -> None:
    """Against a loop over pixels: each pixel's score is the mean over the windows that hold it."""

    class Position:
        def segment(self, image: torch.Tensor, classes: torch.Tensor, background: bool) -> torch.Tensor:
            ramp = torch.arange(image.shape[-1], dtype=torch.float32).expand(len(image), 1, image.shape[-2], -1)
            return ramp.clone()

        def embed_classes(self, names: list[str]) -> torch.Tensor:
            return torch.zeros(len(names), 1)

    score = slide(Position(), torch.zeros(3, 32, 70), torch.zeros(1, 1), False, VIEW)[0]
    for x in range(70):
        inside = [x - start for start in window_starts(70, 32, 16) if start <= x < start + 32]
        assert score[:, x].tolist() == pytest.approx([sum(inside) / len(inside)] * 32)


def test_labels_are_read_as_classes(tmp_path: Path) -> None:
    """With reduced zero: 0 is ignored, k means k - 1, and 255 stays ignored."""
    path = tmp_path / "label.png"
    Image.fromarray(np.array([[0, 1, 150, 255]], dtype=np.uint8)).save(path)
    item = Item("x", path, path)
    assert read_label(BENCHMARKS["ade20k"], item, (1, 4)).tolist() == [[255, 0, 149, 255]]
    with pytest.raises(InputError, match="150 is outside"):
        read_label(BENCHMARKS["voc21"], item, (1, 4))
    with pytest.raises(InputError, match="same size"):
        read_label(BENCHMARKS["ade20k"], item, (2, 4))


def test_background_wins_where_nothing_is_sure(tmp_path: Path) -> None:
    dark, red = np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 255
    (tmp_path / "voc21.txt").write_text("background\nred\ngreen\nblue\n")
    protocol = protocol_of(replace(CONFIG, classes=str(tmp_path)), "voc21")
    predictions = [predict(Brightest(), image, torch.eye(3), protocol, PLAIN).labels for image in (dark, red)]
    assert predictions[0].max() == 0
    assert predictions[1].min() == predictions[1].max() == 1


def test_normalise_uses_mean_and_deviation() -> None:
    tensor = normalise(np.full((1, 1, 3), 255, np.uint8), Normalisation(mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0)))
    assert tensor.flatten().tolist() == pytest.approx([1.0, 3.0, 0.5])


def test_a_missing_split_and_a_missing_label_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"val\.txt"):
        list_items(BENCHMARKS["voc21"], tmp_path)
    write_voc(tmp_path)
    (tmp_path / "VOCdevkit/VOC2012/SegmentationClass/2007_000003.png").unlink()
    with pytest.raises(InputError, match=r"2007_000003\.png is missing"):
        list_items(BENCHMARKS["voc21"], tmp_path)


def test_a_truncated_image_is_named(tmp_path: Path) -> None:
    write_voc(tmp_path)
    item = list_items(BENCHMARKS["voc21"], tmp_path)[2]
    item.image.write_bytes(item.image.read_bytes()[:100])
    with pytest.raises(InputError, match=item.image.name):
        score_items(RandomLabels(), protocol_of(CONFIG, "voc21"), [item], CONFIG, PLAIN)


def test_lists_with_paths_in_front_of_ids_are_read(tmp_path: Path) -> None:
    write_voc(tmp_path)
    split = tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"
    ids = split.read_text().split()
    split.write_text("".join(f"/JPEGImages/{id_}.jpg /SegmentationClass/{id_}.png\n" for id_ in ids))
    assert [item.id for item in list_items(BENCHMARKS["voc21"], tmp_path)] == ids
    split.write_bytes(b"\xef\xbb\xbf" + b"".join(id_.encode() + b"\r\n" for id_ in ids) + b"\r\n")
    assert [item.id for item in list_items(BENCHMARKS["voc21"], tmp_path)] == ids


def test_a_command_that_is_told_can_be_pasted(tmp_path: Path) -> None:
    assert BENCHMARKS["cityscapes"].files.convert(Path("/my sets")).endswith("GTFINE '/my sets'")


@pytest.mark.parametrize("suffix", [".avif", ".jp2", ".png"])
def test_a_picture_with_spoilt_bytes_is_unreadable(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"photo{suffix}"
    Image.fromarray(blocks(16, 16)).save(path)
    path.write_bytes(path.read_bytes()[:-40] + bytes(40))  # headers stay; decoders differ in what they raise
    for read in (read_image, read_photo):
        with pytest.raises(InputError, match=path.name):
            read(path)


def test_the_protocol_has_its_eight_sets() -> None:
    sizes = {name: len(benchmark.names) for name, benchmark in BENCHMARKS.items()}
    assert sizes == {
        "voc21": 21,
        "voc20": 20,
        "context60": 60,
        "context59": 59,
        "coco_object": 81,
        "coco_stuff": 171,
        "cityscapes": 19,
        "ade20k": 150,
    }
    with_background = {name for name, benchmark in BENCHMARKS.items() if benchmark.background}
    assert with_background == {"voc21", "context60", "coco_object"}
    assert "bed " in BENCHMARKS["ade20k"].names  # the official list's own trailing space


def test_best_median_and_worst_are_picked_by_score() -> None:
    images = {"a": 10.0, "b": 90.0, "c": 50.0, "d": float("nan")}
    assert best_median_worst(score_of(np.zeros((1, 1)), images)) == {"best": "b", "median": "c", "worst": "a"}


def test_a_report_lists_every_class() -> None:
    counts = np.diag([5] * 21).astype(np.int64)
    counts[3, 3] = 0
    told = report(protocol_of(CONFIG, "voc21"), CONFIG, score_of(counts, {"a": 1.0}))
    iou = told["IoU"]
    assert iou["background"] == 100.0
    assert iou["bird"] is None
