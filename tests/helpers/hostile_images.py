"""Images made to harm, and the status that each must get."""

import io
import random
import struct
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

from PIL import Image

from helpers.download_web import picture, png_header


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@cache
def avif(side: int) -> bytes:
    return saved(Image.new("RGB", (side, side), "red"), "AVIF", speed=10)


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_with(*chunks: bytes) -> bytes:
    """A good PNG with more chunks behind its header."""
    good = picture(0, (96, 64), "PNG")
    header = 8 + 25
    return good[:header] + b"".join(chunks) + good[header:]


def png_of_zeros(width: int, height: int) -> bytes:
    """A whole PNG of one bit per pixel: 16000 x 16000 take 32 kB."""
    packer = zlib.compressobj(9)
    rows = bytes(1 + (width + 7) // 8) * 100
    data = b"".join(packer.compress(rows) for _ in range(height // 100)) + packer.flush()
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


def jpeg_claiming(width: int, height: int) -> bytes:
    """A small JPEG whose header says another size."""
    good = picture()
    at = good.index(b"\xff\xc0") + 5
    return good[:at] + struct.pack(">HH", height, width) + good[at + 4 :]


def gif_frame(screen: tuple[int, int], frame: tuple[int, int]) -> bytes:
    """A GIF whose only frame is larger than the screen that its header names."""
    good = bytearray(saved(Image.new("P", (8, 8)), "GIF"))
    good[6:10] = struct.pack("<HH", *screen)
    at = good.index(b"\x2c", 13 + 3 * 2 ** ((good[10] & 7) + 1))
    good[at + 5 : at + 9] = struct.pack("<HH", *frame)
    return bytes(good)


def webp_animation(width: int, height: int) -> bytes:
    """A canvas of any size with one frame of 64 x 64."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)

    def three(value: int) -> bytes:
        return value.to_bytes(3, "little")

    frame = saved(Image.new("RGB", (64, 64), "red"), "WEBP", lossless=True)[12:]
    canvas = chunk(b"VP8X", b"\x02\0\0\0" + three(width - 1) + three(height - 1)) + chunk(b"ANIM", bytes(6))
    body = b"WEBP" + canvas + chunk(b"ANMF", bytes(6) + three(63) + three(63) + three(100) + b"\0" + frame)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_claiming(width: int, height: int) -> bytes:
    good = saved(Image.new("RGB", (64, 64), "red"), "WEBP", quality=50)
    at = good.index(b"\x9d\x01\x2a") + 3
    return good[:at] + struct.pack("<HH", width, height) + good[at + 4 :]


def bmp_claiming(width: int, height: int) -> bytes:
    good = picture(0, (96, 64), "BMP")
    return good[:18] + struct.pack("<ii", width, height) + good[26:]


def avif_claiming(width: int, height: int, side: int) -> bytes:
    good = avif(side)
    at = good.index(b"ispe") + 8
    return good[:at] + struct.pack(">II", width, height) + good[at + 8 :]


def scan_bomb() -> bytes:
    """A progressive JPEG whose last scan, 31 bytes that touch every block of the picture, comes a thousand times."""
    flat = saved(Image.new("RGB", (1000, 1000)), "JPEG", progressive=True)
    last = flat[flat.rindex(b"\xff\xda") : -2]
    return flat[:-2] + 1000 * last + b"\xff\xd9"


def baseline_scan_bomb() -> bytes:
    """A JPEG that is not progressive, whose last of three scans comes 200 times."""
    good = saved(Image.new("L", (64, 64)), "JPEG")
    scan = good[good.index(b"\xff\xda") : -2]
    return good[:-2] + 200 * scan + b"\xff\xd9"


def gif_with(blocks: bytes) -> bytes:
    """A good GIF with more blocks before its frame."""
    good = saved(Image.new("L", (64, 64)), "GIF")
    at = 13 + 3 * 2 ** ((good[10] & 7) + 1)
    return good[:at] + blocks + good[at:]


def webp_with(chunks: bytes) -> bytes:
    """A good WebP with more chunks at its end."""
    body = saved(Image.new("RGB", (64, 64), "red"), "WEBP", lossless=True)[8:] + chunks
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_with_exif(exif: bytes) -> bytes:
    """A good WebP with EXIF data of any size and shape."""
    chunk = b"EXIF" + struct.pack("<I", len(exif)) + exif + b"\0" * (len(exif) % 2)
    canvas = b"VP8X\x0a\0\0\0\x08\0\0\0" + (63).to_bytes(3, "little") * 2
    body = b"WEBP" + canvas + saved(Image.new("RGB", (64, 64), "red"), "WEBP", lossless=True)[12:] + chunk
    return b"RIFF" + struct.pack("<I", len(body)) + body


def avif_of_items() -> bytes:
    """An AVIF that lists 100,000 items, each of which the decoder looks for among all before it."""
    good = avif(64)
    at = good.index(b"meta") - 4
    size = int.from_bytes(good[at : at + 4], "big")
    items = struct.pack(">I4s", 8 + 6 * 100_000, b"iloc") + bytes(6 * 100_000)
    return good[:at] + struct.pack(">I", size + len(items)) + good[at + 4 : at + size] + items + good[at + size :]


def exif_of_entries(order: str, entries: int, orientation: int, extra: int) -> bytes:
    """EXIF data with so many entries, each of which says that it is all of the `extra` bytes behind; the last is a rotation."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, entries)
    table = struct.pack(order + "HHII", 0x9999, 7, extra, 10 + 12 * entries + 4) * (entries - 1)
    return head + table + struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0) + bytes(4 + extra)


def damaged(data: bytes) -> bytes:
    """Bytes in the middle are overwritten by others."""
    middle = len(data) // 2
    return data[:middle] + bytes(range(1, 101)) + data[middle + 100 :]


def jpeg_with(marker: int, data: bytes, times: int = 1) -> bytes:
    segment = bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data
    return picture()[:2] + times * segment + picture()[2:]


BOMB = zlib.compress(bytes(64 * 2**20), 9)


HTML = b"<!DOCTYPE html><script>alert(1)</script>"


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="99" height="99"><script>alert(1)</script></svg>'


CASES: dict[str, tuple[Callable[[], bytes], str, tuple[int, int] | None]] = {
    # what claims, or is, too much
    "a whole PNG of 256 million pixels": (lambda: png_of_zeros(16_000, 16_000), "too_many_pixels", None),
    "a PNG header of 4 billion a side": (lambda: png_header(2**31 - 1, 2**31 - 1), "too_many_pixels", None),
    "a JPEG header of 65535 x 65535": (lambda: jpeg_claiming(65_535, 65_535), "too_many_pixels", None),
    "a JPEG header of 9000 x 8000": (lambda: jpeg_claiming(9_000, 8_000), "too_many_pixels", (9_000, 8_000)),
    "a GIF screen of 65535 x 65535": (lambda: gif_frame((65_535, 65_535), (8, 8)), "too_many_pixels", None),
    "a GIF frame larger than its screen": (lambda: gif_frame((64, 64), (9_000, 9_000)), "too_many_pixels", (9_000, 9_000)),
    "a WebP canvas of 16383 x 16383": (lambda: webp_animation(16_383, 16_383), "too_many_pixels", None),
    "a WebP canvas of 9000 x 9000": (lambda: webp_animation(9_000, 9_000), "too_many_pixels", (9_000, 9_000)),
    "a BMP header of 2 billion a side": (lambda: bmp_claiming(2**31 - 1, 2**31 - 1), "too_many_pixels", None),
    "an AVIF of 9000 x 9000": (lambda: avif_claiming(9_000, 9_000, 300), "too_many_pixels", (9_000, 9_000)),
    "a JPEG of a thousand scans": (scan_bomb, "too_costly", None),
    # what is too many parts
    "200,000 EXIF segments in a JPEG": (lambda: jpeg_with(0xE1, b"Exif\0\0", 200_000), "too_costly", None),
    "200,000 padded markers in a JPEG": (lambda: picture()[:2] + b"\xff\x01" * 200_000 + picture()[2:], "too_costly", None),
    "200,000 segments behind a scan": (lambda: picture()[:-2] + b"\xff\xe2\0\2" * 200_000 + b"\xff\xd9", "too_costly", None),
    "a baseline JPEG of 200 scans": (baseline_scan_bomb, "too_costly", None),
    "200,000 texts in a PNG": (lambda: png_with(200_000 * png_chunk(b"tEXt", b"")), "too_costly", None),
    "200,000 pieces of a PNG's data": (lambda: png_with(200_000 * png_chunk(b"IDAT", b"")), "too_costly", None),
    "300,000 comments in a GIF": (lambda: gif_with(b"!\xfe\0" * 300_000), "too_costly", None),
    "a GIF comment of 300,000 blocks": (lambda: gif_with(b"!\xfe" + b"\1x" * 300_000 + b"\0"), "too_costly", None),
    "200,000 chunks in a WebP": (lambda: webp_with(b"XYZ \0\0\0\0" * 200_000), "too_costly", None),
    "200,000 boxes in an AVIF": (lambda: avif(64) + b"\0\0\0\x08free" * 200_000, "too_costly", None),
    "an AVIF of 100,000 items": (avif_of_items, "too_costly", None),
    # headers that lie
    "a JPEG header larger than its data": (lambda: jpeg_claiming(960, 640), "success", (960, 640)),
    "a JPEG of no height": (lambda: jpeg_claiming(96, 0), "undecodable", None),
    "a JPEG of no width": (lambda: jpeg_claiming(0, 64), "undecodable", None),
    "a PNG of no size": (lambda: png_header(0, 0), "undecodable", None),
    "a PNG header larger than its data": (lambda: png_header(4_000, 4_000), "undecodable", (4_000, 4_000)),
    "a WebP header larger than its data": (lambda: webp_claiming(4_000, 4_000), "undecodable", (4_000, 4_000)),
    "a GIF frame that lacks data": (lambda: gif_frame((64, 64), (3_000, 3_000)), "undecodable", (3_000, 3_000)),
    "a BMP of negative height": (lambda: bmp_claiming(96, -64), "success", (96, 64)),
    "a BMP of negative width": (lambda: bmp_claiming(-96, 64), "too_many_pixels", None),
    "a BMP header larger than its data": (lambda: bmp_claiming(4_000, 4_000), "undecodable", (4_000, 4_000)),
    "an AVIF smaller than its picture": (lambda: avif_claiming(64, 64, 1_500), "success", (64, 64)),
    # bombs in metadata
    "a PNG text of 64 MiB": (lambda: png_with(png_chunk(b"zTXt", b"Comment\0\0" + BOMB)), "success", (96, 64)),
    "a PNG profile of 64 MiB": (lambda: png_with(png_chunk(b"iCCP", b"icc\0\0" + BOMB)), "success", (96, 64)),
    "a PNG international text of 64 MiB": (
        lambda: png_with(png_chunk(b"iTXt", b"Comment\0\1\0\0\0" + BOMB)),
        "success",
        (96, 64),
    ),
    "a thousand texts in a PNG": (lambda: png_with(*1_000 * [png_chunk(b"tEXt", b"a\0" + 999 * b"b")]), "success", (96, 64)),
    "6 MiB of EXIF in a JPEG": (
        lambda: jpeg_with(0xE1, b"Exif\0\0" + random.Random(0).randbytes(65_000), 100),
        "success",
        (96, 64),
    ),
    "6 MiB of profile in a JPEG": (lambda: jpeg_with(0xE2, b"ICC_PROFILE\0\1\1" + bytes(65_000), 100), "success", (96, 64)),
    "100,000 empty comments in a JPEG": (lambda: jpeg_with(0xFE, b"", 100_000), "success", (96, 64)),
    # files that are two things, or not what they pretend to be
    "a JPEG with HTML behind": (lambda: picture() + HTML, "success", (96, 64)),
    "a JPEG with HTML in a comment": (lambda: jpeg_with(0xFE, HTML), "success", (96, 64)),
    "a JPEG with a ZIP behind": (lambda: picture() + b"PK\3\4" + random.Random(0).randbytes(500), "success", (96, 64)),
    "a GIF with a Java archive behind": (lambda: picture(0, (96, 64), "GIF") + b"PK\3\4" + bytes(99), "success", (96, 64)),
    "a PNG with a script behind": (lambda: picture(0, (96, 64), "PNG") + HTML, "success", (96, 64)),
    "HTML with a JPEG behind": (lambda: HTML + picture(), "not_an_image", None),
    "HTML that begins like a GIF": (lambda: b"GIF89a=1;" + HTML, "undecodable", None),
    "HTML that begins like a BMP": (lambda: b"BM" + HTML, "not_an_image", None),
    "SVG": (lambda: SVG, "unsupported_format", None),
    "PDF": (lambda: b"%PDF-1.7\n" + picture(), "not_an_image", None),
    "PostScript, which Pillow would run": (
        lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n",
        "not_an_image",
        None,
    ),
    "an icon with a PNG in it": (lambda: saved(Image.new("RGB", (64, 64)), "ICO"), "unsupported_format", None),
    # broken files
    "nothing": (lambda: b"", "not_an_image", None),
    "zeros": (lambda: bytes(10_000), "not_an_image", None),
    "noise": (lambda: b"\1" + random.Random(0).randbytes(10_000), "not_an_image", None),
    "JPEG markers alone": (lambda: b"\xff\xd8\xff" + b"\xff" * 5_000 + b"\xd9", "undecodable", None),
    "a JPEG whose segments have no length": (lambda: b"\xff\xd8" + b"\xff\xe0\0\0" * 5_000, "truncated", None),
    "a JPEG without a picture": (lambda: b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0\xff\xd9", "undecodable", None),
    "a damaged PNG": (lambda: damaged(picture(0, (96, 64), "PNG")), "undecodable", (96, 64)),
    "a damaged WebP": (lambda: damaged(saved(Image.effect_noise((96, 64), 99), "WEBP")), "success", (96, 64)),
    "a JPEG of 12 bits": (lambda: picture().replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"), "undecodable", None),
    "a lossless JPEG": (lambda: picture().replace(b"\xff\xc0", b"\xff\xc3"), "undecodable", (96, 64)),
}
