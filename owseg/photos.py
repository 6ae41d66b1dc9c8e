"""Any picture a user may hand over, as an upright RGB array."""

import os
import stat
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from owseg import InputError

UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, MemoryError, RuntimeError, Image.DecompressionBombError)
"""What Pillow and its decoders raise for files that they cannot decode (RuntimeError: AVIF)."""

Photo = str | Path | Image.Image | np.ndarray
"""A file, a Pillow image, or an array: [H, W] grey, [H, W, 3] RGB or [H, W, 4] RGBA in uint8, or [H, W] grey in uint16."""


def read_photo(photo: Photo) -> np.ndarray:
    """RGB [H, W, 3] uint8, turned as the picture's EXIF orientation says, so that masks lie on what viewers show.

    Transparent pixels lie on white, 16 bits become 8, and of an animation the first frame counts. Raises InputError that
    names the file where there is no picture to be had.
    """
    if isinstance(photo, np.ndarray):
        photo = _from_array(photo)
    name = "image" if isinstance(photo, Image.Image) else str(photo)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of large photos and of odd metadata; what it cannot read, it refuses
        try:
            if isinstance(photo, Image.Image):
                return np.asarray(upright(photo.copy()))
            with open_image(photo) as opened:
                return np.asarray(upright(opened))
        except FileNotFoundError:
            raise InputError(f"{name}: no such file") from None
        except UNREADABLE as error:
            raise InputError(f"{name}: not a readable image ({reason(Path(name), error)})") from error


def open_image(path: str | Path) -> Image.Image:
    """Pillow's `Image.open`, which waits for ever where a pipe has a picture's name. Raises one of UNREADABLE."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("not a regular file")
    return Image.open(path)


def reason(path: Path, error: BaseException) -> str:
    """Why a picture cannot be decoded: in one line, and plainly where its file is empty."""
    with suppress(OSError, ValueError):
        if path.is_file() and path.stat().st_size == 0:
            return "the file is empty"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def upright(image: Image.Image) -> Image.Image:
    """A Pillow image as RGB, as `read_photo` describes it; `image` itself is loaded and turned in place.

    Raises one of UNREADABLE where that cannot be done.
    """
    image.load()
    if 0 in image.size:
        raise ValueError("it has no pixels")
    with suppress(Exception):  # malformed EXIF fails in many ways; in place, pixels are turned before the rest is read
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):
        levels = np.asarray(image.convert("I")).clip(0, 65535)
        image = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("it holds floating-point numbers of unknown range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def reducible(image: Image.Image) -> bool:
    """Whether an opened photo can be decoded at 1/2, 1/4 or 1/8 by `Image.draft`, and then stands as it is stored."""
    if not isinstance(image, JpegImageFile) or len(image.tile) != 1:
        return False
    try:
        return bool(image.getexif().get(ExifTags.Base.Orientation, 1) == 1)
    except Exception:  # malformed EXIF fails in many ways
        return False


def _from_array(array: np.ndarray) -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or array.size == 0:
        raise InputError(f"image: an array of shape {array.shape}; give [H, W], [H, W, 3] or [H, W, 4] with pixels in it")
    if array.dtype != np.uint8 and (array.dtype != np.uint16 or channels != 1):
        raise InputError(f"image: an array of {array.dtype}; give uint8 in 0..255, or one channel of uint16")
    return Image.fromarray(np.ascontiguousarray(array.reshape(array.shape[:2]) if channels == 1 else array))
