"""Every coding that HTTP names is undone, or filed as our lack; a stream that is cut is never taken for a whole one."""

import gzip
import tracemalloc
import zlib
from collections.abc import Callable
from functools import partial

import brotli
import pytest
import zstandard

from filtering.images.codings import BrokenCodingError, CodingError, OversizeError, UnknownCodingError, codings_of, undone
from filtering.images.reasons import failure_of
from helpers.download_web import picture

MOST = 10**6
BODY = picture()


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(body) + packer.flush()


def framed(body: bytes) -> bytes:
    """A zstd stream that does not say how large it is."""
    packer = zstandard.ZstdCompressor().compressobj()
    return packer.compress(body) + packer.flush()


PACK: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "x-gzip": ("x-gzip", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "deflate without a header": ("deflate", raw_deflate),
    "br": ("br", partial(brotli.compress, quality=1)),
    "zstd": ("zstd", zstandard.ZstdCompressor().compress),
    "zstd of unknown size": ("zstd", framed),
}


@pytest.mark.parametrize("name", PACK)
@pytest.mark.parametrize("body", [BODY, b"", b"x", bytes(MOST)], ids=["picture", "empty", "byte", "zeros"])
def test_codings(name: str, body: bytes) -> None:
    coding, pack = PACK[name]
    assert undone(pack(body), [coding], MOST) == body


@pytest.mark.parametrize("name", PACK)
def test_a_cut_stream_is_broken(name: str) -> None:
    coding, pack = PACK[name]
    packed = pack(BODY)
    for kept in (0, 1, 5, len(packed) // 2, len(packed) - 1):
        with pytest.raises(BrokenCodingError, match=f"^{coding}: "):
            undone(packed[:kept], [coding], MOST)
    assert failure_of(BrokenCodingError.status) == "transient"


@pytest.mark.parametrize("name", ["gzip", "deflate", "br", "zstd"])
def test_a_damaged_stream_is_broken(name: str) -> None:
    with pytest.raises(BrokenCodingError):
        undone(b"hello, this is no packed stream", [name], MOST)
    coding, pack = PACK[name]
    packed = bytearray(pack(BODY))
    packed[len(packed) // 2] ^= 0xFF
    if name in ("gzip", "deflate"):  # the others carry no checksum
        with pytest.raises(BrokenCodingError):
            undone(bytes(packed), [coding], MOST)


@pytest.mark.parametrize("name", PACK)
def test_bombs_are_stopped(name: str) -> None:
    coding, pack = PACK[name]
    bomb = pack(bytes(32 * 2**20))
    tracemalloc.start()
    try:
        with pytest.raises(OversizeError):
            undone(bomb, [coding], MOST)
        with pytest.raises(CodingError):  # the inner bomb is larger than what may come out
            undone(pack(bomb), [coding, coding], len(bomb) - 1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * 2**20


def test_the_bound_is_exact() -> None:
    for coding, pack in PACK.values():
        assert undone(pack(BODY), [coding], len(BODY)) == BODY
        with pytest.raises(OversizeError):
            undone(pack(BODY), [coding], len(BODY) - 1)


def test_members_in_a_row_are_one_stream() -> None:
    half = len(BODY) // 2
    for pack, coding in ((gzip.compress, "gzip"), (framed, "zstd")):
        assert undone(pack(BODY[:half]) + pack(BODY[half:]), [coding], MOST) == BODY
        with pytest.raises(BrokenCodingError):
            undone(pack(BODY[:half]) + pack(BODY[half:])[:-1], [coding], MOST)
        with pytest.raises(BrokenCodingError, match="members"):
            undone(pack(b"") * 100_000, [coding], MOST)
    assert undone(gzip.compress(BODY) + b"\0\0\0", ["gzip"], MOST) == BODY  # padding


def test_lists_are_undone_from_the_last_to_the_first() -> None:
    packed = zstandard.ZstdCompressor().compress(brotli.compress(gzip.compress(BODY)))
    assert undone(packed, ["gzip", "br", "zstd"], MOST) == BODY
    with pytest.raises(UnknownCodingError, match="5 times"):
        undone(packed, ["gzip"] * 5, MOST)


@pytest.mark.parametrize("coding", ["compress", "x-compress", "pack200-gzip", "none", "utf-8"])
def test_what_is_not_undone_is_our_lack(coding: str) -> None:
    with pytest.raises(UnknownCodingError) as error:
        undone(gzip.compress(BODY), [coding, "gzip"], MOST)
    assert error.value.body == BODY  # as far as it could be unpacked
    assert failure_of(error.value.status) == "transient"


@pytest.mark.parametrize(
    ("values", "codings"),
    [
        ([], []),
        (["gzip"], ["gzip"]),
        (["GZip , BR"], ["gzip", "br"]),
        (["gzip", "br"], ["gzip", "br"]),
        (["identity", "Identity, gzip,,"], ["gzip"]),
        (["gzip;q=1.0"], ["gzip"]),
        ([""], []),
    ],
)
def test_headers(values: list[str], codings: list[str]) -> None:
    assert codings_of(values) == codings
