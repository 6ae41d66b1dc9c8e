"""Decoders get the picture's own parts alone: what metadata cost them, and what is wrong with them, does not matter."""

import random
import struct
import zlib
from collections.abc import Callable

import pytest
from PIL import Image

from filtering.images.containers import MAX_PARTS, container_of
from filtering.images.exif import orientation_of
from helpers.download_web import picture
from helpers.hostile_images import (
    avif,
    exif_of_entries,
    gif_with,
    jpeg_with,
    png_chunk,
    png_with,
    webp_with_exif,
)
from helpers.pictures import difference, kept, resize, saved, scene

PNG = picture(0, (96, 64), "PNG")
NOISE = random.Random(0).randbytes(3 * 2**20)


@pytest.mark.parametrize(
    "data",
    [
        jpeg_with(0xE1, b"Exif\0\0" + bytes(30), 100_000),  # of which Pillow makes one block, byte by byte again for each
        jpeg_with(0xE1, b"Exif\0\0" + bytes(65_000), 90),
        jpeg_with(0xED, b"Photoshop 3.0\0" + bytes(99), 10_000),
        png_with(*(png_chunk(b"tEXt", b"a\0b") for _ in range(10_000))),
        gif_with(b"!\xfe" + (b"\xff" + bytes(255)) * 10_000 + b"\0"),
        gif_with(b"!\xff\x0bNETSCAPE2.0\3\1\0\0\0" * 10_000),
    ],
)
def test_the_work_of_decoders_does_not_grow_with_metadata(data: bytes) -> None:
    container = container_of(data)
    assert container is not None
    assert container.complete
    assert len(container.data) < 12_000
    assert resize(data)[0] == "success"


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_of_overlapping_values_is_read_once(order: str) -> None:
    """60,000 values of a megabyte each: Pillow would copy 60 GB."""
    data = webp_with_exif(exif_of_entries(order, 60_000, 6, 2**20))
    container = container_of(data)
    assert container is not None
    assert container.orientation == 6
    assert resize(data)[0] == "success"


@pytest.mark.parametrize(
    ("exif", "orientation"),
    [
        (exif_of_entries("<", 1, 8, 0), 8),
        (b"Exif\0\0" + exif_of_entries(">", 5, 3, 0), 3),
        (exif_of_entries("<", 1, 9, 0), 1),
        (exif_of_entries("<", 3, 6, 0)[:40], 1),  # cut before the entry
        (b"", 1),
        (b"II*\0", 1),
        (b"II*\0\xff\xff\xff\xff", 1),
        (b"MM\0*\0\0\0\x08\xff\xff" + bytes(99), 1),
    ],
)
def test_orientation(exif: bytes, orientation: int) -> None:
    assert orientation_of(exif) == orientation


def with_chunk(name: bytes, data: bytes, checksum: int | None = None) -> bytes:
    chunk = png_chunk(name, data)
    return png_with(chunk if checksum is None else chunk[:-4] + struct.pack(">I", checksum))


VALID: dict[str, Callable[[], bytes]] = {
    "a profile of 3 MiB that does not compress": lambda: with_chunk(b"iCCP", b"icc\0\0" + zlib.compress(NOISE)),
    "a profile of 2 MiB of zeros": lambda: with_chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(2**21))),
    "a profile that is none": lambda: with_chunk(b"iCCP", b"icc\0\0nothing"),
    "a text of 3 MiB": lambda: with_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(NOISE)),
    "an international text of 3 MiB": lambda: with_chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(NOISE)),
    "texts of 70 MiB together": lambda: png_with(*24 * [png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(3 * 2**20)))]),
    "a wrong checksum of a text": lambda: with_chunk(b"tEXt", b"a\0b", 1),
    "a wrong checksum of the gamma": lambda: with_chunk(b"gAMA", bytes(4), 1),
    "a wrong checksum of a transparent colour, which is left out": lambda: with_chunk(b"tRNS", bytes(6), 1),
    "too short a time": lambda: with_chunk(b"tIME", b"\0"),
    "a chunk that nobody knows": lambda: with_chunk(b"abCd", b"xyz"),
    "a wrong checksum of the end": lambda: PNG[:-4] + bytes(4),
    "no end": lambda: PNG[:-12],
    "more behind the end": lambda: PNG + b"\r\n<!-- cached -->",
}


@pytest.mark.parametrize("name", VALID)
def test_png_that_browsers_show(name: str) -> None:
    assert difference(kept(VALID[name]()), scene()) < 3


@pytest.mark.parametrize("orientation", [1, 6])
def test_the_turn_of_an_avif_is_its_own(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x9C9C] = bytes(2**16)
    data = saved(scene(), "AVIF", exif=exif)
    assert resize(data)[3:] == ((96, 64) if orientation == 1 else (64, 96))


def test_a_grid_of_boxes_is_read() -> None:
    assert resize(avif(300) + b"\0\0\0\x08free" * (MAX_PARTS // 2))[0] == "success"


@pytest.mark.parametrize(
    "data",
    [
        picture()[:2] + b"\xff\xff\xff" + picture()[3:],  # fill bytes before a marker
        picture()[:20] + b"junk" + picture()[20:],
        picture()[:-2] + b"junk" + picture()[-2:],
        picture()[:-2] + bytes(5_000) + picture()[-2:],
        picture() + picture(1),
    ],
)
def test_jpegs_with_bytes_between_their_parts(data: bytes) -> None:
    assert difference(kept(data), scene()) < 6
