"""Images made to harm: each gets the right status, and memory stays bounded however much a file claims or holds."""

from collections.abc import Callable

import pytest
from memory import reset_peak, resident
from PIL import Image

from filtering.images.image_config import ImageConfig, Resized
from filtering.images.resize import Resize
from helpers.download_web import picture
from helpers.hostile_images import CASES, saved

MIB = 2**20
BYTES_PER_PIXEL = 24
"""What decoding takes at most: an animated, transparent WebP has five copies in memory."""


@pytest.mark.parametrize("pixels", ["fast", "img2dataset"])
@pytest.mark.parametrize("name", CASES)
def test_hostile_images(name: str, pixels: str) -> None:
    make, status, size = CASES[name]
    done, risen = resized(make(), pixels)
    assert (done.status, done.original_width, done.original_height) == (status, *(size or (None, None))), done
    assert (status == "success") == bool(done.image)
    if done.message is not None:
        assert len(done.message) <= 200
        assert "\n" not in done.message
        assert " at 0x" not in done.message
    # What the header refuses is never decoded: that would take 4 bytes per pixel at least.
    assert risen < 64 * MIB + (BYTES_PER_PIXEL * size[0] * size[1] if size and status != "too_many_pixels" else 0)


LARGE: dict[str, tuple[Callable[[Image.Image], bytes], int]] = {
    "JPEG": (lambda image: saved(image, "JPEG"), 1),  # decoded at 1/4 of its scale
    "progressive JPEG": (lambda image: saved(image, "JPEG", progressive=True), 6),
    "CMYK JPEG": (lambda image: saved(image.convert("CMYK"), "JPEG"), 1),
    "PNG": (lambda image: saved(image, "PNG", compress_level=1), BYTES_PER_PIXEL),
    "transparent PNG": (lambda image: saved(image.convert("LA"), "PNG", compress_level=1), BYTES_PER_PIXEL),
    "GIF": (lambda image: saved(image.convert("P"), "GIF"), BYTES_PER_PIXEL),
    "transparent WebP": (lambda image: saved(image.convert("RGBA"), "WEBP", lossless=True, method=0), BYTES_PER_PIXEL),
}


@pytest.mark.parametrize("kind", LARGE)
def test_memory_of_large_images(kind: str) -> None:
    make, bytes_per_pixel = LARGE[kind]
    data = make(Image.new("RGB", (3_000, 3_000), "red"))
    done, risen = resized(data, "fast")
    assert (done.status, done.width, done.original_width) == ("success", 512, 3_000)
    assert risen < 8 * MIB + bytes_per_pixel * 3_000**2


def resized(data: bytes, pixels: str) -> tuple[Resized, int]:
    """What became of an image, and by how many bytes the process grew meanwhile."""
    resize = Resize(ImageConfig(pixels=pixels))  # type: ignore[arg-type]
    resize(picture())  # what the decoders need once
    reset_peak()
    before = resident("VmRSS")
    done = resize(data)
    return done, resident("VmHWM") - before
