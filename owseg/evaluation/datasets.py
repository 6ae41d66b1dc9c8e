"""The benchmarks as data: where their images and labels lie, and how labels are encoded.

Eight are those of TCL's unified protocol. The others are parts of them, as zero-shot segmentation keeps them.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from owseg import InputError

IGNORE = 255
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, MemoryError, RuntimeError, Image.DecompressionBombError)
"""What Pillow and its decoders raise for files that they cannot decode (RuntimeError: AVIF)."""


class UnreadableError(InputError):
    """A file that is there and cannot be decoded: the one fault that `evaluate.unreadable=skip` passes over."""


def read_names(path: Path) -> tuple[str, ...]:
    """Class names, one a line in label order. Spaces count: mmsegmentation's ADE20K has a class "bed " that must stay so.

    Raises InputError where the file is no text in UTF-8.
    """
    try:
        return tuple(line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except ValueError as error:
        raise InputError(f"{path}: cannot be read ({error}); write class names in UTF-8, one a line") from error


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
    count: int
    """Images of the official set."""
    obtain: str
    """Where the images come from, and the labels unless `convert` says so; ROOT stands for the folder that holds all sets."""
    convert: str = ""
    """The command that makes the label maps from their official source; empty = they are used as published."""


@dataclass(frozen=True, kw_only=True)
class EvalDataset:
    """One evaluation set."""

    name: str
    """Name in configs, results and MLflow."""
    names: tuple[str, ...]
    """mmsegmentation's class names in label order, verbatim; where `background` is set the first is "background".

    All of them compete for each pixel, and pixels of no class among them are ignored.
    """
    files: Files
    background: bool = False
    """Whether label 0 is a background class that is predicted and scored."""
    reduce_zero: bool = False
    """Whether label 0 is ignored and label k means class k - 1."""
    base: "EvalDataset | None" = None
    """The benchmark whose files and labels these are, where `names` are some of its classes or all."""
    unseen: tuple[str, ...] = ()
    """The classes that are scored, where not all of `names` are."""

    @property
    def scored(self) -> list[int]:
        """Labels of the classes that mIoU and the other scores are over."""
        return [label for label, name in enumerate(self.names) if not self.unseen or name in self.unseen]

    @property
    def whole(self) -> "EvalDataset":
        """The one of the eight that this is a part of, or itself."""
        return self if self.base is None else self.base.whole


_VOC = Files(
    images="VOCdevkit/VOC2012/JPEGImages/{id}.jpg",
    labels="VOCdevkit/VOC2012/SegmentationClass/{id}.png",
    split="VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt",
    count=1449,
    obtain="unpack PASCAL VOC 2012's VOCtrainval_11-May-2012.tar in ROOT",
)
_CONTEXT = Files(
    images="VOCdevkit/VOC2010/JPEGImages/{id}.jpg",
    labels="VOCdevkit/VOC2010/SegmentationClassContext/{id}.png",
    split="VOCdevkit/VOC2010/ImageSets/SegmentationContext/val.txt",
    count=5104,  # of the public lists and the detail annotations; papers write 5,105
    obtain="unpack PASCAL VOC 2010's VOCtrainval_03-May-2010.tar in ROOT",
    convert="python pipelines/convert.py context trainval_merged.json ROOT",
)
_COCO_OBJECT = Files(
    images="coco_stuff164k/images/val2017/*.jpg",
    labels="coco_stuff164k/annotations/val2017/{id}_instanceTrainIds.png",
    count=5000,
    obtain="unpack COCO's val2017.zip in ROOT/coco_stuff164k/images, or link the folder val2017 there",
    convert="python pipelines/convert.py coco STUFFTHINGMAPS ROOT",
)
_COCO_STUFF = replace(_COCO_OBJECT, labels="coco_stuff164k/annotations/val2017/{id}_labelTrainIds.png")
_CITYSCAPES = Files(
    images="cityscapes/leftImg8bit/val/*/*_leftImg8bit.png",
    labels="cityscapes/gtFine/val/{folder}/{id}_gtFine_labelTrainIds.png",
    count=500,
    obtain="unpack Cityscapes' leftImg8bit_trainvaltest.zip in ROOT/cityscapes, or link the folder leftImg8bit there",
    convert="python pipelines/convert.py cityscapes GTFINE ROOT",
)
_ADE20K = Files(
    images="ade/ADEChallengeData2016/images/validation/*.jpg",
    labels="ade/ADEChallengeData2016/annotations/validation/{id}.png",
    count=2000,
    obtain="unpack ADEChallengeData2016.zip of the MIT scene parsing benchmark in ROOT/ade",
)
_THINGS = ("background", *_NAMES["coco_stuff"][:80])

BENCHMARKS: dict[str, EvalDataset] = {
    benchmark.name: benchmark
    for benchmark in (
        EvalDataset(name="voc21", names=_NAMES["voc21"], files=_VOC, background=True),
        EvalDataset(name="voc20", names=_NAMES["voc21"][1:], files=_VOC, reduce_zero=True),
        EvalDataset(name="context60", names=_NAMES["context60"], files=_CONTEXT, background=True),
        EvalDataset(name="context59", names=_NAMES["context60"][1:], files=_CONTEXT, reduce_zero=True),
        EvalDataset(name="coco_object", names=_THINGS, files=_COCO_OBJECT, background=True),
        EvalDataset(name="coco_stuff", names=_NAMES["coco_stuff"], files=_COCO_STUFF),
        EvalDataset(name="cityscapes", names=_NAMES["cityscapes"], files=_CITYSCAPES),
        EvalDataset(name="ade20k", names=_NAMES["ade20k"], files=_ADE20K, reduce_zero=True),
    )
}


def _subset(name: str, base: EvalDataset, names: tuple[str, ...], unseen: tuple[str, ...] = ()) -> EvalDataset:
    return replace(base, name=name, base=base, names=names, unseen=unseen)


_CONTEXT33 = _subset("context33", BENCHMARKS["context59"], _NAMES["context33"])

SUBSETS: dict[str, EvalDataset] = {
    benchmark.name: benchmark
    for benchmark in (
        _subset("voc_unseen", BENCHMARKS["voc20"], _NAMES["voc_unseen"]),
        _subset("voc_unseen_all", BENCHMARKS["voc20"], BENCHMARKS["voc20"].names, _NAMES["voc_unseen"]),
        _CONTEXT33,
        _subset("context_unseen", _CONTEXT33, _NAMES["context_unseen"]),
        _subset("context_unseen_all", _CONTEXT33, _CONTEXT33.names, _NAMES["context_unseen"]),
        _subset("coco_stuff_unseen", BENCHMARKS["coco_stuff"], _NAMES["coco_stuff_unseen"]),
        _subset("coco_stuff_unseen_all", BENCHMARKS["coco_stuff"], _NAMES["coco_stuff"], _NAMES["coco_stuff_unseen"]),
    )
}
"""Rows of the zero-shot literature (CaGNet's and SPNet's splits), by which ViL-Seg was published.

The unseen classes compete among themselves. In the rows that end with "all" they compete with the seen ones too, whose pixels
then count: where they are taken for an unseen class, its union grows.
"""

DATASETS = BENCHMARKS | SUBSETS


def averaged(names: Sequence[str]) -> list[str]:
    """Those of `names` that the table's average is over: the unified protocol's, or all where none of them is asked for."""
    return [name for name in names if name in BENCHMARKS] or [*names]


class Item(NamedTuple):
    """One image of a benchmark and its label map."""

    id: str
    image: Path
    label: Path


def list_items(benchmark: EvalDataset, root: Path) -> list[Item]:
    """The items of a benchmark in a stable order. Raises InputError that names the first missing file."""
    items = find_items(benchmark, root)
    for item in items:
        if not item.image.is_file():
            raise InputError(f"{benchmark.name}: {item.image} is missing; {images_from(benchmark, root)}")
        if not item.label.is_file():
            raise InputError(f"{benchmark.name}: {item.label} is missing; {labels_from(benchmark, root)}")
    return items


def find_items(benchmark: EvalDataset, root: Path) -> list[Item]:
    """The items that the split file lists or the images' glob finds; their files may be missing.

    Raises InputError where there is no split file, or no item.
    """
    files = benchmark.files
    if files.split:
        split = root / files.split
        if not split.is_file():
            raise InputError(
                f"{benchmark.name}: {split} is missing; evaluate.root must hold {files.split}: {labels_from(benchmark, root)}"
            )
        # Some published lists give a path in front of the id, or a label path behind it.
        lines = split.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        ids = dict.fromkeys(Path(line.split()[0]).stem for line in lines if line.strip())  # an id given twice counts once
        items = [_item(benchmark, root, id_, root / files.images.format(id=id_), "") for id_ in ids]
    else:
        suffix = files.images.rsplit("*", 1)[1]
        paths = sorted(root.glob(files.images))
        items = [_item(benchmark, root, path.name.removesuffix(suffix), path, path.parent.name) for path in paths]
    if not items:
        what = files.split or files.images
        raise InputError(f"{benchmark.name}: no images; evaluate.root must hold {what}: {images_from(benchmark, root)}")
    return items


def images_from(benchmark: EvalDataset, root: Path) -> str:
    """What to do where images are missing."""
    return benchmark.files.obtain.replace("ROOT", str(root))


def labels_from(benchmark: EvalDataset, root: Path) -> str:
    """What to do where label maps are missing."""
    command = benchmark.files.convert.replace("ROOT", shlex.quote(str(root)))
    return f"run {command}" if command else images_from(benchmark, root)


def _item(benchmark: EvalDataset, root: Path, id_: str, image: Path, folder: str) -> Item:
    return Item(id_, image, root / benchmark.files.labels.format(id=id_, folder=folder))


def read_image(path: Path) -> np.ndarray:
    """RGB image [H, W, 3] uint8. Raises InputError with the file's name where it cannot be decoded.

    Pixels come as they are stored: the label maps of the benchmarks are drawn that way, so EXIF orientation is not applied.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except UNREADABLE as error:
        raise UnreadableError(f"{path}: not a readable image ({error})") from error


def read_indices(path: Path) -> np.ndarray:
    """The stored values [H, W] uint8 of a palette or grey PNG. Raises InputError for anything else."""
    try:
        with Image.open(path) as image:
            mode, values = image.mode, np.asarray(image)
    except UNREADABLE as error:
        raise UnreadableError(f"{path}: not a readable label map ({error})") from error
    if mode not in ("P", "L"):
        raise InputError(f"{path}: mode {mode}; a label map has one channel of 8 bits (palette or grey)")
    return values


def read_label(benchmark: EvalDataset, item: Item, shape: tuple[int, int]) -> np.ndarray:
    """Label map [H, W] uint8: class indices, 255 = ignored. Raises InputError for a wrong size, mode or an unknown value."""
    if benchmark.base is not None:
        table = np.full(256, IGNORE, np.uint8)
        table[[benchmark.base.names.index(name) for name in benchmark.names]] = range(len(benchmark.names))
        part: np.ndarray = table[read_label(benchmark.base, item, shape)]
        return part
    label = read_indices(item.label)
    if label.shape != shape:
        raise InputError(f"{item.label}: {label.shape} label map for an image of {shape}; they must be the same size")
    if benchmark.reduce_zero:
        # 0 becomes 255 by wrapping around, and 255 must stay what it is.
        label = np.where(label == IGNORE, IGNORE, label - np.uint8(1)).astype(np.uint8)
    unknown = label[(label >= len(benchmark.names)) & (label != IGNORE)]
    if unknown.size:
        stored = int(unknown[0]) + benchmark.reduce_zero
        raise InputError(
            f"{item.label}: label value {stored} is outside the {len(benchmark.names)} classes of {benchmark.name}"
        )
    return label
