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

import cv2
import numpy as np
from PIL import AvifImagePlugin, Image, UnidentifiedImageError

from filtering import InputError
from filtering.images.phash import phash
from filtering.images.pixels import Size, bordered, cropped, decoded, is_jpeg, orientation_of, scaled, turned, upright


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
    pixels: Literal["fast", "img2dataset"] = "fast"
    """fast decodes JPEGs at a reduced scale if that is enough; img2dataset gives the very pixels of its version 1.47.0."""

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
    """`jpeg`, `width`, `height` and `phash` are there if and only if `status` is "success".

    Other statuses: not_an_image, truncated, undecodable, too_many_pixels, too_small, too_elongated, client_error. The original
    size is that of the upright picture, and there if the header was legible. `phash` is that of the kept picture without its
    border (`filtering.images.phash`), `message` what the decoder said.
    """

    status: str
    jpeg: bytes = field(default=b"", repr=False)
    width: int | None = None
    height: int | None = None
    original_width: int | None = None
    original_height: int | None = None
    phash: str | None = None
    message: str | None = None


# Pillow warns of many pixels (`max_area` decides about them) and of odd metadata, which thousands of web images have.
warnings.filterwarnings("ignore", module=r"PIL\.")
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # images are decoded side by side already

# What browsers show.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF")
_JPEG = b"\xff\xd8\xff"
_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
_SIGNATURE = re.compile(_JPEG + b"|" + _PNG + rb"|GIF8[79]a|RIFF....WEBP|....ftypavi[fs]", re.DOTALL)
# In scan data 0xFF is followed by 00 (stuffing), D0-D7 (restart) or FF (fill); anything else is the next marker.
_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_JPEG_END = b"\xff\xd9"
# Progressive JPEGs have about ten scans. Each costs a pass over the whole picture, though a few bytes may be all that it says.
_JPEG_SCAN, _MOST_SCANS = b"\xff\xda", 100
_MESSAGE_LENGTH = 200
_ONE_AT_A_TIME = threading.Lock()


class Resize:
    """Checks and resizes one image. Output sizes are those of img2dataset 1.47.0's `Resizer`, the reference of the field."""

    def __init__(self, config: ImageConfig) -> None:
        self._config = config
        self._encoding = [cv2.IMWRITE_JPEG_QUALITY, config.quality]
        cv2.setNumThreads(1)
        self._resizer: Any = None
        if config.pixels == "img2dataset":
            self._resizer = img2dataset_resizer()(
                config.image_size, config.resize_mode, config.resize_only_if_bigger, encode_quality=config.quality
            )

    def __call__(self, data: bytes) -> Resized:
        """Resize the image file `data`. May be called from any thread; img2dataset's pixels are made one image at a time."""
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        except Image.DecompressionBombError as error:
            return Resized(status="too_many_pixels", message=_said(error))
        except Exception as error:
            # Pillow's readers raise whatever a hostile header makes them stumble over.
            return _illegible(data, error)
        with image:
            orientation = orientation_of(image)
            width, height = turned(image.size, orientation)
            status, message, kept = self._judge(data, width, height), None, {}
            if status == "success":
                try:
                    kept = self._keep(data, image, orientation)
                except (AttributeError, ImportError, MemoryError, NameError) as error:
                    # A flaw or a lack of ours is no verdict on the image.
                    status, message = "client_error", _said(error)
                except Exception as error:
                    status, message = "undecodable", _said(error)
        return Resized(status=status, message=message, original_width=width, original_height=height, **kept)

    def _judge(self, data: bytes, width: int, height: int) -> str:
        if width * height > self._config.max_area:
            return "too_many_pixels"
        if min(width, height) < self._config.min_side:
            return "too_small"
        if max(width, height) > self._config.max_aspect * min(width, height):
            return "too_elongated"
        if not _is_complete(data):
            # Some decoders fill the missing part with grey and call it an image: a caption then describes what is not there.
            return "truncated"
        return "success"

    def _keep(self, data: bytes, image: Image.Image, orientation: int) -> dict[str, Any]:
        """What Resized holds of a kept image."""
        if "progressive" in image.info and data.count(_JPEG_SCAN) > _MOST_SCANS:
            raise ValueError(f"more than {_MOST_SCANS} scans")
        size = turned(image.size, orientation)
        target = self._target(size)
        if self._resizer is not None:
            return self._keep_as_img2dataset(data, image, orientation, target or size)
        picture = upright(scaled(data, image, turned(target or size, orientation)), orientation)
        mode = self._config.resize_mode if target else "no"
        if mode == "center_crop":
            picture = cropped(picture, self._config.image_size)
        kept = bordered(picture, self._config.image_size) if mode == "border" else picture
        done, jpeg = cv2.imencode(".jpg", kept, self._encoding)
        assert done
        return {"jpeg": jpeg.tobytes(), "width": kept.shape[1], "height": kept.shape[0], "phash": phash(picture)}

    def _target(self, size: Size) -> Size | None:
        """The size to scale a picture to before it is cropped or bordered; None to leave it as it is."""
        config = self._config
        side = min(size) if config.resize_mode in ("keep_ratio", "center_crop") else max(size)
        if config.resize_mode == "no" or (config.resize_only_if_bigger and side <= config.image_size):
            return None
        scale = config.image_size / side
        return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))

    def _keep_as_img2dataset(self, data: bytes, image: Image.Image, orientation: int, scaled_size: Size) -> dict[str, Any]:
        if orientation != 1 or not is_jpeg(image):
            # The Resizer ignores the orientation and clips 16 bits. It is given what `fast` shows, as 24-bit BMP, without loss.
            data = cv2.imencode(".bmp", upright(decoded(image), orientation))[1].tobytes()
        # The Resizer points the process's stdout and stderr to /dev/null meanwhile: two at once would leave them there.
        with _ONE_AT_A_TIME:
            jpeg, width, height, _, _, error = self._resizer(io.BytesIO(data))
        if error is not None:
            raise ValueError(error)
        kept = np.asarray(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR), np.uint8)
        left, top = max(0, width - scaled_size[0]) // 2, max(0, height - scaled_size[1]) // 2
        picture = kept[top : top + scaled_size[1], left : left + scaled_size[0]]  # without the border
        return {"jpeg": jpeg, "width": width, "height": height, "phash": phash(picture)}


def img2dataset_resizer() -> Any:
    """The class `img2dataset.resizer.Resizer`, from its file alone: the package brings torch, Ray and wandb (2 s, 600 MB)."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or albumentations asks the network for its newest version
    package = find_spec("img2dataset")
    if package is None:
        raise InputError("pixels: img2dataset is not installed; install the extra of that name, or set pixels=fast")
    assert package.submodule_search_locations
    spec = spec_from_file_location("img2dataset.resizer", Path(package.submodule_search_locations[0]) / "resizer.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Resizer


def _illegible(data: bytes, error: Exception) -> Resized:
    """What becomes of a file whose header Pillow cannot read."""
    if not _SIGNATURE.match(data):
        return Resized(status="not_an_image", message=f"begins with {data[:16]!r}")
    if not _is_complete(data):
        return Resized(status="truncated")
    return Resized(status="undecodable", message=_said(error))


def _said(error: Exception) -> str:
    """The first line of an error, without the memory addresses that make every run's message another."""
    text = "cannot identify image file" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
    return text.splitlines()[0][:_MESSAGE_LENGTH]


def _is_complete(data: bytes) -> bool:
    """Whether a JPEG or PNG reaches its end marker, whatever follows it. Of other formats the decoder will tell."""
    if data.startswith(_JPEG):
        return _jpeg_is_complete(data)
    return _PNG_END in data if data.startswith(_PNG) else True


def _jpeg_is_complete(data: bytes) -> bool:
    """Whether the main image reaches its end marker: segments are skipped by their length, so a thumbnail's does not count.

    A file that ends with the marker counts without a search: were it a thumbnail's, there would be no picture to decode.
    """
    if data.endswith(_JPEG_END):
        return True
    at = 2
    while (marker := _JPEG_MARKER.search(data, at)) is not None:
        at, code = marker.end(), data[marker.end() - 1]
        if code == _JPEG_END[1]:
            return True
        if code not in (0x01, 0xD8):  # these two have no length
            at += int.from_bytes(data[at : at + 2], "big")
    return False
