"""Decoding to 8-bit RGB, at reduced scale where that is enough, and scaling: the pixels behind `filtering.image`."""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Picture = NDArray[np.uint8]
"""RGB, [height, width, 3]."""
Size = tuple[int, int]
"""(width, height) in pixels."""

_ORIENTATION = 0x0112
# What turns the stored picture upright, by EXIF orientation; those from 5 on swap the sides.
_TURNS: dict[int, Callable[[Picture], Picture]] = {
    2: (lambda stored: cv2.flip(stored, 1)),
    3: (lambda stored: cv2.rotate(stored, cv2.ROTATE_180)),
    4: (lambda stored: cv2.flip(stored, 0)),
    5: (lambda stored: cv2.transpose(stored)),
    6: (lambda stored: cv2.rotate(stored, cv2.ROTATE_90_CLOCKWISE)),
    7: (lambda stored: cv2.flip(cv2.transpose(stored), -1)),
    8: (lambda stored: cv2.rotate(stored, cv2.ROTATE_90_COUNTERCLOCKWISE)),
}


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation of an opened file, 1 to 8; 1 (upright) also if the EXIF data make no sense."""
    if "exif" not in image.info:
        return 1
    exif = Image.Exif()
    try:
        exif.load(image.info["exif"])
        orientation = exif.get(_ORIENTATION)
    except Exception:
        # Pillow's reader raises whatever hostile data make it stumble over.
        return 1
    return orientation if orientation in _TURNS else 1


def turned(size: Size, orientation: int) -> Size:
    """A size before or after turning a picture of this EXIF orientation upright."""
    return (size[1], size[0]) if orientation >= 5 else size


def upright(stored: Picture, orientation: int) -> Picture:
    """The picture as it should be seen."""
    return _TURNS[orientation](stored) if orientation in _TURNS else stored


def decoded(image: Image.Image) -> Picture:
    """The (first) picture of an opened file as stored: 16 bits scaled to 8, transparency on white, ICC profiles ignored.

    Raises whatever Pillow raises for a file that it cannot decode.
    """
    if image.mode.startswith("I;16"):
        # Pillow would clip grey values at 255; of 16-bit colours it keeps the high byte itself.
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.stack([grey, grey, grey], axis=2)
    if image.has_transparency_data:
        image = _on_white(image)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _on_white(image: Image.Image) -> Image.Image:
    foreground = image if image.mode == "RGBA" else image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(foreground, mask=foreground)
    return white


def scaled(image: Image.Image, size: Size) -> Picture:
    """The picture of an opened file as stored, at `size`: averaged over areas to shrink, Lanczos to enlarge.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its scale as far as that leaves at least `size`. From there it is interpolated
    linearly: between 1 and 2 pixels become one, so that no pixel is left out.
    """
    full = image.size
    draft = image.draft(None, size) if full[0] >= size[0] and full[1] >= size[1] else None
    stored = decoded(image)
    if image.size == size:
        return stored
    if image.size[0] < size[0] or image.size[1] < size[1]:
        return _resized(stored, size, cv2.INTER_LANCZOS4)
    across, down = (draft[1][2] / size[0], draft[1][3] / size[1]) if draft else (0.0, 0.0)
    if image.size == full or max(across, down) > 2:
        return _resized(stored, size, cv2.INTER_AREA)
    # Half of 427 pixels are 213.5, in 214: cv2.resize would take the last one for a whole and shift the picture.
    grid = np.array([[across, 0, (across - 1) / 2], [0, down, (down - 1) / 2]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    picture: Picture = cv2.warpAffine(stored, grid, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return picture


def _resized(picture: Picture, size: Size, interpolation: int) -> Picture:
    resized: Picture = cv2.resize(picture, size, interpolation=interpolation)
    return resized
