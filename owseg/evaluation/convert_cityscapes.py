"""Cityscapes train-id maps from gtFine's label-id maps, or from its polygons where those are not there.

Polygons are drawn by cityscapesScripts' rules: in file order on unlabelled ground; deleted objects and labels with a negative
id (licence plates) not at all; a label that is unknown but for its ending "group" counts as the single thing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from owseg import InputError
from owseg.evaluation.convert import Plan, lookup, read_json, relabel
from owseg.evaluation.datasets import IGNORE, read_indices
from owseg.listing import is_data

LABELS: dict[str, tuple[int, int]] = {
    "unlabeled": (0, IGNORE),
    "ego vehicle": (1, IGNORE),
    "rectification border": (2, IGNORE),
    "out of roi": (3, IGNORE),
    "static": (4, IGNORE),
    "dynamic": (5, IGNORE),
    "ground": (6, IGNORE),
    "road": (7, 0),
    "sidewalk": (8, 1),
    "parking": (9, IGNORE),
    "rail track": (10, IGNORE),
    "building": (11, 2),
    "wall": (12, 3),
    "fence": (13, 4),
    "guard rail": (14, IGNORE),
    "bridge": (15, IGNORE),
    "tunnel": (16, IGNORE),
    "pole": (17, 5),
    "polegroup": (18, IGNORE),
    "traffic light": (19, 6),
    "traffic sign": (20, 7),
    "vegetation": (21, 8),
    "terrain": (22, 9),
    "sky": (23, 10),
    "person": (24, 11),
    "rider": (25, 12),
    "car": (26, 13),
    "truck": (27, 14),
    "bus": (28, 15),
    "caravan": (29, IGNORE),
    "trailer": (30, IGNORE),
    "train": (31, 16),
    "motorcycle": (32, 17),
    "bicycle": (33, 18),
    "license plate": (-1, -1),
}
"""Name → id and train id."""

TRAIN_IDS = lookup({id_: train_id for id_, train_id in LABELS.values() if id_ >= 0})

OFFICIAL = {"train": 2975, "val": 500, "test": 1525}
IDS, POLYGONS, TRAIN = "_gtFine_labelIds.png", "_gtFine_polygons.json", "_gtFine_labelTrainIds.png"


@dataclass(frozen=True, kw_only=True)
class CityscapesJob:
    """The label-id map or the polygons of one image."""

    source: Path
    targets: tuple[Path, ...]
    split: str

    def draw(self) -> tuple[np.ndarray]:
        """The train-id map."""
        if self.source.name.endswith(POLYGONS):
            return (draw_polygons(self.source),)
        return (relabel(read_indices(self.source), TRAIN_IDS, self.source, "one of Cityscapes' ids 0..33"),)


def draw_polygons(file: Path) -> np.ndarray:
    """The train-id map [H, W] uint8 of a polygon file. Raises InputError that names the file."""
    content = read_json(file, "imgHeight", "imgWidth", "objects")
    try:
        image = Image.new("L", (content["imgWidth"], content["imgHeight"]), IGNORE)
        pen = ImageDraw.Draw(image)
        for thing in content["objects"]:
            if not thing.get("deleted"):
                id_, train_id = _label(thing)
                if id_ >= 0:
                    pen.polygon([(x, y) for x, y in thing["polygon"]], fill=train_id)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{file}: not Cityscapes' polygon format ({type(error).__name__}: {error})") from error
    return np.asarray(image)


def _label(thing: Mapping[str, Any]) -> tuple[int, int]:
    name = thing["label"]
    if name not in LABELS:
        name = name.removesuffix("group")
    if name not in LABELS:
        raise InputError(f"label {thing['label']!r} is none of Cityscapes'")
    return LABELS[name]


def plan_cityscapes(source: Path, root: Path) -> Plan:
    """A job for each image under gtFine's splits and cities; `source` is the folder that holds gtFine, or gtFine itself."""
    folder = source if source.name == "gtFine" else source / "gtFine"
    sources: dict[Path, Path] = {}
    for suffix in (POLYGONS, IDS):  # the label-id maps come last and win: they need no drawing
        for split in OFFICIAL:
            for file in sorted(path for path in folder.glob(f"{split}/*/*{suffix}") if is_data(path, folder)):
                name = file.name.removesuffix(suffix) + TRAIN
                sources[root / "cityscapes" / "gtFine" / split / file.parent.name / name] = file
    if not sources:
        raise InputError(
            f"{folder} holds no {{split}}/{{city}}/*{IDS} or *{POLYGONS}; unpack Cityscapes' gtFine_trainvaltest.zip"
        )
    jobs = [CityscapesJob(source=file, targets=(to,), split=to.parts[-3]) for to, file in sorted(sources.items())]
    return Plan(set="cityscapes", jobs=jobs, official=OFFICIAL)
