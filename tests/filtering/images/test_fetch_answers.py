"""What answers amount to: codings, parts, half heads, and that no request leaves that is not counted."""

import gzip
import socket
import struct
import time
import zlib
from collections.abc import Callable

import brotli
import pytest
import zstandard

from filtering.images.fetch import Outcome
from filtering.images.image_config import ImageConfig
from filtering.images.image_shards import finish
from filtering.images.reasons import failure_of
from filtering.images.resize import Resize
from helpers.download_web import HOST, Raw, answer, picture
from helpers.downloads import fetch_all, fetch_once

BODY = picture()
GZIP = gzip.compress(BODY)
BR = brotli.compress(BODY)


def chunks(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


def asked(sent: bytes | Callable[[socket.socket], None], **settings: object) -> tuple[Outcome, int]:
    """The outcome, and the connections that it took."""
    with Raw(sent) as server:
        (outcome,) = fetch_once(f"http://{HOST}/", connect_to=server.connect_to, **settings)
    return outcome, server.connections


# ---- codings


@pytest.mark.parametrize(
    "sent",
    [
        answer(GZIP, "Content-Encoding: gzip"),
        answer(GZIP, "content-encoding: X-GZIP"),
        answer(zlib.compress(BODY), "Content-Encoding: deflate"),
        answer(BR, "Content-Encoding: br"),
        answer(zstandard.ZstdCompressor().compress(BODY), "Content-Encoding: zstd"),
        answer(brotli.compress(GZIP), "Content-Encoding: gzip, br"),
        answer(brotli.compress(GZIP), "Content-Encoding: gzip", "Content-Encoding: br"),
        answer(BODY, "Content-Encoding: identity"),
        answer(chunks(GZIP), "Transfer-Encoding: gzip, chunked"),
        answer(chunks(GZIP), "Transfer-Encoding: gzip", "Transfer-Encoding: Chunked"),
        answer(GZIP, "Transfer-Encoding: x-gzip"),
        answer(chunks(gzip.compress(BR)), "Content-Encoding: br", "Transfer-Encoding: gzip, chunked"),
        answer(BODY, "Content-Encoding: utf-8"),  # no coding at all: browsers show it
        answer(GZIP, "Content-Encoding: none, gzip"),
    ],
)
def test_codings_are_undone(sent: bytes) -> None:
    outcome, _ = asked(sent)
    assert (outcome.status, outcome.body) == ("success", BODY)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (answer(GZIP[:-50], "Content-Encoding: gzip"), "incomplete"),
        (answer(GZIP[:-1], "Content-Encoding: gzip"), "incomplete"),
        (answer(chunks(GZIP[:-50]), "Content-Encoding: gzip", "Transfer-Encoding: chunked"), "incomplete"),
        (answer(chunks(GZIP[:-50]), "Transfer-Encoding: gzip, chunked"), "incomplete"),
        (answer(BR[:-50], "Content-Encoding: br"), "incomplete"),
        (answer(b"", "Content-Encoding: br"), "incomplete"),
        (answer(BODY, "Content-Encoding: gzip"), "incomplete"),
        (answer(b"packed", "Content-Encoding: compress"), "unknown_coding"),
        (answer(b"packed", "Content-Encoding: gzip-of-the-future"), "unknown_coding"),
        (answer(chunks(b"packed"), "Transfer-Encoding: x-compress, chunked"), "unknown_coding"),
    ],
)
def test_what_cannot_be_unpacked_is_asked_for_again_on_another_day(sent: bytes, status: str) -> None:
    outcome, _ = asked(sent)
    assert (outcome.status, outcome.body, outcome.retryable) == (status, b"", True)
    assert outcome.message


def test_packed_bodies_are_bounded_before_and_behind() -> None:
    assert (
        asked(answer(brotli.compress(bytes(10**6), quality=1), "Content-Encoding: br"), max_bytes=10**5)[0].status
        == "too_large"
    )
    packed = answer(GZIP, "Content-Encoding: gzip")
    assert asked(packed, max_bytes=max(len(BODY), len(GZIP)))[0].status == "success"
    assert asked(packed, max_bytes=len(BODY) - 1)[0].status == "too_large"


# ---- parts and other codes


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (answer(BODY, f"Content-Range: bytes 0-{len(BODY) - 1}/{len(BODY)}", status="206 Partial Content"), "success"),
        (answer(BODY, status="203 Non-Authoritative Information"), "success"),
        (answer(BODY, status="201 Created"), "success"),
        (answer(BODY[:99], f"Content-Range: bytes 0-98/{len(BODY)}", status="206 Partial Content"), "http_206"),
        (answer(BODY[1:], f"Content-Range: bytes 1-{len(BODY) - 1}/{len(BODY)}", status="206 Partial Content"), "http_206"),
        (answer(BODY, f"Content-Range: bytes 0-{len(BODY) - 1}/*", status="206 Partial Content"), "http_206"),
        (answer(BODY, status="206 Partial Content"), "http_206"),
        (answer(BODY[:99], "Content-Range: bytes 0-499/500", status="206 Partial Content"), "incomplete"),
        (answer(b"wait", status="202 Accepted"), "http_202"),
    ],
)
def test_codes_with_an_image(sent: bytes, status: str) -> None:
    outcome, _ = asked(sent)
    assert (outcome.status, outcome.body) == (status, BODY if status == "success" else b"")
    assert failure_of(outcome.status) != "permanent"


@pytest.mark.parametrize(("size", "status"), [(None, "success"), (-300, "incomplete")])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_body_of_unknown_length_may_have_been_cut(kind: str, size: int | None, status: str) -> None:
    outcome, _ = asked(b"HTTP/1.0 200 OK\r\n\r\n" + picture(0, (96, 64), kind)[:size])
    assert (outcome.status, outcome.delimited) == ("success", False)
    record, _ = finish(outcome, Resize(ImageConfig()))
    assert (record["status"], record["retryable"]) == (status, status == "incomplete")
    record, _ = finish(Outcome(status="success", body=outcome.body), Resize(ImageConfig()))
    assert record["failure"] == (None if size is None else "permanent")  # a file that is broken at its source


def test_a_body_of_no_length_that_never_came() -> None:
    assert asked(b"HTTP/1.1 200 OK\r\n\r\n")[0].status == "incomplete"


# ---- requests that nobody sees


def hang_up(head: bytes) -> Callable[[socket.socket], None]:
    """Sends the beginning of an answer and resets the connection."""

    def serve(connection: socket.socket) -> None:
        if head:
            connection.sendall(head)
            time.sleep(0.05)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return serve


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (b"", "the server hung up before it answered"),
        (b"HTTP/1.", "the server hung up within the head of its answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Ty", "the server hung up within the head of its answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n", "the server hung up within the head of its answer"),
        (hang_up(b""), "Connection reset by peer"),
        (hang_up(b"HTTP/1.1 200 OK\r\nConte"), "Connection reset by peer"),
    ],
)
@pytest.mark.parametrize("attempts", [1, 3])
def test_every_request_is_counted(sent: bytes | Callable[[socket.socket], None], message: str, attempts: int) -> None:
    outcome, connections = asked(sent, attempts=attempts)
    assert (outcome.status, outcome.attempts, outcome.message) == ("connect", attempts, message)
    assert connections == attempts


def test_a_connection_that_the_server_gave_up_is_counted_too() -> None:
    """It answers once, with a promise to keep the connection, and hangs up on the second request."""

    def serve(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
        if second := connection.recv(2**16):
            server.requests.append(second)

    with Raw(serve) as server:
        urls = [f"http://{HOST}/{number}" for number in range(2)]
        outcomes = fetch_all(*urls, attempts=1, per_host=1, per_host_rate=0.0, connect_to=server.connect_to)
    assert sorted(outcome.status for outcome in outcomes) == ["connect", "success"]
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    "sent",
    [
        answer(BODY, "Content-Length: 9999"),
        answer(b"ff\r\nimage", "Transfer-Encoding: chunked"),
        answer(b"zz\r\n", "Transfer-Encoding: chunked"),
        answer(b"", "X: " + "y" * 70_000),
        b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 200 OK\r\nfoo bar\r\n\r\n",
        hang_up(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc"),
    ],
)
def test_messages_are_words_and_not_objects(sent: bytes | Callable[[socket.socket], None]) -> None:
    outcome, _ = asked(sent)
    assert outcome.message
    assert not any(mark in outcome.message for mark in ("<", "b'", 'b"', "Error", "\\x"))
    assert failure_of(outcome.status) == "transient"


def test_heads_as_long_as_browsers_take_them() -> None:
    head = [f"X-Policy-{number}: {'y' * 300}" for number in range(200)]
    outcome, _ = asked(answer(BODY, "Content-Security-Policy: " + "z" * 30_000, *head))
    assert outcome.body == BODY
