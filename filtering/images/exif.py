"""The one thing that pixels need of EXIF data: which way up the picture is."""

import struct

_BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_ORIENTATION = 0x0112
_INTEGERS = {1: "B", 3: "H", 4: "I"}
"""TIFF's types BYTE, SHORT and LONG. The standard asks for SHORT; writers are not that exact."""


def orientation_of(exif: bytes) -> int:
    """The orientation that EXIF data give, 1 to 8; 1 (upright) also if they make no sense.

    Only the first directory is read, in one pass over its entries (65,535 at most), and no value that lies elsewhere. General
    readers copy every value, and values may overlap: with a megabyte of EXIF data that takes minutes.
    """
    exif = exif.removeprefix(b"Exif\0\0")
    order = _BYTE_ORDERS.get(exif[:4])
    if order is None or len(exif) < 8:
        return 1
    (directory,) = struct.unpack_from(order + "I", exif, 4)
    if directory + 2 > len(exif):
        return 1
    (entries,) = struct.unpack_from(order + "H", exif, directory)
    table = exif[directory + 2 : directory + 2 + 12 * entries]
    orientation = 1
    for tag, kind, count, value in struct.iter_unpack(order + "HHI4s", table[: len(table) // 12 * 12]):
        if tag == _ORIENTATION and count == 1 and kind in _INTEGERS:
            (orientation,) = struct.unpack_from(order + _INTEGERS[kind], value)
    return orientation if 1 <= orientation <= 8 else 1
