"""Pascal Context label maps from Pascal in Detail's annotations, `trainval_merged.json`.

The file lists `images` (image_id, file_name, height, width, phase) and `annos_segmentation` (image_id, category_id and a
run-length mask). A map is drawn in the file's order, later masks over earlier ones, as the detail package does. Its category
ids are those of the 59 most frequent of the 459 original classes; a label is the id's position in the sorted list.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from owseg import InputError
from owseg.evaluation.convert import Plan, read_json
from owseg.evaluation.datasets import official_files
from owseg.evaluation.rle import decode

FILE = "trainval_merged.json"
# fmt: off
IDS = (
    0, 2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144, 158, 159, 162,
    187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368, 397, 415, 416,
    420, 424, 427, 440, 445, 454, 458,
)
# fmt: on
"""Category ids in label order, the background first."""
LABELS = {id_: label for label, id_ in enumerate(IDS)}

OFFICIAL = {"train": 4996, "val": 5104}


@dataclass(frozen=True, kw_only=True)
class ContextJob:
    """One image's masks in drawing order, as (label, run lengths)."""

    source: Path
    image: str
    shape: tuple[int, int]
    masks: tuple[tuple[int, Any], ...]
    targets: tuple[Path, ...]
    split: str

    def draw(self) -> tuple[np.ndarray]:
        """The label map; what no mask covers is background."""
        drawn = np.zeros(self.shape, np.uint8)
        for label, runs in self.masks:
            try:
                drawn[decode(runs, self.shape)] = label
            except InputError as error:
                raise InputError(f"{self.source}: image {self.image}: {error}") from error
        return (drawn,)


def plan_context(source: Path, root: Path) -> Plan:
    """A job for each image of train and val, and their lists; `source` is the JSON file or the folder that holds it."""
    file = source if source.suffix == ".json" else source / FILE
    if not file.is_file():
        raise InputError(f"{file} is missing; it is the annotation file of the Pascal in Detail challenge (detail API)")
    content = read_json(file, "images", "annos_segmentation")
    try:
        masks = defaultdict(list)
        for annotation in content["annos_segmentation"]:
            masks[annotation["image_id"]].append((_label(annotation), annotation["segmentation"]))
        jobs = [
            _job(image, tuple(masks[image["image_id"]]), file, root)
            for image in content["images"]
            if image["phase"] in OFFICIAL
        ]
    except (KeyError, TypeError) as error:
        raise InputError(f"{file}: not the detail annotations' format ({type(error).__name__}: {error})") from error
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    lists = {
        _list_of(split, root): "".join(f"{stem}\n" for stem in sorted(job.image for job in jobs if job.split == split))
        for split in OFFICIAL
    }
    return Plan(set="context", jobs=jobs, official=OFFICIAL, lists=lists)


def _label(annotation: Mapping[str, Any]) -> int:
    if annotation["category_id"] not in LABELS:
        raise InputError(f"category {annotation['category_id']} of image {annotation['image_id']} is none of the 59 classes")
    return LABELS[annotation["category_id"]]


def _job(image: Mapping[str, Any], masks: tuple[tuple[int, Any], ...], file: Path, root: Path) -> ContextJob:
    stem = Path(image["file_name"]).stem
    target = root / official_files("context60").labels.format(id=stem)
    shape = (image["height"], image["width"])
    return ContextJob(source=file, image=stem, shape=shape, masks=masks, targets=(target,), split=image["phase"])


def _list_of(split: str, root: Path) -> Path:
    return (root / official_files("context60").split).with_name(f"{split}.txt")
