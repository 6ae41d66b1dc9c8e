"""The rows of the zero-shot literature: their classes, their labels, and their mIoU against the definition."""

from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.voc import CONFIG, PLAIN, RandomLabels, write_voc
from miniature.benchmarks import CLASSES, IMAGE_SETS, draw_item, write_lists
from miniature.benchmarks import SUBSETS as MINIATURE_SUBSETS
from owseg import InputError
from owseg.evaluation.check import check_benchmark
from owseg.evaluation.datasets import BENCHMARKS, DATASETS, ON_REQUEST, Item, averaged, list_items, read_image, read_label
from owseg.evaluation.inference import predict
from owseg.evaluation.metrics import boundary_iou, confusion, frequency_weighted_iou, mean_iou, pixel_accuracy
from owseg.evaluation.protocols import EvaluateConfig, protocol_of
from owseg.evaluation.scoring import report, score_items

PUBLISHED = {
    "voc_unseen": ["potted plant", "sheep", "sofa", "train", "tv/monitor"],
    "context_unseen": ["cow", "motorbike", "sofa", "cat"],
    "coco_stuff_unseen": [
        "cow", "giraffe", "suitcase", "frisbee", "skateboard", "carrot", "scissors", "cardboard", "clouds", "grass",
        "playingfield", "river", "road", "tree", "wall-concrete",
    ],
}  # fmt: skip
"""As CaGNet's split files spell them."""
SIZES = {
    "voc_unseen": (5, 5),
    "voc_unseen_all": (20, 5),
    "context33": (33, 33),
    "context_unseen": (4, 4),
    "context_unseen_all": (33, 4),
    "coco_stuff_unseen": (15, 15),
    "coco_stuff_unseen_all": (171, 15),
}
"""Row → classes that compete, classes that are scored."""


def plain(name: str) -> str:
    return name.replace(" ", "").replace("/", "")


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_unseen_classes_are_the_published_ones(name: str) -> None:
    unseen = {plain(class_) for class_ in PUBLISHED[name]}
    assert {plain(class_) for class_ in DATASETS[name].names} == unseen
    both = DATASETS[f"{name}_all"]
    assert {plain(both.names[label]) for label in both.scored} == unseen


def test_the_rows_are_parts_of_the_eight() -> None:
    assert {name: (len(row.names), len(row.scored)) for name, row in ON_REQUEST.items()} == SIZES
    assert tuple(EvaluateConfig().datasets) == tuple(BENCHMARKS)
    for row in ON_REQUEST.values():
        assert row.base is not None
        assert set(row.names) <= set(row.base.names)
        assert BENCHMARKS[row.whole.name].files == row.files
    others = {"sky", "grass", "ground", "road", "building", "tree", "water", "mountain", "wall", "floor", "track", "keyboard"}
    voc = {"table" if name == "diningtable" else name for name in BENCHMARKS["voc20"].names}
    assert set(DATASETS["context33"].names) == voc | others | {"ceiling"}


def test_labels_of_other_classes_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "label.png"
    names = BENCHMARKS["voc20"].names
    stored = [0, 255, *(1 + names.index(name) for name in ("sheep", "cat", "tvmonitor", "pottedplant"))]
    Image.fromarray(np.array([stored], dtype=np.uint8)).save(path)
    item = Item("x", path, path)
    assert read_label(DATASETS["voc_unseen"], item, (1, 6)).tolist() == [[255, 255, 1, 255, 4, 0]]
    kept = [255, 255, *(names.index(name) for name in ("sheep", "cat", "tvmonitor", "pottedplant"))]
    assert read_label(DATASETS["voc_unseen_all"], item, (1, 6)).tolist() == [kept]
    Image.fromarray(np.array([[21]], dtype=np.uint8)).save(path)
    with pytest.raises(InputError, match="label value 21 is outside the 20 classes of voc20"):
        read_label(DATASETS["voc_unseen"], item, (1, 1))


@pytest.mark.parametrize("name", ["voc_unseen", "voc_unseen_all"])
def test_miou_is_over_the_unseen_classes(tmp_path: Path, name: str) -> None:
    """From the definition, with the classes' names alone: what competes, which pixels count, which classes are averaged."""
    write_voc(tmp_path)
    protocol = protocol_of(CONFIG, name)
    segmenter = RandomLabels()
    score = score_items(segmenter, protocol, list_items(protocol.benchmark, tmp_path), CONFIG, PLAIN)

    all_names = list(BENCHMARKS["voc20"].names)
    unseen = list(DATASETS["voc_unseen"].names)
    rivals = unseen if name == "voc_unseen" else all_names
    assert list(protocol.queries) == rivals
    intersection, union = dict.fromkeys(unseen, 0), dict.fromkeys(unseen, 0)
    for item in list_items(DATASETS["voc20"], tmp_path):
        truth = np.asarray(Image.open(item.label)).astype(int)
        labels = predict(segmenter, read_image(item.image), segmenter.embed_classes(rivals), protocol, PLAIN).labels
        named = np.array(rivals)[labels]
        true_names = np.array(["", *all_names, *[""] * 235])[truth]
        counted = np.isin(true_names, rivals)
        for class_ in unseen:
            said, is_ = (named == class_) & counted, true_names == class_
            intersection[class_] += int((said & is_).sum())
            union[class_] += int((said | is_).sum())
    expected = 100 * np.mean([intersection[class_] / union[class_] for class_ in unseen])
    assert mean_iou(score.counts, protocol.benchmark.scored) == pytest.approx(expected, abs=1e-9)
    told = report(protocol, CONFIG, score)
    assert told["mIoU"] == pytest.approx(expected, abs=1e-9)
    assert list(told["IoU"]) == list(told["boundary_IoU_by_class"]) == unseen
    assert told["IoU"] == pytest.approx({class_: 100 * intersection[class_] / union[class_] for class_ in unseen})
    assert "threshold_sweep" not in told
    counts = score.by_image  # of which intervals are made
    assert counts.union.shape == counts.intersection.shape == (6, 5)
    assert counts.intersection.sum(axis=0).tolist() == list(intersection.values())
    assert counts.union.sum(axis=0).tolist() == list(union.values())


def test_scores_over_some_classes_by_hand() -> None:
    # Labels: 8 pixels of class 0, 4 of class 1, 2 of class 2. A pixel of class 0 that is taken for class 1 adds to its union.
    counts = np.array([[6, 2, 0], [1, 3, 0], [0, 1, 1]])
    assert mean_iou(counts, [1, 2]) == pytest.approx(100 * (3 / 7 + 1 / 2) / 2)
    assert frequency_weighted_iou(counts, [1, 2]) == pytest.approx(100 * (4 / 6 * 3 / 7 + 2 / 6 * 1 / 2))
    assert pixel_accuracy(counts, [1, 2]) == pytest.approx(100 * 4 / 6)
    boundary = np.pad(counts, (0, 1), constant_values=1)  # the last row and column: pixels inside a region
    assert boundary_iou(boundary, [1, 2]) == pytest.approx(100 * (3 / 9 + 1 / 4) / 2)
    assert mean_iou(counts, [0, 1, 2]) == mean_iou(counts)


def test_the_average_is_over_the_unified_protocol_where_any_of_it_is_asked_for() -> None:
    assert averaged(["voc_unseen", "voc20", "context33", "ade20k"]) == ["voc20", "ade20k"]
    assert averaged(["voc_unseen", "context33"]) == ["voc_unseen", "context33"]


def test_the_second_protocol_keeps_its_sizes_and_names() -> None:
    sclip = EvaluateConfig(preset="sclip")
    for name, row in ON_REQUEST.items():
        protocol, whole = protocol_of(sclip, name), protocol_of(sclip, row.whole.name)
        assert (protocol.view, protocol.softmax) == (whole.view, whole.softmax)
        assert protocol.benchmark.names == row.names
        assert set(protocol.queries) <= set(whole.queries)
    voc = protocol_of(sclip, "voc_unseen")
    assert voc.queries[-5:] == ("television monitor", "tv monitor", "monitor", "television", "screen")
    assert voc.class_of_query == (0, 1, 2, 3, 4, 4, 4, 4, 4)


def test_own_class_names_have_own_unseen_classes(tmp_path: Path) -> None:
    (tmp_path / "voc20.txt").write_text("red, crimson\ngreen\nblue\n")
    config = EvaluateConfig(classes=str(tmp_path))
    for name in ("voc_unseen", "voc_unseen_all"):
        with pytest.raises(InputError, match=rf"evaluate.classes: .*{name}\.txt is missing"):
            protocol_of(config, name)
        (tmp_path / f"{name}.txt").write_text("blue\nred\n")
    only, both = (protocol_of(config, name) for name in ("voc_unseen", "voc_unseen_all"))
    assert (only.benchmark.names, only.queries, only.class_of_query) == (("blue", "red"), ("blue", "red", "crimson"), (0, 1, 1))
    assert (both.benchmark.names, both.queries) == (("red", "green", "blue"), ("red", "crimson", "green", "blue"))
    assert (only.benchmark.scored, both.benchmark.scored) == ([0, 1], [0, 2])
    (tmp_path / "voc_unseen.txt").write_text("blue\ngren\n")
    with pytest.raises(InputError, match=r"voc_unseen\.txt: 'gren' is no class of voc20 \(did you mean 'green'\?\)"):
        protocol_of(config, "voc_unseen")


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image sets of the miniature world that have such rows."""
    root = tmp_path_factory.mktemp("benchmarks")
    for name in ("voc", "context", "coco"):
        assert name in IMAGE_SETS
        for index in range(10):
            draw_item(Random(f"{name}/{index}"), root, name, index, 10, 64)
    write_lists(root, 10)
    return root


@pytest.mark.parametrize("name", ON_REQUEST)
def test_the_miniature_world_has_the_rows_too(miniature: Path, name: str) -> None:
    assert MINIATURE_SUBSETS.keys() == ON_REQUEST.keys()
    config = EvaluateConfig(classes=str(miniature / "classes"))
    benchmark = protocol_of(config, name).benchmark
    assert set(benchmark.names) < set(CLASSES[benchmark.whole.name]) or name.endswith("_all")
    assert check_benchmark(benchmark, miniature).verdict == "OK"
    counts = np.zeros((len(benchmark.names),) * 2, np.int64)
    for item in list_items(benchmark, miniature):
        label = read_label(benchmark, item, read_image(item.image).shape[:2])
        counts += confusion(label, label, len(benchmark.names))
    assert np.diagonal(counts).all()  # every class occurs


def test_a_row_competes_with_its_own_classes_alone() -> None:
    """The same image, the same scores: a seen class that scores best is out of the one race, and wins the other."""

    class Certain(RandomLabels):
        def segment(self, image: torch.Tensor, classes: torch.Tensor, background: bool) -> torch.Tensor:
            return classes[:, 0].view(1, -1, 1, 1).expand(len(image), -1, *image.shape[-2:])

    image = np.zeros((32, 32, 3), np.uint8)
    strength = {name: float(name == "sheep") + 2 * float(name == "cat") for name in BENCHMARKS["voc20"].names}
    for name, winner in (("voc_unseen", "sheep"), ("voc_unseen_all", "cat")):
        protocol = protocol_of(CONFIG, name)
        classes = torch.tensor([[strength[query]] for query in protocol.queries])
        labels = predict(Certain(), image, classes, protocol, PLAIN).labels
        assert {protocol.benchmark.names[label] for label in np.unique(labels)} == {winner}
