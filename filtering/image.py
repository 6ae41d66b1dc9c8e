"""Bytes of any image in, a checked and resized JPEG out: the header decides before anything is decoded."""

import io
import os
import re
import threading
import warnings
from dataclasses import dataclass, field
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Literal

from PIL import Image, UnidentifiedImageError

from filtering.stage import InputError


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """Which images are good enough, and how they are stored. The resize options are img2dataset's, by its own names."""

    image_size: int = 512
    """Target in pixels: of the shorter side for keep_ratio and center_crop, else of the longer side."""
    resize_mode: Literal["no", "keep_ratio", "keep_ratio_largest", "center_crop", "border"] = "keep_ratio"
    """no, keep_ratio (shorter side to image_size), keep_ratio_largest (longer side), center_crop (square) or border (white)."""
    resize_only_if_bigger: bool = True
    """Leave smaller images at their size instead of enlarging them."""
    min_side: int = 32
    """Shortest side in pixels; less is refused as "too_small"."""
    max_aspect: float = 10.0
    """Longer side divided by shorter; more is refused as "too_elongated"."""
    max_area: int = 2**26
    """Most pixels (width times height); more is refused as "too_many_pixels" before it is decoded."""
    quality: int = 95
    """JPEG quality of the stored image, 1 to 100."""

    def __post_init__(self) -> None:
        for name in ("image_size", "min_side", "max_area"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: {getattr(self, name)} is below 1")
        if self.max_aspect < 1:
            raise InputError(f"max_aspect: {self.max_aspect} is below 1, which no image can meet")
        if not 1 <= self.quality <= 100:
            raise InputError(f"quality: {self.quality} is not between 1 and 100")


@dataclass(frozen=True, kw_only=True)
class Resized:
    """`jpeg`, `width` and `height` are there if and only if `status` is "success"; the original size if the header was legible.

    Other statuses: not_an_image, truncated, undecodable, unsupported_depth, too_many_pixels, too_small, too_elongated.
    """

    status: str
    jpeg: bytes = field(default=b"", repr=False)
    width: int | None = None
    height: int | None = None
    original_width: int | None = None
    original_height: int | None = None


# Pillow warns of many pixels when it reads a header; `max_area` decides about them.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# What browsers show and cv2 decodes.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF")
_JPEG, _PNG = b"\xff\xd8", b"\x89PNG"
_PNG_BIT_DEPTH = 24  # offset of that byte in the IHDR chunk, which the format puts first
# In scan data 0xFF is followed by 00 (stuffing), D0-D7 (restart) or FF (fill); anything else is the next marker.
_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_ONE_AT_A_TIME = threading.Lock()


class Resize:
    """Checks and resizes one image. The pixels are those of img2dataset 1.47.0's `Resizer`, the reference of the field."""

    def __init__(self, config: ImageConfig) -> None:
        self._config = config
        self._resizer = _img2dataset_resizer()(
            config.image_size, config.resize_mode, config.resize_only_if_bigger, encode_quality=config.quality
        )

    def __call__(self, data: bytes) -> Resized:
        """Resize the image file `data`. May be called from any thread; one image is resized at a time."""
        status, size = self._look(data)
        width, height = size or (None, None)
        if status == "success":
            # The Resizer points the process's stdout and stderr to /dev/null meanwhile: two at once would leave them there.
            with _ONE_AT_A_TIME:
                jpeg, new_width, new_height, _, _, error = self._resizer(io.BytesIO(data))
            if error is None:
                return Resized(
                    status="success",
                    jpeg=jpeg,
                    width=new_width,
                    height=new_height,
                    original_width=width,
                    original_height=height,
                )
            status = "undecodable"
        return Resized(status=status, original_width=width, original_height=height)

    def _look(self, data: bytes) -> tuple[str, tuple[int, int] | None]:
        """Status and (width, height) as far as the header tells."""
        try:
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                width, height = image.size
        except UnidentifiedImageError:
            return "not_an_image", None
        except Image.DecompressionBombError:
            return "too_many_pixels", None
        except Exception:
            # Pillow's readers raise whatever a hostile header makes them stumble over.
            return "undecodable", None
        return self._judge(data, width, height), (width, height)

    def _judge(self, data: bytes, width: int, height: int) -> str:
        if width * height > self._config.max_area:
            return "too_many_pixels"
        if min(width, height) < self._config.min_side:
            return "too_small"
        if max(width, height) > self._config.max_aspect * min(width, height):
            return "too_elongated"
        if data.startswith(_JPEG) and not _jpeg_is_complete(data):
            # Some decoders fill the missing part with grey and call it an image: a caption then describes what is not there.
            return "truncated"
        if data.startswith(_PNG) and data[_PNG_BIT_DEPTH] == 16:
            # The Resizer would clip 16 bits to 8 and store a white picture.
            return "unsupported_depth"
        return "success"


def _img2dataset_resizer() -> Any:
    """The class `img2dataset.resizer.Resizer`, from its file alone: the package brings torch, Ray and wandb (2 s, 600 MB)."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or albumentations asks the network for its newest version
    package = find_spec("img2dataset")
    assert package is not None, "img2dataset is a dependency"
    assert package.submodule_search_locations
    spec = spec_from_file_location("img2dataset.resizer", Path(package.submodule_search_locations[0]) / "resizer.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Resizer


def _jpeg_is_complete(data: bytes) -> bool:
    """Whether the main image reaches its end marker: segments are skipped by their length, so a thumbnail's does not count."""
    at = 2
    while (marker := _JPEG_MARKER.search(data, at)) is not None:
        at, code = marker.end(), data[marker.end() - 1]
        if code == 0xD9:
            return True
        if code not in (0x01, 0xD8):  # these two have no length
            at += int.from_bytes(data[at : at + 2], "big")
    return False
