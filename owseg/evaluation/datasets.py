"""The eight benchmarks as data: where their images and labels lie, and how labels are encoded (TCL's unified protocol)."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from owseg import InputError

IGNORE = 255


def read_names(path: Path) -> tuple[str, ...]:
    """Class names, one a line in label order. Spaces count: mmsegmentation's ADE20K has a class "bed " that must stay so."""
    return tuple(line for line in path.read_text().splitlines() if line.strip())


_NAMES = {path.stem: read_names(path) for path in sorted(Path(__file__).with_name("names").glob("*.txt"))}


@dataclass(frozen=True, kw_only=True)
class Files:
    """Where images and labels lie. Paths are relative to the folder that holds all sets, in the official tools' layout."""

    images: str
    """Image path with {id}, or a glob with * where there is no split file."""
    labels: str
    """Label path with {id} (and {folder}, the folder that the image lies in)."""
    split: str = ""
    """File of image ids, one a line; empty = every image that the glob finds."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One evaluation set."""

    name: str
    """Name in configs, results and MLflow."""
    names: tuple[str, ...]
    """mmsegmentation's class names in label order, verbatim; where `background` is set the first is "background"."""
    files: Files
    background: bool = False
    """Whether label 0 is a background class that is predicted and scored."""
    reduce_zero: bool = False
    """Whether label 0 is ignored and label k means class k - 1."""


_VOC = Files(
    images="VOCdevkit/VOC2012/JPEGImages/{id}.jpg",
    labels="VOCdevkit/VOC2012/SegmentationClass/{id}.png",
    split="VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt",
)
_CONTEXT = Files(
    images="VOCdevkit/VOC2010/JPEGImages/{id}.jpg",
    labels="VOCdevkit/VOC2010/SegmentationClassContext/{id}.png",
    split="VOCdevkit/VOC2010/ImageSets/SegmentationContext/val.txt",
)
_COCO_OBJECT = Files(
    images="coco_stuff164k/images/val2017/*.jpg",
    labels="coco_stuff164k/annotations/val2017/{id}_instanceTrainIds.png",
)
_COCO_STUFF = replace(_COCO_OBJECT, labels="coco_stuff164k/annotations/val2017/{id}_labelTrainIds.png")
_CITYSCAPES = Files(
    images="cityscapes/leftImg8bit/val/*/*_leftImg8bit.png",
    labels="cityscapes/gtFine/val/{folder}/{id}_gtFine_labelTrainIds.png",
)
_ADE20K = Files(
    images="ade/ADEChallengeData2016/images/validation/*.jpg",
    labels="ade/ADEChallengeData2016/annotations/validation/{id}.png",
)
_THINGS = ("background", *_NAMES["coco_stuff"][:80])

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(name="voc21", names=_NAMES["voc21"], files=_VOC, background=True),
        Benchmark(name="voc20", names=_NAMES["voc21"][1:], files=_VOC, reduce_zero=True),
        Benchmark(name="context60", names=_NAMES["context60"], files=_CONTEXT, background=True),
        Benchmark(name="context59", names=_NAMES["context60"][1:], files=_CONTEXT, reduce_zero=True),
        Benchmark(name="coco_object", names=_THINGS, files=_COCO_OBJECT, background=True),
        Benchmark(name="coco_stuff", names=_NAMES["coco_stuff"], files=_COCO_STUFF),
        Benchmark(name="cityscapes", names=_NAMES["cityscapes"], files=_CITYSCAPES),
        Benchmark(name="ade20k", names=_NAMES["ade20k"], files=_ADE20K, reduce_zero=True),
    )
}


class Item(NamedTuple):
    """One image of a benchmark and its label map."""

    id: str
    image: Path
    label: Path


def list_items(benchmark: Benchmark, root: Path) -> list[Item]:
    """The items of a benchmark in a stable order. Raises InputError that names the first missing file."""
    if benchmark.files.split:
        split = root / benchmark.files.split
        if not split.is_file():
            raise InputError(f"{benchmark.name}: {split} is missing; evaluate.root must hold {benchmark.files.split}")
        # Some published lists give a path in front of the id, or a label path behind it.
        ids = [Path(line.split()[0]).stem for line in split.read_text().splitlines() if line.strip()]
        items = [_item(benchmark, root, id_, root / benchmark.files.images.format(id=id_), "") for id_ in ids]
    else:
        suffix = benchmark.files.images.rsplit("*", 1)[1]
        paths = sorted(root.glob(benchmark.files.images))
        items = [_item(benchmark, root, path.name.removesuffix(suffix), path, path.parent.name) for path in paths]
    if not items:
        raise InputError(
            f"{benchmark.name}: no images; evaluate.root must hold {benchmark.files.split or benchmark.files.images}"
        )
    for item in items:
        for path in (item.image, item.label):
            if not path.is_file():
                raise InputError(f"{benchmark.name}: {path} is missing")
    return items


def _item(benchmark: Benchmark, root: Path, id_: str, image: Path, folder: str) -> Item:
    return Item(id_, image, root / benchmark.files.labels.format(id=id_, folder=folder))


def read_image(path: Path) -> np.ndarray:
    """RGB image [H, W, 3] uint8. Raises InputError with the file's name where it cannot be decoded."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: not a readable image ({error})") from error


def read_label(benchmark: Benchmark, item: Item, shape: tuple[int, int]) -> np.ndarray:
    """Label map [H, W] uint8: class indices, 255 = ignored. Raises InputError for a wrong size or an unknown value."""
    try:
        with Image.open(item.label) as image:
            label = np.asarray(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{item.label}: not a readable label map ({error})") from error
    if label.shape != shape:
        raise InputError(f"{item.label}: {label.shape} label map for an image of {shape}; they must be the same size")
    if benchmark.reduce_zero:
        # 0 becomes 255 by wrapping around, and 255 must stay what it is.
        label = np.where(label == IGNORE, IGNORE, label.astype(np.uint8) - np.uint8(1)).astype(np.uint8)
    unknown = label[(label >= len(benchmark.names)) & (label != IGNORE)]
    if unknown.size:
        raise InputError(
            f"{item.label}: label value {unknown[0]} is outside the {len(benchmark.names)} classes of {benchmark.name}"
        )
    return label
