"""Pictures, and what a resizer keeps of them."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from filtering.images.image_config import ImageConfig
from filtering.images.resize import Resize
from helpers.download_web import picture

MODES = ("keep_ratio", "keep_ratio_largest", "center_crop", "border")


def resize(data: bytes, **settings: Any) -> tuple[str, int | None, int | None, int | None, int | None]:
    done = Resize(ImageConfig(**settings))(data)
    assert (done.status == "success") == bool(done.image) == (done.width is not None) == (done.phash is not None)
    return done.status, done.width, done.height, done.original_width, done.original_height


def kept(data: bytes, **settings: Any) -> NDArray[np.uint8]:
    """The kept picture in RGB."""
    done = Resize(ImageConfig(**{"image_size": 2**14, "min_side": 1, "quality": 100, **settings}))(data)
    assert done.status == "success", done
    with Image.open(io.BytesIO(done.image)) as image:
        assert image.mode == "RGB" or settings.get("pixels") == "img2dataset"  # which keeps grey JPEGs grey
        assert image.size == (done.width, done.height)
        return np.asarray(image.convert("RGB"))


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def scene(size: tuple[int, int] = (96, 64), seed: int = 0) -> Image.Image:
    with Image.open(io.BytesIO(picture(seed, size, "PNG"))) as image:
        return image.convert("RGB")


def difference(one: NDArray[np.uint8], other: Any) -> float:
    """The mean over pixels; that of two unrelated pictures is some 60."""
    assert one.shape == np.asarray(other).shape
    return float(np.abs(one.astype(int) - np.asarray(other)).mean())


def differing_bits(one: str | None, other: str | None) -> int:
    assert one is not None
    assert other is not None
    assert len(one) == len(other) == 16
    return (int(one, 16) ^ int(other, 16)).bit_count()


def hash_of(data: bytes, **settings: Any) -> str:
    done = Resize(ImageConfig(**{"image_size": 256, **settings}))(data)
    assert done.phash is not None
    return done.phash
