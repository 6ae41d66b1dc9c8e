"""Eight tiny benchmarks in the folder layouts and label encodings of the real eight, five image sets in all.

Layouts and encodings: VOC 2012 and Pascal Context (palette PNGs, 0 = background, in VOC 255 = void), COCO-Stuff 164k
(`_labelTrainIds`, 255 = unlabelled; `_instanceTrainIds` for COCO-Object, 0 = everything that is no object), Cityscapes
(`_labelTrainIds`, 255 = ignored) and ADE20K (0 = ignored, classes from 1).
"""

from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt
from PIL import Image

from miniature.concepts import CONCEPTS, ID, listed
from miniature.scenes import Labels, Scene, draw_scene

VOID = 255
CITIES = ("arden", "brillmouth", "corvale")


@dataclass(frozen=True)
class Labelling:
    """One way to label an image set: concept → label, and where the label maps lie."""

    masks: str
    """Path pattern under the benchmark root; {stem} is the image's name."""
    classes: tuple[str, ...]
    """Named in label order."""
    first: int
    """The label of `classes[0]`."""
    other: int
    """The label of every concept that is not in `classes`."""
    palette: bool = False
    """Whether the PNG has the palette of VOC, or is plain grey."""
    void: bool = False
    """Whether a thin line of `VOID` is drawn around most things."""


@dataclass(frozen=True)
class ImageSet:
    """Images that one or two benchmarks share."""

    images: str
    """Path pattern under the benchmark root; the suffix is the format."""
    stem: str
    """The image's name; {index} is its number and {city} one of `CITIES`."""
    labellings: tuple[Labelling, ...]
    listing: str | None = None
    """The file that lists the stems, where the layout has one."""
    wide: bool = False
    """2:1 pictures."""
    extras: tuple[str, ...] | None = None
    """Concepts that also appear, unlabelled; None = every concept of the world."""


VOC = ("balloon", "boat", "bus", "butterfly", "car", "cat", "clock", "fish", "flower", "house", "tree", "umbrella")
CONTEXT = listed(
    "balloon, boat, bus, car, cat, fish, floor, flower, forest, grass, house, mountain, mushroom, road, sea, sky, "
    "snow, tree, wall"
)
OBJECTS = (
    *("car", "bus", "boat", "traffic light", "cat", "umbrella", "banana", "clock", "flower", "balloon", "tree", "house"),
    *("fish", "butterfly"),
)
COCO = (*OBJECTS, "floor", "forest", "grass", "mountain", "road", "sand", "sea", "sky", "snow", "wall")
CITY = ("road", "house", "wall", "traffic light", "tree", "grass", "sky", "car", "bus")
ADE = listed(
    "wall, sky, floor, tree, road, grass, house, mountain, car, sea, sand, snow, boat, flower, umbrella, clock, "
    "mushroom, banana, forest"
)

IMAGE_SETS: dict[str, ImageSet] = {
    "voc": ImageSet(
        images="VOCdevkit/VOC2012/JPEGImages/{stem}.jpg",
        stem="2012_{index:06d}",
        labellings=(
            Labelling("VOCdevkit/VOC2012/SegmentationClass/{stem}.png", VOC, first=1, other=0, palette=True, void=True),
        ),
        listing="VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt",
    ),
    "context": ImageSet(
        images="VOCdevkit/VOC2010/JPEGImages/{stem}.jpg",
        stem="2010_{index:06d}",
        labellings=(
            Labelling("VOCdevkit/VOC2010/SegmentationClassContext/{stem}.png", CONTEXT, first=1, other=0, palette=True),
        ),
        listing="VOCdevkit/VOC2010/ImageSets/SegmentationContext/val.txt",
    ),
    "coco": ImageSet(
        images="coco_stuff164k/images/val2017/{stem}.jpg",
        stem="{index:012d}",
        labellings=(
            Labelling("coco_stuff164k/annotations/val2017/{stem}_labelTrainIds.png", COCO, first=0, other=VOID),
            Labelling("coco_stuff164k/annotations/val2017/{stem}_instanceTrainIds.png", OBJECTS, first=1, other=0),
        ),
    ),
    "cityscapes": ImageSet(
        images="cityscapes/leftImg8bit/val/{city}/{stem}_leftImg8bit.png",
        stem="{city}_{index:06d}_000019",
        labellings=(Labelling("cityscapes/gtFine/val/{city}/{stem}_gtFine_labelTrainIds.png", CITY, first=0, other=VOID),),
        wide=True,
        extras=("clock", "umbrella"),
    ),
    "ade": ImageSet(
        images="ade/ADEChallengeData2016/images/validation/{stem}.jpg",
        stem="ADE_val_{index:08d}",
        labellings=(Labelling("ade/ADEChallengeData2016/annotations/validation/{stem}.png", ADE, first=1, other=0),),
    ),
}

CLASSES: dict[str, tuple[str, ...]] = {
    "voc21": ("background", *VOC),
    "voc20": VOC,
    "context60": ("background", *CONTEXT),
    "context59": CONTEXT,
    "coco_object": ("background", *OBJECTS),
    "coco_stuff": COCO,
    "cityscapes": CITY,
    "ade20k": ADE,
}
"""Dataset name → class names in label order. The sets with a background open with it."""

_UNSEEN = {
    "voc_unseen": ("bus", "fish", "tree"),
    "context_unseen": ("cat", "grass", "house"),
    "coco_stuff_unseen": ("boat", "umbrella", "fish", "mountain", "road", "snow"),
}
SUBSETS: dict[str, tuple[str, ...]] = {
    "context33": tuple(name for name in CONTEXT if name in VOC or name in ("grass", "mountain", "road", "sky")),
    **{f"{name}{rivals}": classes for name, classes in _UNSEEN.items() for rivals in ("", "_all")},
}
"""Dataset name → the classes of a benchmark that its rows of the zero-shot literature keep or score; a quarter is unseen."""


def draw_item(rng: Random, root: Path, name: str, index: int, images: int, size: int) -> list[Path]:
    """Draw image `index` of the `images` of an image set, and its label maps, under `root`; returns the files."""
    image_set = IMAGE_SETS[name]
    classes = list(dict.fromkeys(label for labelling in image_set.labellings for label in labelling.classes))
    Random(name).shuffle(classes)
    per_image = ceil(len(classes) / images)  # every class comes up, however few the images
    must = {ID[classes[(index * per_image + step) % len(classes)]] for step in range(per_image)}
    extras = image_set.extras
    choice = range(len(CONCEPTS)) if extras is None else sorted(ID[concept] for concept in (*classes, *extras))
    scene = draw_scene(rng, picture_size(rng, size, wide=image_set.wide), must=sorted(must), choice=choice)

    city = CITIES[index % len(CITIES)]
    stem = image_set.stem.format(index=index + 1, city=city)
    path = root / image_set.images.format(stem=stem, city=city)
    files = [path]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jpg":
        scene.image.save(path, quality=92)
    else:
        scene.image.save(path)
    for labelling in image_set.labellings:
        mask = root / labelling.masks.format(stem=stem, city=city)
        mask.parent.mkdir(parents=True, exist_ok=True)
        _encode(labelling, scene, rng).save(mask)
        files.append(mask)
    return files


def write_lists(root: Path, images: int) -> list[Path]:
    """Write the class names of every dataset and the split lists of those that have one; returns the files."""
    files = {f"classes/{dataset}.txt": names for dataset, names in (CLASSES | SUBSETS).items()}
    for image_set in IMAGE_SETS.values():
        if image_set.listing:
            files[image_set.listing] = tuple(image_set.stem.format(index=index + 1) for index in range(images))
    for relative, lines in files.items():
        path = root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return [root / relative for relative in files]


def picture_size(rng: Random, size: int, *, wide: bool = False) -> tuple[int, int]:
    """Width and height around `size`: 96 to 128 for 112, upright and lying; `wide` ones are 2:1."""
    low, high = round(size * 6 / 7), round(size * 8 / 7)
    if wide:
        height = rng.randint(low, size)
        return 2 * height, height
    return rng.randint(low, high), rng.randint(low, high)


def _encode(labelling: Labelling, scene: Scene, rng: Random) -> Image.Image:
    table = np.full(len(CONCEPTS), labelling.other, np.uint8)
    for offset, name in enumerate(labelling.classes):
        table[ID[name]] = labelling.first + offset
    labels = table[scene.labels]
    if labelling.void:
        labels[_outlines(scene.instances, rng)] = VOID
    image = Image.fromarray(labels)
    if labelling.palette:
        image.putpalette(voc_palette())
    return image


def _outlines(instances: Labels, rng: Random) -> npt.NDArray[np.bool_]:
    """A thin line around most things [height, width]."""
    drawn = np.array([False] + [rng.random() < 0.8 for _ in range(int(instances.max()))])
    line = np.zeros(instances.shape, bool)
    for here, there in (((slice(1, None),), (slice(-1),)), ((slice(None), slice(1, None)), (slice(None), slice(-1)))):
        edge = instances[here] != instances[there]
        line[here] |= edge & (drawn[instances[here]] | drawn[instances[there]])
    return line


@cache
def voc_palette() -> bytes:
    """VOC's colour map: the bits of the label are dealt out to red, green and blue, high bits first."""
    palette = bytearray()
    for label in range(256):
        for channel in range(3):
            palette.append(sum(((label >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3)))
    return bytes(palette)
