"""Pascal Context maps and run lengths, against pycocotools and VOC's class names."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from helpers.paths import MASKS, needs
from helpers.sources import Pixels, pixels_of, put_json, run_all
from owseg import InputError
from owseg.evaluation import convert_coco, convert_context
from owseg.evaluation.datasets import BENCHMARKS
from owseg.evaluation.rle import decode
from pipelines import convert


def runs_of(mask: Pixels, *, text: bool = True) -> dict[str, Any]:
    """Run lengths by pycocotools, or written out."""
    if text:
        encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        return {"size": list(mask.shape), "counts": encoded["counts"].decode()}
    counts, last = [0], False
    for value in mask.ravel(order="F").tolist():
        if value != last:
            counts.append(0)
            last = value
        counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}


def test_run_lengths_are_those_of_pycocotools() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        shape = tuple(rng.integers(1, 70, 2).tolist())
        mask = np.kron(rng.random((9, 9)) < rng.random(), np.ones((8, 8)))[: shape[0], : shape[1]] > 0
        for text in (True, False):
            assert (decode(runs_of(mask, text=text), shape) == mask).all()


@needs(MASKS)
def test_real_run_lengths_give_the_segments_of_the_panoptic_pngs() -> None:
    folder = MASKS / "coco_panoptic"
    found = {142238: 0, 439180: 0}
    for annotation in json.loads((folder / "panoptic_coco_detection_format.json").read_text())["annotations"]:
        ids = convert_coco.segment_ids(folder / "panoptic_examples" / f"{annotation['image_id']:012}.png")
        mask = decode(annotation["segmentation"], ids.shape)
        assert mask.sum() == annotation["area"]
        assert len(np.unique(ids[mask])) == 1
        assert (ids == ids[mask][0]).sum() == mask.sum()
        found[annotation["image_id"]] += 1
    assert min(found.values()) > 10


@pytest.mark.parametrize(
    "runs",
    [
        {"size": [3, 2], "counts": "1"},  # stops short: pycocotools gives stray memory
        {"size": [3, 2], "counts": "99"},  # goes on too long
        {"size": [2, 3], "counts": "6"},
        {"size": [3, 2], "counts": "zz"},
        {"size": [3, 2], "counts": ""},
        {"size": [3, 2], "counts": "\x00"},
        {"size": [3, 2], "counts": [7, -1]},
        {"size": [3, 2], "counts": [[6]]},
        {"size": [3, 2]},
        [[0, 0, 1, 1, 2, 2]],
    ],
)
def test_run_lengths_that_are_none_are_refused(runs: object) -> None:
    with pytest.raises(InputError, match="run lengths"):
        decode(runs, (3, 2))


@pytest.fixture
def detail(tmp_path: Path) -> Path:
    """Detail annotations of images: sky with a cow over it, an empty one, and one of the test set."""
    sky, cow = np.zeros((4, 5), bool), np.zeros((4, 5), bool)
    sky[:3], cow[2:, 1:3] = True, True
    images = [
        {"image_id": 2008000002, "file_name": "2008_000002.jpg", "height": 4, "width": 5, "phase": "val"},
        {"image_id": 2008000001, "file_name": "2008_000001.jpg", "height": 2, "width": 2, "phase": "train"},
        {"image_id": 2008000009, "file_name": "2008_000009.jpg", "height": 2, "width": 2, "phase": "test"},
        {"image_id": 2008000000, "file_name": "2008_000000.jpg", "height": 2, "width": 2, "phase": "val"},
    ]
    annotations = [
        {"id": 5, "image_id": 2008000002, "category_id": 360, "segmentation": runs_of(sky), "parts": []},
        {"id": 3, "image_id": 2008000002, "category_id": 98, "segmentation": runs_of(cow, text=False), "parts": []},
    ]
    return put_json(
        tmp_path / "trainval_merged.json",
        {"info": {}, "images": images, "annos_segmentation": annotations, "annos_boundary": [], "categories": [], "parts": []},
    )


def test_the_context_ids_are_in_label_order() -> None:
    assert len(convert_context.IDS) == 60 == len(BENCHMARKS["context60"].names)
    assert list(convert_context.IDS) == sorted(convert_context.IDS)
    # VOC's classes in VOC's order, under the ids of the 459 classes.
    voc = (2, 23, 25, 31, 34, 45, 59, 65, 72, 98, 397, 113, 207, 258, 284, 308, 347, 368, 416, 427)
    names = [BENCHMARKS["context60"].names[convert_context.LABELS[id_]] for id_ in voc]
    assert names == ["table" if name == "diningtable" else name for name in BENCHMARKS["voc21"].names[1:]]


def test_context_masks_are_drawn_in_order_and_listed(detail: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert.main(["context", str(detail), str(tmp_path / "root")]) == 0
    out = capsys.readouterr().out
    folder = tmp_path / "root" / "VOCdevkit" / "VOC2010"
    names = BENCHMARKS["context60"].names
    sky, cow = convert_context.LABELS[360], convert_context.LABELS[98]
    assert pixels_of(folder / "SegmentationClassContext" / "2008_000002.png") == [
        [sky, sky, sky, sky, sky],
        [sky, sky, sky, sky, sky],
        [sky, cow, cow, sky, sky],
        [0, cow, cow, 0, 0],
    ]
    assert names[cow] == "cow"
    assert names[sky] == "sky"
    assert pixels_of(folder / "SegmentationClassContext" / "2008_000001.png") == [[0, 0], [0, 0]]
    assert len(list((folder / "SegmentationClassContext").iterdir())) == 3
    assert (folder / "ImageSets/SegmentationContext/val.txt").read_text() == "2008_000000\n2008_000002\n"
    assert (folder / "ImageSets/SegmentationContext/train.txt").read_text() == "2008_000001\n"
    assert "context: val: 2 of 5104 images, 5102 not in " in out
    assert "2 of 2 images are missing, the first is " in out
    assert "VOCtrainval_03-May-2010.tar" in out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["annos_segmentation"][0].update(category_id=3),
            "category 3 of image 2008000002 is none of the 59 classes",
        ),
        (lambda c: c["annos_segmentation"][0]["segmentation"].update(counts="1"), "image 2008_000002: run lengths for"),
        (lambda c: c["images"][0].update(height=5), "image 2008_000002: run lengths for"),
        (lambda c: c.pop("annos_segmentation"), "has no 'annos_segmentation'"),
        (lambda c: c["images"][0].pop("phase"), "not the detail annotations' format (KeyError: 'phase')"),
    ],
)
def test_broken_detail_annotations_are_named(
    detail: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    content = json.loads(detail.read_text())
    change(content)
    detail.write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        run_all(convert_context.plan_context(detail, tmp_path / "root"))
    assert str(caught.value).startswith(f"{detail}: ")
    assert message in str(caught.value)
