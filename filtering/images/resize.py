"""Bytes of any image in, a checked and resized image out: the header decides before anything is decoded."""

import io
import os
import threading
import warnings
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from PIL import AvifImagePlugin, Image, UnidentifiedImageError

from filtering import InputError
from filtering.images.containers import EXTENSIONS, Container, CostlyError, UnsupportedError, begins_as_bitmap, container_of
from filtering.images.exif import orientation_of
from filtering.images.phash import phash
from filtering.images.pixels import Picture, Size, bordered, cropped, decoded, is_jpeg, scaled, turned, upright


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """Which images are good enough, and how they are stored. The resize options are img2dataset's, by its own names."""

    image_size: int = 512
    """Target in pixels: of the shorter side for keep_ratio and center_crop, else of the longer side."""
    resize_mode: Literal["no", "keep_ratio", "keep_ratio_largest", "center_crop", "border"] = "keep_ratio"
    """keep_ratio (shorter side to image_size), keep_ratio_largest (longer side), center_crop (square), border (white), or no:
    the original file is kept, byte for byte and with its metadata, as jpg, png, webp, gif, bmp or avif."""
    resize_only_if_bigger: bool = True
    """Leave smaller images at their size instead of enlarging them."""
    min_side: int = 32
    """Shortest side in pixels; less is refused as "too_small"."""
    max_aspect: float = 10.0
    """Longer side divided by shorter; more is refused as "too_elongated"."""
    max_area: int = 2**26
    """Most pixels (width times height); more is refused as "too_many_pixels" before it is decoded."""
    encode_format: Literal["jpg", "png", "webp"] = "jpg"
    """Format of the stored image; png is lossless. Not with resize_mode=no."""
    quality: int = 95
    """JPEG or WebP quality of the stored image, 1 to 100."""
    pixels: Literal["fast", "img2dataset"] = "fast"
    """fast decodes JPEGs at a reduced scale if that is enough; img2dataset gives the very pixels of its version 1.47.0."""
    max_seconds: float = 10.0
    """Processor time in seconds that one image may take; more is refused as "too_costly"."""

    def __post_init__(self) -> None:
        for name in ("image_size", "min_side", "max_area"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: {getattr(self, name)} is below 1")
        if self.max_aspect < 1:
            raise InputError(f"max_aspect: {self.max_aspect} is below 1, which no image can meet")
        if not 1 <= self.quality <= 100:
            raise InputError(f"quality: {self.quality} is not between 1 and 100")
        if not self.max_seconds > 0:
            raise InputError(f"max_seconds: {self.max_seconds} is not above 0")
        if self.resize_mode == "no" and self.encode_format != "jpg":
            raise InputError(
                f"encode_format: resize_mode=no keeps the original files, so there is no {self.encode_format} to write; "
                "for images that are not made smaller set resize_mode=keep_ratio and a large image_size"
            )

    @property
    def content(self) -> dict[str, Any]:
        """The settings that the bytes of a stored image depend on, and whether there is one."""
        settings = asdict(self)
        del settings["max_seconds"]
        if self.resize_mode == "no":
            settings["encode_format"] = "original"
        elif self.encode_format == "jpg":
            del settings["encode_format"]  # what was stored before there was a choice stays valid
        return settings


@dataclass(frozen=True, kw_only=True)
class Resized:
    """`image`, `extension`, `width`, `height` and `phash` are there if and only if `status` is "success".

    Other statuses: not_an_image, unsupported_format, truncated, undecodable, too_many_pixels, too_small, too_elongated,
    too_costly, client_error. Sizes are those of the upright picture; the original one is there if the header was legible.
    `phash` is that of the kept picture without its border (`filtering.images.phash`), `message` what the decoder said.
    """

    status: str
    image: bytes = field(default=b"", repr=False)
    """The file to store."""
    extension: str | None = None
    """What kind of file it is: jpg, png, webp, gif, bmp or avif."""
    width: int | None = None
    height: int | None = None
    original_width: int | None = None
    original_height: int | None = None
    phash: str | None = None
    message: str | None = None


# Pillow warns of many pixels (`max_area` decides about them) and of odd metadata, which thousands of web images have.
warnings.filterwarnings("ignore", module=r"PIL\.")
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # images are decoded side by side already

_LARGEST_WEBP = 16_383
"""Pixels a side: all that the format can say."""
_PNG_COMPRESSION = 6  # zlib's own default; OpenCV's gives files a quarter larger
_MESSAGE_LENGTH = 200
_ONE_AT_A_TIME = threading.Lock()


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
            self._resizer = img2dataset_resizer()(
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


def _status_of(error: Exception) -> str:
    """The status of an image whose header was legible, by what its decoding raised."""
    if isinstance(error, Image.DecompressionBombError):
        return "too_many_pixels"
    if isinstance(error, MemoryError) or (isinstance(error, cv2.error) and error.code == cv2.Error.StsNoMem):
        return "too_costly"
    if isinstance(error, AttributeError | ImportError | NameError | NotImplementedError):
        return "client_error"  # a flaw or a lack of ours is no verdict on the image
    return "undecodable"


def _illegible(data: bytes, file: Container, error: Exception) -> Resized:
    """What becomes of a file whose header Pillow cannot read."""
    status = _status_of(error)
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
