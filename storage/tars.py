"""Where the files in a tar lie, found strictly: `tarfile` takes a damaged or missing header for the end of the archive."""

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tarfile import calc_chksums  # type: ignore[attr-defined]  # the sums of headers with odd bytes, which old tars have
from typing import NamedTuple

from storage import InputError

BLOCK = 512
_END = bytes(BLOCK)
_FILE, _LONG_NAME, _PAX, _SPARSE = b"\x0007", b"L", b"xX", b"S"
_NO_PLACE = b"Kg"
"""A link's long name, and pax records for all files."""
_BODILESS = b"123456"
"""Links, devices and folders: nothing follows their header, whatever size it states."""
_CHUNK = 1 << 20


class DamagedTarError(InputError):
    """A tar that is cut short or damaged: nothing behind the place can be trusted."""


class Member(NamedTuple):
    """A plain file in a tar: its name, and the offset and size of its content in bytes."""

    name: str
    offset: int
    size: int


def members(tar: Path) -> Iterator[Member]:
    """The plain files of an uncompressed tar (ustar, GNU or pax), in order.

    Raises DamagedTarError, with the byte, where a header is none, a file reaches past the tar's end, the blocks that end an
    archive are missing, or something follows them; what comes before is yielded. Raises OSError where it cannot be opened.
    """
    if tar.exists() and not tar.is_file():  # a pipe would be waited for
        raise OSError(errno.EINVAL, "not a regular file", str(tar))
    with tar.open("rb", buffering=0) as file:
        end, at = os.fstat(file.fileno()).st_size, 0
        name, size = "", -1  # what headers of their own say of the next file
        while True:
            header = os.pread(file.fileno(), BLOCK, at)
            if header == _END:
                break
            kind, length = _parse(header, at)
            body = at + BLOCK
            if kind in _FILE and size >= 0:
                length = size
            if kind in _BODILESS:
                length = 0
            after = body + -(-length // BLOCK) * BLOCK
            if body + length > end:
                raise DamagedTarError(f"cut at byte {end}, in the middle of a file")
            if kind == _LONG_NAME:
                name = _text(os.pread(file.fileno(), length, body))
            elif kind in _PAX:
                name, size = _pax(os.pread(file.fileno(), length, body), name, at)
            elif kind == _SPARSE:
                raise DamagedTarError(f"holds a sparse file at byte {at}")
            elif kind not in _NO_PLACE:
                if kind in _FILE:
                    yield Member(name or _name(header), body, length)
                name, size = "", -1
            at = after
        _check_end(file.fileno(), at)


def _parse(header: bytes, at: int) -> tuple[bytes, int]:
    """A header's type and the size that it states."""
    if len(header) < BLOCK:
        raise DamagedTarError(f"cut at byte {at + len(header)}: the blocks that end a tar are missing")
    with suppress(ValueError):
        told, length = _number(header[148:156]), _number(header[124:136])
        if length >= 0 and (told == sum(header) - sum(header[148:156]) + 256 or told in calc_chksums(header)):
            return header[156:157], length
    raise DamagedTarError(f"damaged at byte {at}: no tar header there")


def _number(field: bytes) -> int:
    """A number as tar writes it: octal digits, or from the first bit on in binary. Raises ValueError where it is none."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:]) + ((field[0] & 0x7F) << 8 * (len(field) - 1))
    return int(field.partition(b"\0")[0].strip() or b"0", 8)


def _name(header: bytes) -> str:
    name = _text(header[:100])
    folder = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""  # GNU's own format has times there
    return f"{folder}/{name}" if folder else name


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode(errors="surrogateescape")


def _pax(records: bytes, name: str, at: int) -> tuple[str, int]:
    """The name and the size (-1: not told) that pax records, "LENGTH KEY=VALUE\\n" each, give the next file."""
    size = -1
    while records.strip(b"\0"):
        length = int(number) if (number := records.partition(b" ")[0]).isdigit() else 0
        key, equals, value = records[len(number) + 1 : length - 1].partition(b"=")
        if not equals or key.startswith(b"GNU.sparse") or (key == b"size" and not value.isdigit()):
            raise DamagedTarError(f"damaged at byte {at}, or of a kind that is not read: {key.decode(errors='replace')[:40]!r}")
        if key == b"path":
            name = value.decode(errors="surrogateescape")
        elif key == b"size":
            size = int(value)
        records = records[length:]
    return name, size


def _check_end(file: int, at: int) -> None:
    while rest := os.pread(file, _CHUNK, at):
        if rest.strip(b"\0"):
            raise DamagedTarError(f"goes on behind its end at byte {at}: a header is blank, or one tar was put behind another")
        at += len(rest)
