"""COCO-Stuff 164k and COCO-Object label maps from COCO-Stuff's pixel maps, or COCO-Object alone from panoptic annotations.

The pixel maps ("stuffthingmaps") hold COCO's category id - 1: things 0..89, stuff 91..181, of which eleven ids are unused,
and 255 for unlabelled pixels. COCO-Stuff numbers the used ones consecutively and keeps 255 (mmsegmentation); COCO-Object
numbers the things from 1 and makes everything else background, unlabelled pixels too, so that nothing is ignored (TCL).

The panoptic annotations settle overlaps in their own way, so their COCO-Object maps are not those that published numbers were
measured on. They merge the 91 stuff classes into 53, so no map of 171 classes can be made of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from owseg import InputError
from owseg.evaluation.convert import Plan, lookup, read_json, relabel
from owseg.evaluation.datasets import IGNORE, official_files, read_indices
from owseg.photos import UNREADABLE, open_image

UNUSED = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
"""Ids of the pixel maps that no category has."""
USED = tuple(id_ for id_ in range(182) if id_ not in UNUSED)
THINGS = tuple(id_ for id_ in USED if id_ < 90)

STUFF = lookup({id_: label for label, id_ in enumerate(USED)} | {IGNORE: IGNORE})
OBJECT = lookup(dict.fromkeys((*USED, IGNORE), 0) | {id_: label for label, id_ in enumerate(THINGS, start=1)})

OFFICIAL = {"val2017": 5000}


@dataclass(frozen=True, kw_only=True)
class StuffJob:
    """The pixel map of one image."""

    source: Path
    targets: tuple[Path, ...]
    split: str = "val2017"

    def draw(self) -> tuple[np.ndarray, np.ndarray]:
        """The COCO-Stuff and the COCO-Object map."""
        stored = read_indices(self.source)
        what = "an id of COCO-Stuff's pixel maps (0..181 but for eleven, or 255)"
        return relabel(stored, STUFF, self.source, what), relabel(stored, OBJECT, self.source, what)


def plan_stuff(source: Path, root: Path) -> Plan:
    """A job for each pixel map `val2017/*.png`; `source` is the folder that holds val2017, or val2017 itself."""
    folder = source if source.name == "val2017" else source / "val2017"
    files = sorted(file for file in folder.glob("*.png") if file.stem.isdigit())  # our own maps may lie in the same folder
    if not files:
        raise InputError(
            f"{folder} holds no pixel maps; unpack COCO-Stuff's stuffthingmaps_trainval2017.zip and name its folder"
        )
    targets = [(_target("coco_stuff", root, file.stem), _target("coco_object", root, file.stem)) for file in files]
    jobs = [StuffJob(source=file, targets=pair) for file, pair in zip(files, targets, strict=True)]
    return Plan(set="coco", jobs=jobs, official=OFFICIAL)


@dataclass(frozen=True, kw_only=True)
class PanopticJob:
    """The panoptic PNG of one image, its segments, and the size (height, width) of its photo."""

    source: Path
    segments: Mapping[int, int]
    """Segment id → COCO-Object label."""
    shape: tuple[int, int]
    targets: tuple[Path, ...]
    split: str = "val2017"

    def draw(self) -> tuple[np.ndarray]:
        """The COCO-Object map."""
        stored = segment_ids(self.source)
        if stored.shape != self.shape:
            raise InputError(f"{self.source}: {stored.shape} pixels, but its annotation says {self.shape}")
        ids, where = np.unique(stored, return_inverse=True)
        unknown = set(ids.tolist()) - self.segments.keys()
        if unknown:
            raise InputError(f"{self.source}: segment {min(unknown)} is not in its annotation")
        labels = np.array([self.segments[id_] for id_ in ids.tolist()], np.uint8)
        return (labels[where].reshape(stored.shape),)


def segment_ids(file: Path) -> np.ndarray:
    """Segment ids [H, W] int32 of a panoptic PNG (R + 256 G + 65536 B). Raises InputError if it is none."""
    try:
        with open_image(file) as image:
            mode, colours = image.mode, np.asarray(image)
    except UNREADABLE as error:
        raise InputError(f"{file}: not a readable panoptic PNG ({error})") from error
    if mode != "RGB":
        raise InputError(f"{file}: mode {mode}; a panoptic PNG is RGB")
    ids: np.ndarray = colours.astype(np.int32) @ np.array([1, 256, 65536], np.int32)
    return ids


def plan_panoptic(source: Path, root: Path) -> Plan:
    """A job for each annotation; `source` is the JSON file beside its folder of PNGs, or what holds panoptic_val2017.json."""
    file = source if source.suffix == ".json" else source / "panoptic_val2017.json"
    folder = file.with_suffix("")
    if not file.is_file() or not folder.is_dir():
        missing = folder if file.is_file() else file
        raise InputError(f"{missing} is missing; unpack COCO's panoptic_annotations_trainval2017.zip and the zips within it")
    content = read_json(file, "images", "annotations", "categories")
    try:
        labels = {category["id"]: _object_label(category) for category in content["categories"]}
        shapes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
        jobs = [_panoptic_job(annotation, labels, shapes, folder, root) for annotation in content["annotations"]]
    except (KeyError, TypeError) as error:
        raise InputError(f"{file}: not COCO's panoptic format ({type(error).__name__}: {error})") from error
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    lost = [job.source for job in jobs if not job.source.is_file()]
    if lost:
        raise InputError(f"{lost[0]} is missing, and {len(lost) - 1} more; unpack the zip of {folder.name} again")
    return Plan(set="coco_panoptic", jobs=jobs, official=OFFICIAL)


def _object_label(category: Mapping[str, Any]) -> int:
    """Stuff is background; things have the number of their category - 1 in the pixel maps."""
    raw = category["id"] - 1
    if category["isthing"] and raw not in THINGS:
        raise InputError(f"category {category['id']} ({category['name']!r}) is none of COCO's 80 things")
    return int(OBJECT[raw]) if category["isthing"] else 0


def _panoptic_job(
    annotation: Mapping[str, Any],
    labels: Mapping[int, int],
    shapes: Mapping[int, tuple[int, int]],
    folder: Path,
    root: Path,
) -> PanopticJob:
    name = Path(annotation["file_name"]).name
    segments = {0: 0} | {segment["id"]: labels[segment["category_id"]] for segment in annotation["segments_info"]}
    target = _target("coco_object", root, Path(name).stem)
    return PanopticJob(source=folder / name, segments=segments, shape=shapes[annotation["image_id"]], targets=(target,))


def _target(benchmark: str, root: Path, stem: str) -> Path:
    return root / official_files(benchmark).labels.format(id=stem)
