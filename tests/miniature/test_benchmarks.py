"""Benchmarks of the generated world: masks in the real encodings."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.miniature import SMALL
from miniature.benchmarks import CITIES, CLASSES, IMAGE_SETS, VOID, voc_palette

# Benchmarks


LAYOUTS = {
    "voc21": ("VOCdevkit/VOC2012/SegmentationClass/*.png", "P", 0, True),
    "voc20": ("VOCdevkit/VOC2012/SegmentationClass/*.png", "P", 1, True),
    "context60": ("VOCdevkit/VOC2010/SegmentationClassContext/*.png", "P", 0, False),
    "context59": ("VOCdevkit/VOC2010/SegmentationClassContext/*.png", "P", 1, False),
    "coco_object": ("coco_stuff164k/annotations/val2017/*_instanceTrainIds.png", "L", 0, False),
    "coco_stuff": ("coco_stuff164k/annotations/val2017/*_labelTrainIds.png", "L", 0, True),
    "cityscapes": ("cityscapes/gtFine/val/*/*_gtFine_labelTrainIds.png", "L", 0, True),
    "ade20k": ("ade/ADEChallengeData2016/annotations/validation/*.png", "L", 1, False),
}
"""Dataset → where its masks lie, their mode, the label of the first class, and whether `VOID` may occur."""


@pytest.mark.parametrize("split", ["benchmarks", "tuning"])
@pytest.mark.parametrize("dataset", list(CLASSES))
def test_masks_follow_the_layout(world: Path, split: str, dataset: str) -> None:
    pattern, mode, first, void = LAYOUTS[dataset]
    root = world / split
    names = (root / "classes" / f"{dataset}.txt").read_text().splitlines()
    assert tuple(names) == CLASSES[dataset]
    assert (names[0] == "background") == (dataset in ("voc21", "context60", "coco_object"))
    paths = sorted(root.glob(pattern))
    assert len(paths) == (SMALL.benchmark_images if split == "benchmarks" else SMALL.tuning_images)
    values: set[int] = set()
    for path in paths:
        with Image.open(path) as mask:
            assert mask.mode == mode
            if mode == "P":
                assert bytes(mask.getpalette() or []) == voc_palette()[: len(mask.getpalette() or [])]
            values |= set(np.unique(np.asarray(mask)).tolist())
    allowed = set(range(first + len(names))) | ({VOID} if void else set())
    assert values <= allowed
    assert set(range(first, first + len(names))) <= values
    assert VOID in values or not void or split == "tuning"  # a small split may show nothing that is unlabelled


@pytest.mark.parametrize("split", ["benchmarks", "tuning"])
def test_every_mask_has_its_image_of_the_same_size(world: Path, split: str) -> None:
    root = world / split
    for image_set in IMAGE_SETS.values():
        folder, _, suffix = image_set.images.replace("{city}", "*").rpartition("{stem}")
        images = sorted(root.glob(f"{folder}*{suffix}"))
        assert len(images) == (SMALL.benchmark_images if split == "benchmarks" else SMALL.tuning_images)
        for path in images:
            stem, city = path.name.removesuffix(suffix), path.parent.name
            with Image.open(path) as image:
                assert image.mode == "RGB"
                for labelling in image_set.labellings:
                    with Image.open(root / labelling.masks.format(stem=stem, city=city)) as mask:
                        assert mask.size == image.size
                assert image.width == 2 * image.height or not image_set.wide
        if image_set.listing:
            assert (root / image_set.listing).read_text().split() == [path.stem for path in images]
    assert {path.name for path in (root / "cityscapes" / "leftImg8bit" / "val").iterdir()} == set(CITIES)


def test_coco_labels_agree_and_the_unlabelled_is_background_for_objects(world: Path) -> None:
    folder = world / "benchmarks" / "coco_stuff164k" / "annotations" / "val2017"
    objects = len(CLASSES["coco_object"]) - 1
    assert CLASSES["coco_stuff"][:objects] == CLASSES["coco_object"][1:]
    for path in sorted(folder.glob("*_labelTrainIds.png")):
        stuff = np.asarray(Image.open(path)).astype(int)
        things = np.asarray(Image.open(path.with_name(path.name.replace("label", "instance"))))
        assert np.array_equal(things, np.where(stuff < objects, stuff + 1, 0))


def test_no_benchmark_scene_is_a_captioned_one(world: Path) -> None:
    pictures = Counter(path.read_bytes() for split in ("benchmarks", "tuning") for path in (world / split).rglob("*.jpg"))
    assert set(pictures.values()) == {1}
    assert not pictures.keys() & {path.read_bytes() for path in (world / "web").rglob("*.jpg")}


def test_voc_palette_is_the_devkits() -> None:
    palette = np.frombuffer(voc_palette(), np.uint8).reshape(256, 3)
    assert palette[[0, 1, 2, 15, 20, 255]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [192, 128, 128],
        [0, 64, 128],
        [224, 224, 192],
    ]
