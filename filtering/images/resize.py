"""Bytes of any image in, a checked and resized image out: the header decides before anything is decoded."""

import io
import os
import sys
import threading
import warnings
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
from PIL import AvifImagePlugin, Image, UnidentifiedImageError

from filtering import InputError
from filtering.images import same_transforms
from filtering.images.containers import EXTENSIONS, Container, CostlyError, UnsupportedError, begins_as_bitmap, container_of
from filtering.images.exif import orientation_of
from filtering.images.image_config import ImageConfig, Resized
from filtering.images.phash import phash
from filtering.images.pixels import Picture, Size, bordered, cropped, decoded, is_jpeg, scaled, turned, upright

# Pillow warns of many pixels (`max_area` decides about them) and of odd metadata, which thousands of web images have.
warnings.filterwarnings("ignore", module=r"PIL\.")
_BOMB = 2 * (Image.MAX_IMAGE_PIXELS or 0)
"""Pixels above which Pillow opens nothing."""
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # images are decoded side by side already

_LARGEST_WEBP = 16_383
"""Pixels a side: all that the format can say."""
_PNG_COMPRESSION = 6  # zlib's own default; OpenCV's gives files a quarter larger
_MESSAGE_LENGTH = 200
_ONE_AT_A_TIME = threading.Lock()
_LIBRARY = "albumentations"


class Resize:
    """Checks and resizes one image. Output sizes are those of img2dataset 1.47.0's `Resizer`, the reference of the field.

    `filtering.images.guard.GuardedResize` does the same within bounds of time and memory.
    """

    def __init__(self, config: ImageConfig) -> None:
        self._config = config
        self._encoding = {
            "jpg": [cv2.IMWRITE_JPEG_QUALITY, config.quality],
            "png": [cv2.IMWRITE_PNG_COMPRESSION, _PNG_COMPRESSION],
            "webp": [cv2.IMWRITE_WEBP_QUALITY, config.quality],
        }[config.encode_format]
        cv2.setNumThreads(1)
        self._resizer: Any = None
        if config.pixels == "img2dataset":
            self._resizer = img2dataset_resizer(same_transforms)(
                config.image_size,
                config.resize_mode,
                config.resize_only_if_bigger,
                encode_format=config.encode_format,
                encode_quality=_PNG_COMPRESSION if config.encode_format == "png" else config.quality,
            )

    def __call__(self, data: bytes) -> Resized:
        """Resize the image file `data`. May be called from any thread; img2dataset's pixels are made one image at a time."""
        try:
            file = container_of(data)
        except CostlyError as error:
            return Resized(status="too_costly", message=str(error))
        except UnsupportedError as error:
            return Resized(status="unsupported_format", message=str(error))
        if file is None:
            return Resized(status="not_an_image", message=f"begins with {data[:16]!r}")
        try:
            image = Image.open(io.BytesIO(file.data), formats=(file.kind,))
        except Exception as error:
            # Pillow's readers raise whatever a hostile header makes them stumble over.
            return _illegible(data, file, error)
        with image:
            orientation = file.orientation if file.kind != "AVIF" else orientation_of(image.info.get("exif", b""))
            width, height = turned(image.size, orientation)
            status, message, kept = self._judge(file, width, height), None, {}
            if status == "success":
                try:
                    kept = self._keep(data, file, image, orientation)
                except Exception as error:
                    status, message = _status_of(error), _said(error)
        return Resized(status=status, message=message, original_width=width, original_height=height, **kept)

    def _judge(self, file: Container, width: int, height: int) -> str:
        if width * height > self._config.max_area:
            return "too_many_pixels"
        if min(width, height) < self._config.min_side:
            return "too_small"
        if max(width, height) > self._config.max_aspect * min(width, height):
            return "too_elongated"
        if not file.complete:
            # Some decoders fill the missing part with grey and call it an image: a caption then describes what is not there.
            return "truncated"
        return "success"

    def _keep(self, data: bytes, file: Container, image: Image.Image, orientation: int) -> dict[str, Any]:
        """What Resized holds of a kept image."""
        size = turned(image.size, orientation)
        target = self._target(size)
        original = self._config.resize_mode == "no"
        if self._resizer is not None and not original:
            return self._keep_as_img2dataset(file, image, orientation, target or size)
        picture = upright(scaled(file.data, image, turned(target or size, orientation)), orientation)
        mode = self._config.resize_mode if target else "no"
        if mode == "center_crop":
            picture = cropped(picture, self._config.image_size)
        kept = bordered(picture, self._config.image_size) if mode == "border" else picture
        return {
            "image": data if original else self._encoded(kept),
            "extension": EXTENSIONS[file.kind] if original else self._config.encode_format,
            "width": kept.shape[1],
            "height": kept.shape[0],
            "phash": phash(picture),
        }

    def _encoded(self, picture: Picture) -> bytes:
        kind = self._config.encode_format
        if kind == "webp" and max(picture.shape) > _LARGEST_WEBP:
            raise Image.DecompressionBombError(f"a WebP has {_LARGEST_WEBP} pixels a side at most")
        try:
            done, file = cv2.imencode(f".{kind}", picture, self._encoding)
        except cv2.error as error:
            raise NotImplementedError(f"cannot be written as {kind}: {error}") from None
        assert done
        return file.tobytes()

    def _target(self, size: Size) -> Size | None:
        """The size to scale a picture to before it is cropped or bordered; None to leave it as it is."""
        config = self._config
        side = min(size) if config.resize_mode in ("keep_ratio", "center_crop") else max(size)
        if config.resize_mode == "no" or (config.resize_only_if_bigger and side <= config.image_size):
            return None
        scale = config.image_size / side
        return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))

    def _keep_as_img2dataset(self, file: Container, image: Image.Image, orientation: int, scaled_size: Size) -> dict[str, Any]:
        data = file.data
        if orientation != 1 or not is_jpeg(image):
            # The Resizer ignores the orientation and clips 16 bits. It is given what `fast` shows, as 24-bit BMP, without loss.
            data = cv2.imencode(".bmp", upright(decoded(image), orientation))[1].tobytes()
        # The Resizer points the process's stdout and stderr to /dev/null meanwhile: two at once would leave them there.
        with _ONE_AT_A_TIME:
            encoded, width, height, _, _, error = self._resizer(io.BytesIO(data))
        if error is not None:
            raise ValueError(error)
        kept = np.asarray(cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR), np.uint8)
        left, top = max(0, width - scaled_size[0]) // 2, max(0, height - scaled_size[1]) // 2
        picture = kept[top : top + scaled_size[1], left : left + scaled_size[0]]  # without the border
        extension = self._config.encode_format
        return {"image": encoded, "extension": extension, "width": width, "height": height, "phash": phash(picture)}


def img2dataset_resizer(transforms: ModuleType | None = None) -> Any:
    """The class `img2dataset.resizer.Resizer`, from its file alone: the package brings torch, Ray and wandb (2 s, 600 MB).

    `transforms` takes the place of albumentations, if given.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or albumentations asks the network for its newest version
    package = find_spec("img2dataset")
    if package is None:
        raise InputError("pixels: img2dataset is not installed; install the extra of that name, or set pixels=fast")
    assert package.submodule_search_locations
    spec = spec_from_file_location("img2dataset.resizer", Path(package.submodule_search_locations[0]) / "resizer.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    loaded = sys.modules.get(_LIBRARY)
    if transforms is not None:
        sys.modules[_LIBRARY] = transforms
    try:
        spec.loader.exec_module(module)
    finally:
        if loaded is not None:
            sys.modules[_LIBRARY] = loaded
        elif transforms is not None:
            del sys.modules[_LIBRARY]
    return module.Resizer


def _status_of(error: Exception) -> str:
    """The status of an image whose header was legible, by what its decoding raised."""
    if isinstance(error, Image.DecompressionBombError):
        return "too_many_pixels"
    if isinstance(error, MemoryError) or (isinstance(error, cv2.error) and error.code == cv2.Error.StsNoMem):
        return "too_costly"
    if isinstance(error, AttributeError | ImportError | NameError | NotImplementedError):
        return "client_error"  # a flaw or a lack of ours is no verdict on the image
    return "undecodable"


def _canvas(data: bytes) -> int:
    """Pixels of the canvas of a WebP in its extended form, which Pillow asks memory for before it looks at their number."""
    if not data.startswith(b"VP8X", 12) or len(data) < 30:
        return 0
    width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    return width * height


def _illegible(data: bytes, file: Container, error: Exception) -> Resized:
    """What becomes of a file whose header Pillow cannot read."""
    status = _status_of(error)
    if status == "undecodable" and file.kind == "WEBP" and _canvas(data) > _BOMB:  # no memory for it was to be had
        return Resized(status="too_many_pixels", message=f"a canvas of {_canvas(data)} pixels")
    if status == "undecodable" and file.kind == "BMP":
        if begins_as_bitmap(data):  # one of the many layouts of pixels that Pillow does not know
            return Resized(status="unsupported_format", message=_said(error))
        return Resized(status="not_an_image", message=f"begins with {data[:16]!r}")
    if status == "undecodable" and not file.complete:
        return Resized(status="truncated")
    return Resized(status=status, message=_said(error))


def _said(error: Exception) -> str:
    """The first line of an error, without the memory addresses that make every run's message another."""
    text = "cannot identify image file" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
    return text.splitlines()[0][:_MESSAGE_LENGTH]
