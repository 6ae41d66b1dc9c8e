"""Decoding to 8-bit colours, at reduced scale where that is enough, and scaling: what `filtering.images.resize` works with."""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Picture = NDArray[np.uint8]
"""[height, width, 3], blue first as cv2 has it."""
Size = tuple[int, int]
"""(width, height) in pixels."""

_REDUCED = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}
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
    picture: Picture = cv2.cvtColor(np.asarray(image if image.mode == "RGB" else image.convert("RGB")), cv2.COLOR_RGB2BGR)
    return picture


def _on_white(image: Image.Image) -> Image.Image:
    foreground = image if image.mode == "RGBA" else image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(foreground, mask=foreground)
    return white


def is_jpeg(image: Image.Image) -> bool:
    """Whether the opened file is a JPEG."""
    return image.format == "JPEG"


def scaled(data: bytes, image: Image.Image, size: Size) -> Picture:
    """The picture of the file `data`, opened as `image`, as stored but at `size`: averaged over areas to shrink, Lanczos to
    enlarge.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its scale as far as that leaves at least `size`, and the rest of the way to it is
    only nearly an average over areas, in a third of the time.
    """
    if not is_jpeg(image):
        return _resized(decoded(image), size)
    stored, reduction = _reduced(data, image, size)
    across, down = (side / reduction / wanted for side, wanted in zip(image.size, size, strict=True))
    if min(across, down) >= 1 and 1 < max(across, down) <= 2:
        return _nearly_averaged(stored, across, down, size)
    return _resized(stored, size)


def _nearly_averaged(picture: Picture, across: float, down: float, size: Size) -> Picture:
    """`across` x `down` pixels, both between 1 and 2, made one by smoothing and linear interpolation.

    Averaging over an area of f pixels has the variance (f^2 + 1) / 12, linear interpolation that of f = 1; smoothing adds the
    rest. The grid is exact: half of 427 pixels are 213.5, in 214, of which cv2.resize would take the last for a whole.
    """
    kernel_x, kernel_y = (np.array([side, 1 - 2 * side, side]) for side in ((across**2 - 1) / 24, (down**2 - 1) / 24))
    smooth = cv2.sepFilter2D(picture, -1, kernel_x, kernel_y, borderType=cv2.BORDER_REPLICATE)
    grid = np.array([[across, 0, (across - 1) / 2], [0, down, (down - 1) / 2]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    result: Picture = cv2.warpAffine(smooth, grid, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return result


def _reduced(data: bytes, image: Image.Image, size: Size) -> tuple[Picture, int]:
    """The stored picture of a JPEG, its sides divided (and rounded up) by a reduction that leaves at least `size`."""
    smallest = min(image.size[0] // size[0], image.size[1] // size[1])
    reduction = next((reduction for reduction in _REDUCED if reduction <= smallest), 1)
    flags = _REDUCED.get(reduction, cv2.IMREAD_COLOR) | cv2.IMREAD_IGNORE_ORIENTATION
    stored: Picture | None = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if stored is None:
        return decoded(image), 1  # or Pillow tells what is wrong
    if stored.shape != (-(-image.size[1] // reduction), -(-image.size[0] // reduction), 3):
        raise ValueError("the header lies about the size")
    return stored, reduction


def _resized(picture: Picture, size: Size) -> Picture:
    height, width = picture.shape[:2]
    if (width, height) == size:
        return picture
    enlarged = width < size[0] or height < size[1]
    resized: Picture = cv2.resize(picture, size, interpolation=cv2.INTER_LANCZOS4 if enlarged else cv2.INTER_AREA)
    return resized


def cropped(picture: Picture, side: int) -> Picture:
    """The middle `side` x `side` of a picture that is at least as large."""
    top, left = (picture.shape[0] - side) // 2, (picture.shape[1] - side) // 2
    return picture[top : top + side, left : left + side]


def bordered(picture: Picture, side: int) -> Picture:
    """The picture in the middle of a white square that is at least as large."""
    down, across = side - picture.shape[0], side - picture.shape[1]
    top, left = down // 2, across // 2
    white = (255, 255, 255)
    result: Picture = cv2.copyMakeBorder(picture, top, down - top, left, across - left, cv2.BORDER_CONSTANT, value=white)
    return result
