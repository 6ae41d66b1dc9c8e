"""What HTTP may have packed a body in, undone within a bound: gzip, deflate, br and zstd, by all their names, in any order."""

import zlib
from collections.abc import Callable, Iterable, Sequence

MAX_CODINGS = 4
_MAX_MEMBERS = 100  # of a gzip or zstd stream, which may be several in a row: each costs a copy of what is left
_ZSTD_WINDOW = 2**23  # bytes: RFC 9659 allows no more on the web
_STEP = 2**16


class CodingError(ValueError):
    """A body that could not be unpacked; the class says which status that is."""

    status: str


class UnknownCodingError(CodingError):
    """Packed in a way that is not undone here; `body` is as far as it could be unpacked."""

    status = "unknown_coding"

    def __init__(self, message: str, body: bytes) -> None:
        super().__init__(message)
        self.body = body


class BrokenCodingError(CodingError):
    """The packed body is damaged, or ends too early."""

    status = "incomplete"


class OversizeError(CodingError):
    """Unpacked it has more bytes than wanted."""

    status = "too_large"


def codings_of(values: Iterable[str]) -> list[str]:
    """The codings of Content-Encoding or Transfer-Encoding headers in the order in which they were applied, in lower case."""
    names = (name.partition(";")[0].strip().lower() for value in values for name in value.split(","))
    return [name for name in names if name and name != "identity"]


def undone(body: bytes, codings: Sequence[str], most: int) -> bytes:
    """The body as it was before the codings were applied, first to last. Raises CodingError; never makes more than `most` bytes
    at a step, and some more.
    """
    if len(codings) > MAX_CODINGS:
        raise UnknownCodingError(f"packed {len(codings)} times", body)
    for coding in reversed(codings):
        if coding not in _UNDO:
            raise UnknownCodingError(f"packed as {coding[:40]!r}, which is not undone here", body)
        body = _UNDO[coding](body, coding, most)
    return body


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise OversizeError(f"more than {most} bytes")


def _gunzip(body: bytes, coding: str, most: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while not parts or body.startswith(b"\x1f\x8b"):  # anything else behind the end is ignored
        if len(parts) == _MAX_MEMBERS:
            raise BrokenCodingError(f"{coding}: more than {_MAX_MEMBERS} members")
        part, body = _inflated(body, coding, most - size, zlib.MAX_WBITS | 16)
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def _inflate(body: bytes, coding: str, most: int) -> bytes:
    """With zlib's header and checksum, as the standard has it, or without, as some servers have it."""
    try:
        return _inflated(body, coding, most, zlib.MAX_WBITS)[0]
    except BrokenCodingError as error:
        try:
            return _inflated(body, coding, most, -zlib.MAX_WBITS)[0]
        except BrokenCodingError:
            raise error from None


def _inflated(body: bytes, coding: str, most: int, format_bits: int) -> tuple[bytes, bytes]:
    """The first stream of the body unpacked, and what lies behind it."""
    unpacker = zlib.decompressobj(format_bits)
    try:
        unpacked = unpacker.decompress(body, most + 1)
    except zlib.error:
        raise BrokenCodingError(f"{coding}: damaged") from None
    _check_size(len(unpacked), most)
    if not unpacker.eof:
        raise BrokenCodingError(f"{coding}: ends after {len(unpacked)} bytes, unfinished")
    return unpacked, unpacker.unused_data


def _unbrotli(body: bytes, coding: str, most: int) -> bytes:
    try:
        import brotli
    except ImportError:
        raise UnknownCodingError(f"packed as {coding!r}; the package brotli, which undoes it, is not installed", body) from None
    unpacker = brotli.Decompressor()
    parts: list[bytes] = []
    size = 0
    try:
        while True:
            parts.append(unpacker.process(body, output_buffer_limit=_STEP))
            body = b""  # all of it is taken at once, and given back bit by bit
            size += len(parts[-1])
            _check_size(size, most)
            if unpacker.is_finished():
                return b"".join(parts)
            if not parts[-1] and unpacker.can_accept_more_data():
                raise BrokenCodingError(f"{coding}: ends after {size} bytes, unfinished")
    except brotli.error:
        raise BrokenCodingError(f"{coding}: damaged") from None


def _unzstd(body: bytes, coding: str, most: int) -> bytes:
    try:
        import zstandard
    except ImportError:
        raise UnknownCodingError(
            f"packed as {coding!r}; the package zstandard, which undoes it, is not installed", body
        ) from None
    parts: list[bytes] = []
    size = 0
    for _ in range(_MAX_MEMBERS):
        unpacker = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()
        at = 0
        try:
            while at < len(body) and not unpacker.eof:
                parts.append(unpacker.decompress(body[at : at + 256]))  # 4 bytes can make 128 kB, and nothing limits the output
                at += 256
                size += len(parts[-1])
                _check_size(size, most)
        except zstandard.ZstdError:
            raise BrokenCodingError(f"{coding}: damaged") from None
        if not unpacker.eof:
            raise BrokenCodingError(f"{coding}: ends after {size} bytes, unfinished")
        body = unpacker.unused_data + body[at:]
        if not body:
            return b"".join(parts)
    raise BrokenCodingError(f"{coding}: more than {_MAX_MEMBERS} members")


_UNDO: dict[str, Callable[[bytes, str, int], bytes]] = {
    "gzip": _gunzip,
    "x-gzip": _gunzip,
    "deflate": _inflate,
    "br": _unbrotli,
    "zstd": _unzstd,
}
