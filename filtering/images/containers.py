"""What an image file is made of, found out in one bounded pass before any decoder sees it.

Decoders do work for every segment, chunk, scan and directory entry of a file, and a few bytes make one: 4 MB of tiny EXIF
segments cost Pillow 10 s, 8 MB 80 s. Here parts are counted, and a decoder is given the picture's own parts alone: no
metadata, profiles, texts, or later frames. So a faulty or oversized one, which browsers do not mind, does no harm.
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from filtering.images.exif import orientation_of

MAX_PARTS = 2**17
"""Segments of a JPEG, chunks of a PNG or WebP, blocks of a GIF up to the end of its first frame, boxes of an AVIF."""
MAX_SCANS = 100
"""Of a JPEG, which has ten or so. Each costs a pass over the whole picture, though a few bytes may be all that it says."""
MAX_TABLES = 2**18
"""Bytes that describe the items of an AVIF. Every item is looked for among all others; one of 256 tiles takes 12 kB."""
MAX_INDEX = 2**22
"""Bytes that list the frames of an animated AVIF."""


class CostlyError(ValueError):
    """The file has more parts than any picture needs."""


class UnsupportedError(ValueError):
    """An image, but of a format that is not decoded here."""


@dataclass(frozen=True, kw_only=True)
class Container:
    """An image file of a known format."""

    kind: str
    """The format by Pillow's name: JPEG, PNG, WEBP, GIF, BMP or AVIF."""
    data: bytes
    """The file reduced to what its (first) picture needs."""
    orientation: int = 1
    """By EXIF, 1 to 8. Of an AVIF, whose own boxes say how it is turned, the decoder tells."""
    complete: bool = True
    """False if the file ends before the picture does. Of WebP, BMP and AVIF the decoder tells."""


EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "AVIF": "avif"}
"""What browsers show, and what such files are called."""


def container_of(data: bytes) -> Container | None:
    """The parts of an image file; None if it does not begin as one. Raises CostlyError and UnsupportedError."""
    for signature, read in _FORMATS:
        if signature.match(data):
            return read(data)
    for name, signature in _UNSUPPORTED.items():
        if signature.match(data):
            raise UnsupportedError(f"{name} is not decoded")
    return None


def begins_as_image(data: bytes) -> bool:
    """Whether a file begins as one of the formats that are decoded."""
    return any(signature.match(data) for signature, _ in _FORMATS)


def _limit(count: int, limit: int, parts: str) -> None:
    if count > limit:
        raise CostlyError(f"more than {limit} {parts}")


# --- JPEG

_MARKER = re.compile(rb"\xff[\x01-\xfe]")
# In scan data 0xFF is followed by 00 (stuffing), D0-D7 (restart) or FF (fill); anything else is the next marker.
_MARKER_IN_SCAN = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_NO_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_APP1, _COMMENT = 0xE1, 0xFE
# Of application segments JFIF's and Adobe's are needed: they say which colours the numbers mean.
_DROPPED = frozenset({*range(0xE1, 0xEE), 0xEF, *range(0xF0, 0xFE), _COMMENT})


def _jpeg(data: bytes) -> Container:
    """Segments are skipped by their length, so that the end of a thumbnail in one of them does not count as the picture's."""
    parts, exif = [data[:2]], b""
    at = 2
    count = 0
    while (marker := _MARKER.search(data, at)) is not None:
        count += 1
        _limit(count, MAX_PARTS, "segments")
        at, code = marker.end(), data[marker.end() - 1]
        length = int.from_bytes(data[at : at + 2], "big")
        if code in (_SOS, _EOI):
            parts.append(data[marker.start() :])
            complete = code == _EOI or _scans_are_complete(data, at + length, count) or data.endswith(b"\xff\xd9")
            return Container(kind="JPEG", data=b"".join(parts), orientation=orientation_of(exif), complete=complete)
        if code in _NO_LENGTH or length < 2:
            continue
        at += length
        if code == _APP1 and not exif and data.startswith(b"Exif\0\0", marker.end() + 2):
            exif = data[marker.end() + 2 : at]
        if code not in _DROPPED:
            parts.append(data[marker.start() : at])
    return Container(kind="JPEG", data=b"".join(parts), orientation=orientation_of(exif), complete=False)


def _scans_are_complete(data: bytes, at: int, count: int) -> bool:
    """Whether the picture whose first scan data begin at `at`, after `count` segments, reaches its end marker."""
    scans = 1
    while (marker := _MARKER_IN_SCAN.search(data, at)) is not None:
        count += 1
        _limit(count, MAX_PARTS, "segments")
        at, code = marker.end(), data[marker.end() - 1]
        if code == _EOI:
            return True
        scans += code == _SOS
        _limit(scans, MAX_SCANS, "scans")
        if code not in _NO_LENGTH:
            at += int.from_bytes(data[at : at + 2], "big")
    return False


# --- PNG

_PNG_NEEDED = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT"})
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


def _png(data: bytes) -> Container:
    """As browsers do, ancillary chunks with a wrong checksum are ignored, and so is a missing end after a whole picture."""
    parts, exif = [data[:8]], b""
    at, count, pictured, complete = 8, 0, False, False
    while at + 8 <= len(data):
        count += 1
        _limit(count, MAX_PARTS, "chunks")
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if name == b"IEND":
            complete = True
            break
        if name in _PNG_NEEDED and (name != b"tRNS" or _checksum_is_right(data, at, end)):
            parts.append(data[at:end])
            pictured |= name == b"IDAT"
        elif name == b"eXIf" and not exif and not pictured:
            exif = data[at + 8 : end - 4]
        at = end
    complete |= pictured and at == len(data)
    if complete:
        parts.append(_PNG_END)
    return Container(kind="PNG", data=b"".join(parts), orientation=orientation_of(exif), complete=complete)


def _checksum_is_right(data: bytes, start: int, end: int) -> bool:
    return zlib.crc32(data[start + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big")


# --- GIF

_GIF_BLOCK = re.compile(rb"[!,;]")
_GIF_CONTROL = 0xF9  # transparency


def _gif(data: bytes) -> Container:
    at = 13 + _colours(data[10:11])
    parts = [data[:at]]
    control = b""
    count = 0
    while (block := _GIF_BLOCK.search(data, at)) is not None and block[0] != b";":
        start, at = block.start(), block.end()
        picture = block[0] == b","
        at += 9 + _colours(data[at + 8 : at + 9]) + 1 if picture else 1
        while at < len(data) and data[at]:
            at += 1 + data[at]
            count += 1
        at += 1
        count += 1
        _limit(count, 2 * MAX_PARTS, "blocks")
        if picture:
            ended = at <= len(data)
            parts += [control, data[start:at], b";" if ended else b""]
            break
        if data[start + 1 : start + 2] == bytes([_GIF_CONTROL]):
            control = data[start:at]
    return Container(kind="GIF", data=b"".join(parts))


def _colours(flags: bytes) -> int:
    """The bytes of a colour table by the flags of its screen or frame."""
    return 3 * 2 ** ((flags[0] & 7) + 1) if flags and flags[0] & 0x80 else 0


# --- WebP

_HAS_EXIF = 0x08


def _webp(data: bytes) -> Container:
    exif = b""
    at = 12
    count = 0
    while at + 8 <= len(data):
        count += 1
        _limit(count, MAX_PARTS, "chunks")
        name, length = struct.unpack_from("<4sI", data, at)
        if name == b"EXIF" and data.startswith(b"VP8X", 12) and data[20] & _HAS_EXIF:
            exif = exif or data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
    return Container(kind="WEBP", data=data, orientation=orientation_of(exif))


# --- AVIF


def _avif(data: bytes) -> Container:
    brands = data[8 : max(16, min(int.from_bytes(data[:4], "big"), 256))]
    if b"avif" not in brands and b"avis" not in brands:
        raise UnsupportedError("HEIF without AV1 is not decoded")
    parts: list[bytes] = []
    whole = 0
    for name, start, end in _boxes(data, 0, len(data)):
        if name == b"meta":
            tables = sum(stop - begin for child, begin, stop in _boxes(data, start + 4, end) if child != b"idat")
            _limit(tables, MAX_TABLES, "bytes that describe items")
            # The boxes say how the picture is turned; Pillow would read all EXIF data to say the same in them.
            parts += [data[whole:start], data[start:end].replace(b"Exif", b"free")]
            whole = end
        elif name == b"moov":
            _limit(end - start, MAX_INDEX, "bytes that list frames")
    return Container(kind="AVIF", data=b"".join([*parts, data[whole:]]) if parts else data)


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """The boxes in a stretch of an ISO media file: (name, first byte of what is in it, byte behind the last)."""
    count = 0
    while at + 8 <= end:
        count += 1
        _limit(count, MAX_PARTS, "boxes")
        size, name = struct.unpack_from(">I4s", data, at)
        start = at + 8
        if size == 1:
            size, start = int.from_bytes(data[at + 8 : at + 16], "big"), at + 16
        stop = min(end, at + size) if size else end
        if stop < start:
            return
        yield name, start, stop
        at = stop


# --- BMP

_BITMAP_HEADERS = frozenset({12, 16, 40, 52, 56, 64, 108, 124})  # the length of each kind, in bytes


def _bmp(data: bytes) -> Container:
    return Container(kind="BMP", data=data)


def begins_as_bitmap(data: bytes) -> bool:
    """Whether a file that begins as BMP, two letters that begin many a text, has a header of one of BMP's kinds."""
    return int.from_bytes(data[14:18], "little") in _BITMAP_HEADERS


_FORMATS: tuple[tuple[re.Pattern[bytes], Callable[[bytes], Container]], ...] = (
    (re.compile(rb"\xff\xd8\xff"), _jpeg),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), _png),
    (re.compile(rb"GIF8[79]a"), _gif),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), _webp),
    (re.compile(rb"....ftyp(?:avi[fs]|m[is]f1)", re.DOTALL), _avif),
    (re.compile(rb"BM"), _bmp),
)
_UNSUPPORTED = {
    "SVG": re.compile(
        rb"(?:\xef\xbb\xbf)?\s*+(?:<\?xml[^>]*+>\s*+)?(?:(?><!--.*?-->)\s*+)*+(?:<!DOCTYPE\s+svg[^>]*+>\s*+)?<svg[\s>]",
        re.DOTALL | re.IGNORECASE,
    ),
    "HEIF without AV1": re.compile(rb"....ftyp(?:hei[cmsx]|hev[cmsx])", re.DOTALL),
    "JPEG XL": re.compile(rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n"),
    "JPEG 2000": re.compile(rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"),
    "TIFF": re.compile(rb"II[*+]\0|MM\0[*+]"),
    "an icon": re.compile(rb"\0\0[\x01\x02]\0[^\0]\0"),
}
