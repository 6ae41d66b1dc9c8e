"""The benchmarks as data: where their images and labels lie, and how labels are encoded.

Eight are those of TCL's unified protocol. The others are parts of them, as zero-shot segmentation keeps them.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from owseg import InputError
from owseg.listing import is_data
from owseg.photos import UNREADABLE, open_image, reason

IGNORE = 255
WIDE = ("I", "F", "I;16", "I;16B", "I;16L")
"""Pillow's modes of more than 8 bits, which it would clip to white."""
INDEXED, IN_COLOURS = ("1", "L", "P", "I", "I;16", "I;16B"), ("RGB", "RGBA")
"""Pillow's modes of label maps with one channel, and of those in colours."""


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


class Item(NamedTuple):
    """One image of a benchmark and its label map."""

    id: str
    image: Path
    label: Path


class FilesOf(Protocol):
    """Where images and label maps lie."""

    @property
    def count(self) -> int:
        """Images of the official set; 0 = there is none."""

    def find(self, root: Path) -> list[Item]:
        """The items below a root; their files may be missing."""

    def obtain(self, root: Path) -> str:
        """What to do where images are missing."""

    def convert(self, root: Path) -> str:
        """What to do where label maps are missing."""

    def left_out(self, root: Path) -> list[str]:
        """What of the folders is not looked at, each kind counted and named in a line."""


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
    source: str
    """Where the images come from, and the labels unless `command` says so; ROOT stands for the folder that holds all sets."""
    command: str = ""
    """What makes the label maps from their official source; empty = they are used as published."""

    def find(self, root: Path) -> list[Item]:
        """The items that the split file lists or the images' glob finds. Raises InputError where there is no split file."""
        if not self.split:
            suffix = self.images.rsplit("*", 1)[1]
            paths = sorted(path for path in root.glob(self.images) if is_data(path, root))
            if not paths:
                raise InputError(f"no images; evaluate.root must hold {self.images}: {self.obtain(root)}")
            return [self._item(root, path.name.removesuffix(suffix), path, path.parent.name) for path in paths]
        split = root / self.split
        if not split.is_file():
            raise InputError(f"{split} is missing; evaluate.root must hold {self.split}: {self.convert(root)}")
        # Some published lists give a path in front of the id, or a label path behind it.
        lines = split.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        ids = dict.fromkeys(Path(line.split()[0]).stem for line in lines if line.strip())  # an id given twice counts once
        if not ids:
            raise InputError(f"no images; evaluate.root must hold {self.split}: {self.obtain(root)}")
        return [self._item(root, id_, root / self.images.format(id=id_), "") for id_ in ids]

    def obtain(self, root: Path) -> str:
        """What to do where images are missing."""
        return self.source.replace("ROOT", str(root))

    def convert(self, root: Path) -> str:
        """What to do where label maps are missing."""
        return f"run {self.command.replace('ROOT', shlex.quote(str(root)))}" if self.command else self.obtain(root)

    def left_out(self, root: Path) -> list[str]:
        """Nothing is told: official folders hold other splits and other sets' label maps."""
        return []

    def _item(self, root: Path, id_: str, image: Path, folder: str) -> Item:
        return Item(id_, image, root / self.labels.format(id=id_, folder=folder))


@dataclass(frozen=True, kw_only=True)
class EvalDataset:
    """One evaluation set."""

    name: str
    """Name in configs, results and MLflow."""
    names: tuple[str, ...]
    """mmsegmentation's class names in label order, verbatim; where `background` is set the first is "background".

    All of them compete for each pixel, and pixels of no class among them are ignored.
    """
    files: FilesOf
    background: bool = False
    """Whether label 0 is a background class that is predicted and scored."""
    reduce_zero: bool = False
    """Whether label 0 is ignored and label k means class k - 1."""
    ignore: int | None = IGNORE
    """Stored label of pixels that do not count; None = there is none."""
    colours: tuple[tuple[int, int, int], ...] = ()
    """Colour of each stored label, where label maps are in colours."""
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
    source="unpack PASCAL VOC 2012's VOCtrainval_11-May-2012.tar in ROOT",
)
_CONTEXT = Files(
    images="VOCdevkit/VOC2010/JPEGImages/{id}.jpg",
    labels="VOCdevkit/VOC2010/SegmentationClassContext/{id}.png",
    split="VOCdevkit/VOC2010/ImageSets/SegmentationContext/val.txt",
    count=5104,  # of the public lists and the detail annotations; papers write 5,105
    source="unpack PASCAL VOC 2010's VOCtrainval_03-May-2010.tar in ROOT",
    command="python pipelines/convert.py context trainval_merged.json ROOT",
)
_COCO_OBJECT = Files(
    images="coco_stuff164k/images/val2017/*.jpg",
    labels="coco_stuff164k/annotations/val2017/{id}_instanceTrainIds.png",
    count=5000,
    source="unpack COCO's val2017.zip in ROOT/coco_stuff164k/images, or link the folder val2017 there",
    command="python pipelines/convert.py coco STUFFTHINGMAPS ROOT",
)
_COCO_STUFF = replace(_COCO_OBJECT, labels="coco_stuff164k/annotations/val2017/{id}_labelTrainIds.png")
_CITYSCAPES = Files(
    images="cityscapes/leftImg8bit/val/*/*_leftImg8bit.png",
    labels="cityscapes/gtFine/val/{folder}/{id}_gtFine_labelTrainIds.png",
    count=500,
    source="unpack Cityscapes' leftImg8bit_trainvaltest.zip in ROOT/cityscapes, or link the folder leftImg8bit there",
    command="python pipelines/convert.py cityscapes GTFINE ROOT",
)
_ADE20K = Files(
    images="ade/ADEChallengeData2016/images/validation/*.jpg",
    labels="ade/ADEChallengeData2016/annotations/validation/{id}.png",
    count=2000,
    source="unpack ADEChallengeData2016.zip of the MIT scene parsing benchmark in ROOT/ade",
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

ON_REQUEST: dict[str, EvalDataset] = {
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
"""Rows that are scored where they are asked for: a new benchmark belongs here. BENCHMARKS is the unified protocol.

Those that there are come from the zero-shot literature (CaGNet's and SPNet's splits), by which ViL-Seg was published.

The unseen classes compete among themselves. In the rows that end with "all" they compete with the seen ones too, whose pixels
then count: where they are taken for an unseen class, its union grows.
"""

DATASETS = BENCHMARKS | ON_REQUEST


def official_files(name: str) -> Files:
    """Where the files of one of the eight lie, for what makes them."""
    files = BENCHMARKS[name].files
    assert isinstance(files, Files)
    return files


def averaged(names: Sequence[str]) -> list[str]:
    """Those of `names` that the table's average is over: the unified protocol's, or all where none of them is asked for."""
    return [name for name in names if name in BENCHMARKS] or [*names]


def list_items(benchmark: EvalDataset, root: Path) -> list[Item]:
    """The items of a benchmark in a stable order. Raises InputError that names the first missing file."""
    items = find_items(benchmark, root)
    files = benchmark.files
    for path, cure in (pair for item in items for pair in ((item.image, files.obtain), (item.label, files.convert))):
        if not path.is_file():
            raise InputError(f"{benchmark.name}: {path} is missing; {cure(root)}")
    return items


def find_items(benchmark: EvalDataset, root: Path) -> list[Item]:
    """The items of a benchmark; their files may be missing. Raises InputError where there is no list, or no item."""
    try:
        items = benchmark.files.find(root)
    except InputError as error:
        raise InputError(f"{benchmark.name}: {error}") from error
    if not items:
        raise InputError(f"{benchmark.name}: no images: {benchmark.files.obtain(root)}")
    return items


def read_image(path: Path) -> np.ndarray:
    """RGB image [H, W, 3] uint8. Raises InputError with the file's name where it cannot be decoded.

    Pixels come as they are stored: the label maps of the benchmarks are drawn that way, so EXIF orientation is not applied.
    """
    try:
        with open_image(path) as image:
            if image.mode in WIDE:
                raise InputError(f"{path}: mode {image.mode}; images have 8 bits a channel, so convert it first")
            return np.asarray(image.convert("RGB"))
    except UNREADABLE as error:
        raise UnreadableError(f"{path}: not a readable image ({reason(path, error)})") from error


def read_indices(path: Path) -> np.ndarray:
    """The stored values [H, W] uint8 of a palette or grey PNG. Raises InputError for anything else."""
    try:
        with open_image(path) as image:
            mode, values = image.mode, np.asarray(image)
    except UNREADABLE as error:
        raise UnreadableError(f"{path}: not a readable label map ({reason(path, error)})") from error
    if mode not in ("P", "L"):
        raise InputError(f"{path}: mode {mode}; a label map has one channel of 8 bits (palette or grey)")
    return values


def read_stored(path: Path, colours: Sequence[tuple[int, int, int]] = ()) -> np.ndarray:
    """The labels [H, W] int64 of a map with one channel of 1, 8, 16 or 32 bits, a palette, or in the colours of labels.

    Raises InputError for anything else, and for a colour that no label has.
    """
    try:
        with open_image(path) as image:
            mode = "RGB" if colours and image.mode in ("P", "PA") else image.mode  # a palette says which colours are meant
            values = np.asarray(image.convert("RGB") if colours and mode in IN_COLOURS else image)
    except UNREADABLE as error:
        raise UnreadableError(f"{path}: not a readable label map ({reason(path, error)})") from error
    if colours and mode in IN_COLOURS:
        return _labels_of(values, colours, path)
    if mode not in INDEXED:
        hint = "; give the labels' colours, for a map in colours" if mode in IN_COLOURS else ""
        raise InputError(f"{path}: mode {mode}; a label map has one channel (palette, grey or whole numbers){hint}")
    return values.astype(np.int64)


def _labels_of(values: np.ndarray, colours: Sequence[tuple[int, int, int]], path: Path) -> np.ndarray:
    """Colours [H, W, 3] as labels [H, W]."""
    packed = values.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    known = np.array([(red << 16) + (green << 8) + blue for red, green, blue in colours])
    order = np.argsort(known)
    place = np.searchsorted(known[order], packed).clip(max=len(known) - 1)
    labels: np.ndarray = order[place]
    if (strange := packed[known[labels] != packed]).size:
        colour = tuple(int(strange[0]) >> shift & 255 for shift in (16, 8, 0))
        raise InputError(f"{path}: colour {colour} is no label's; give it a line in the list of colours")
    return labels


def read_label(benchmark: EvalDataset, item: Item, shape: tuple[int, int]) -> np.ndarray:
    """Label map [H, W] uint8: class indices, 255 = ignored. Raises InputError for a wrong size, mode or an unknown value."""
    if benchmark.base is not None:
        table = np.full(256, IGNORE, np.uint8)
        table[[benchmark.base.names.index(name) for name in benchmark.names]] = range(len(benchmark.names))
        return np.asarray(table[read_label(benchmark.base, item, shape)])
    stored = read_stored(item.label, benchmark.colours)
    if stored.shape != shape:
        raise InputError(f"{item.label}: {stored.shape} label map for an image of {shape}; they must be the same size")
    ignored = stored == benchmark.ignore if benchmark.ignore is not None else np.zeros(shape, bool)
    if benchmark.reduce_zero:
        ignored |= stored == 0
    label = np.where(ignored, 0, stored - int(benchmark.reduce_zero))
    unknown = stored[(label >= len(benchmark.names)) | (label < 0)]
    if unknown.size:
        raise InputError(
            f"{item.label}: label value {int(unknown[0])} is outside the {len(benchmark.names)} classes of {benchmark.name}"
        )
    return np.where(ignored, IGNORE, label).astype(np.uint8)
