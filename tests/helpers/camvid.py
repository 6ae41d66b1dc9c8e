"""A folder like CamVid's: 11 classes, label 11 is void, images and label maps in two folders, and a list of some of them."""

from pathlib import Path

import numpy as np
from PIL import Image

CAMVID = ("Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist")
VOID = 11
LISTED = ("seq1/0003", "seq0/0000", "seq1/0001")


def write_camvid(root: Path, *, suffix: str = "_L.png") -> Path:
    """Four images of 6 x 8 pixels, of which three are in the list; returns `root`."""
    rng = np.random.default_rng(0)
    for number in range(4):
        id_ = f"seq{number % 2}/{number:04d}"
        for folder, ending, pixels in (
            ("images", ".png", rng.integers(256, size=(6, 8, 3))),
            ("labels", suffix, rng.integers(12, size=(6, 8))),
        ):
            path = root / folder / f"{id_}{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    (root / "names.txt").write_text("\n".join(CAMVID) + "\n")
    first, second, third = LISTED
    (root / "val.txt").write_text(f"{first}\n{second}.png\n{third} extra\n")
    return root
