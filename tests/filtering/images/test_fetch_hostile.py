"""What hostile web servers try: each case against real servers, which count what reached them."""

import resource
import socket
import ssl
import subprocess
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pytest

from helpers.download_web import HOST, Raw, Web, answer, gzip_bomb, picture
from helpers.downloads import fetch_once


@pytest.mark.parametrize(
    "url",
    [
        *(
            "file:///etc/hostname",
            "FILE://localhost/etc/hostname",
            "ftp://x/y.jpg",
            "gopher://x/",
            "data:image/png;base64,AAAA",
        ),
        *("javascript:alert(1)", "ws://x/", "unix:///run/docker.sock", "blob:http://x/y", "view-source:http://x/"),
    ],
)
def test_other_schemes_are_not_opened(web: Web, url: str) -> None:
    before = web.requests.total()
    redirect = f"http://{HOST}/redirect?to={quote(url, safe='')}"
    assert [o.status for o in fetch_once(url, redirect, connect_to=web.connect_to)] == ["bad_scheme"] * 2
    assert web.requests.total() == before + 1


@pytest.mark.parametrize(
    ("location", "status"),
    [
        (b"http://user:secret@photos.test/image", "bad_url"),
        (b"http://photos.test/\x01", "bad_url"),
        (b"http://photos.test/a\tb", "bad_url"),
        (b"http://[::1/x", "bad_url"),
        (b"http://photos.test:99999/", "bad_url"),
        (b"http://" + b"a" * 3000 + b".test/", "bad_url"),
        (b"http://" + b"a" * 10_000 + b".test/", "bad_url"),
        (b"http://" + b"a" * 70_000 + b".test/", "bad_http"),
        (b"\\\\127.0.0.1\\share", "http_404"),  # a path of the same host, as these two
        (b"http:///x", "http_404"),
        (b"//", "http_404"),
        (b"", "http_302"),
        (b"/fa\xe7ade", "http_404"),
        ("/façade".encode(), "http_404"),
    ],
)
def test_absurd_redirects(location: bytes, status: str) -> None:
    def serve(connection: socket.socket) -> None:
        first = len(server.requests) == 1
        head = b"302 Found\r\nLocation: " + location if first else b"404 Not Found"
        connection.sendall(b"HTTP/1.1 " + head + b"\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")

    with Raw(serve) as server:
        (outcome,) = fetch_once(f"http://{HOST}/", connect_to=server.connect_to)
    assert outcome.status == status
    assert server.connections == 1 + (status == "http_404")
    assert all(b"Referer" not in request and b"secret" not in request for request in server.requests)


def test_redirects_in_circles_end(web: Web) -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(answer(b"", "Location: /again", status="301 Moved"))

    with Raw(serve) as server:
        (outcome,) = fetch_once(f"http://{HOST}/", connect_to=server.connect_to, max_redirects=4)
    assert (outcome.status, outcome.attempts, server.connections) == ("too_many_redirects", 1, 5)


def test_a_redirect_may_forbid_use(web: Web) -> None:
    with Raw(answer(b"", f"Location: http://b.{HOST}/image", "X-Robots-Tag: noai", status="302 Found")) as server:
        connect_to = {**web.connect_to, HOST: f"127.0.0.1:{server.port}"}
        before = web.requests.total()
        (outcome,) = fetch_once(f"http://{HOST}/", connect_to=connect_to)
        assert (outcome.status, outcome.http_status, outcome.message) == ("opt_out", 302, "X-Robots-Tag: noai")
        assert web.requests.total() == before
        assert fetch_once(f"http://{HOST}/", connect_to=connect_to, respect_opt_out=False)[0].status == "success"


def test_no_cookie_is_sent_back() -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(answer(b"", "Location: /image", "Set-Cookie: id=1; Path=/", status="302 Found"))

    with Raw(serve) as server:
        fetch_once(f"http://{HOST}/", connect_to=server.connect_to, max_redirects=1)
    assert server.connections == 2
    assert not any(b"cookie" in request.lower() for request in server.requests)


# ---- what servers send


def endlessly(part: bytes, pause: float = 0.0) -> Callable[[socket.socket], None]:
    """Sends the head of an answer, as far as it is in `part`, and `part` again and again."""

    def serve(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        while True:
            connection.sendall(part)
            time.sleep(pause)

    return serve


@pytest.mark.timeout(60)  # without deadlines and caps they would never end
@pytest.mark.parametrize(
    ("serve", "status"),
    [
        (endlessly(b"X-A: b\r\n"), "bad_http"),
        (endlessly(b"x" * 1000), "bad_http"),
        (endlessly(b"X-A: b\r\n", 0.05), "timeout"),
        (endlessly(b"X", 0.05), "timeout"),
        (endlessly(b"\r\n" + bytes(10_000)), "too_large"),
        (answer(b"5\r\nimage\r\n" * 50_000, "Transfer-Encoding: chunked"), "too_large"),
        (answer(b"fffffffffffffffff\r\n", "Transfer-Encoding: chunked"), "bad_http"),
        (answer(b"x", "Content-Length: 99999999999"), "too_large"),
        (answer(b"x", "Content-Length: 100"), "incomplete"),
        (answer(b"xjunk", "Content-Length: 1"), "bad_http"),
        (answer(b"x", "Content-Length: 1", "Content-Length: 100"), "bad_http"),
        (answer(b"x", "Content-Length: 1, 1"), "bad_http"),
        (answer(b"0\r\n\r\n", "Content-Length: 5", "Transfer-Encoding: chunked"), "bad_http"),
        (answer(gzip_bomb(1024), "Content-Encoding: gzip"), "too_large"),
        (answer(b"", "X: " + "y" * 70_000), "bad_http"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, "connect"),
        (b"HTTP/1.1 999999 ?\r\n\r\n", "bad_http"),
        (b"\x16\x03\x01\x02\x00", "bad_http"),
    ],
)
def test_hostile_answers(serve: bytes | Callable[[socket.socket], None], status: str) -> None:
    with Raw(serve) as server:
        (outcome,) = fetch_once(f"http://{HOST}/", connect_to=server.connect_to, max_bytes=100_000, first_byte_timeout=2.0)
    assert (outcome.status, outcome.body) == (status, b"")
    assert outcome.message


def test_a_gzip_bomb_takes_no_memory() -> None:
    """A gigabyte of zeros: what is unpacked ahead of the byte cap is small."""
    with Raw(answer(gzip_bomb(1024), "Content-Encoding: gzip")) as server:
        tracemalloc.start()
        try:
            (outcome,) = fetch_once(f"http://{HOST}/", connect_to=server.connect_to, max_bytes=10**6)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert outcome.status == "too_large"
    assert peak < 16 * 2**20


@pytest.mark.parametrize(
    ("sent", "body"),
    [
        (answer(picture(), "Content-Type: text/html"), picture()),  # the bytes decide
        (answer(b"", "Content-Length: 0"), b""),
    ],
)
def test_lies_that_do_no_harm(sent: bytes, body: bytes) -> None:
    with Raw(sent) as server:
        (outcome,) = fetch_once(f"http://{HOST}/", connect_to=server.connect_to)
    assert (outcome.status, outcome.body) == ("success", body)


def test_of_a_body_longer_than_announced_what_was_announced_counts() -> None:
    body = picture(0, (1500, 1000))

    def serve(connection: socket.socket) -> None:
        connection.sendall(answer(body, f"Content-Length: {len(body)}")[:-1])
        time.sleep(0.1)
        connection.sendall(body[-1:] + b"HTTP/1.1 200 OK")

    with Raw(serve) as server:
        (outcome,) = fetch_once(f"http://{HOST}/", connect_to=server.connect_to)
    assert (outcome.status, outcome.body) == ("success", body)


def test_what_servers_write_cannot_break_a_log() -> None:
    with Raw(b"HTTP/1.1 404 \x1b[31mred" + b"x" * 1000 + b"\r\nContent-Length: 0\r\n\r\n") as server:
        (outcome,) = fetch_once(f"http://{HOST}/", connect_to=server.connect_to)
    assert outcome.message is not None
    assert outcome.message.isprintable()
    assert len(outcome.message) <= 200


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"first_byte_timeout": 0.3}, "no answer within 0.3 s"),
        ({"timeout": 0.4}, "no answer within 0.4 s"),
    ],
)
def test_a_server_that_accepts_and_says_nothing(settings: dict[str, float], message: str) -> None:
    with Raw(lambda connection: time.sleep(0.01) or connection.recv(1)) as server:
        (outcome,) = fetch_once(f"http://{HOST}/", connect_to=server.connect_to, **settings)
    assert (outcome.status, outcome.message) == ("timeout", message)


@pytest.mark.timeout(60)
def test_a_server_that_never_shakes_hands() -> None:
    """It accepts the connection and says nothing, where a TLS client waits for an answer."""
    with Raw(lambda connection: connection.recv(1) and None) as server:
        (outcome,) = fetch_once(f"https://{HOST}/", connect_to=server.connect_to, connect_timeout=0.3)
    assert (outcome.status, outcome.message) == ("timeout", "no connection within 0.3 s")


@pytest.fixture(scope="module")
def self_signed(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    """A server's TLS with a certificate that nobody vouches for."""
    folder: Path = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    command += ["-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}", "-keyout", str(key), "-out", str(certificate)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("openssl is not installed")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def test_a_certificate_that_nobody_vouches_for(self_signed: ssl.SSLContext) -> None:
    with Raw(answer(picture()), tls=self_signed) as server:
        (outcome,) = fetch_once(f"https://{HOST}/", connect_to=server.connect_to, attempts=3)
    assert (outcome.status, outcome.retryable, outcome.attempts) == ("tls", True, 1)
    assert "self-signed certificate" in (outcome.message or "").replace("self signed", "self-signed")
    assert (server.connections, server.requests) == (1, [])


def test_proxies_of_the_environment_are_not_used(web: Web, trap: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{trap.port}")
    monkeypatch.delenv("no_proxy", raising=False)
    assert fetch_once(f"http://{HOST}/image", connect_to=web.connect_to)[0].body == picture()
    assert trap.connections == 0


def test_many_open_connections_are_allowed(web: Web) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        urls = [f"http://host{i}.{HOST}/image?wait=0.2" for i in range(300)]
        outcomes = fetch_once(*urls, connect_to=web.connect_to, concurrency=300)
    finally:
        with suppress(ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert {outcome.status for outcome in outcomes} == {"success"}
