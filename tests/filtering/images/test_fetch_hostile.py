"""What hostile links, name servers and web servers try: each case against real servers, which count what reached them."""

import asyncio
import random
import re
import resource
import socket
import ssl
import subprocess
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pytest

from filtering.images.addresses import ForbiddenAddressError, Gate, LinkError, follow, is_address, link_of
from filtering.images.fetch import Fetcher, Outcome
from filtering.images.fetch_config import FetchConfig
from filtering.images.resolver import Resolver
from helpers.download_web import HOST, Raw, Web, answer, gzip_bomb, picture
from helpers.downloads import fetch_all
from helpers.name_server import Answer, NameServer


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    with Web() as web:
        yield web


@pytest.fixture
def trap() -> Iterator[Raw]:
    """A server of the user's own network, that strangers' links must not reach."""
    with Raw(answer(b"secret")) as trap:
        yield trap


def fetch(*urls: str, **settings: object) -> list[Outcome]:
    settings = {"timeout": 20.0, "backoff": 0.01, "attempts": 1, "per_host_rate": 0.0, **settings}
    return fetch_all(*urls, **settings)


OWN_NETWORK = [
    *("http://127.0.0.1:{port}/", "HTTP://127.0.0.1:{port}/", "http://127.0.0.1.:{port}/", "https://127.0.0.1:{port}/"),
    *("http://127.8.7.6:{port}/", "http://127.1:{port}/", "http://127.0.1:{port}/", "http://0:{port}/"),
    *("http://2130706433:{port}/", "http://0x7f000001:{port}/", "http://0X7F.1:{port}/", "http://0177.0.0.1:{port}/"),
    *("http://017700000001:{port}/", "http://00000177.0.0.0x1:{port}/", "http://%31%32%37.0.0.1:{port}/"),
    *("http://１２７.0.0.1:{port}/", "http://127。0。0。1:{port}/", "http://①②⑦.0.0.1:{port}/"),
    *("http://[::1]:{port}/", "http://[0:0:0:0:0:0:0:1]:{port}/", "http://[::]:{port}/", "http://%5B::1%5D:{port}/"),
    *("http://[::ffff:127.0.0.1]:{port}/", "http://[::FFFF:7f00:1]:{port}/", "http://[::127.0.0.1]:{port}/"),
    *("http://[64:ff9b::127.0.0.1]:{port}/", "http://[64:ff9b:1::7f00:1]:{port}/", "http://[2002:7f00:1::1]:{port}/"),
    *("http://[2001:0:0:0:0:0:80ff:fffe]:{port}/", "http://[2a00::5efe:127.0.0.1]:{port}/", "http://[::1%25lo]:{port}/"),
    *("http://localhost:{port}/", "http://LOCALHOST.:{port}/", "http://a.localhost:{port}/", "http://ｌocalhost:{port}/"),
]


@pytest.mark.parametrize("url", OWN_NETWORK)
def test_no_spelling_of_an_own_address_is_reached(web: Web, trap: Raw, url: str) -> None:
    """Neither by a link nor by a redirect; that `connect_to` leads another name to the very same server opens no door."""
    url = url.format(port=trap.port)
    before = web.requests.total()
    redirect = f"http://{HOST}/redirect?to={quote(url, safe='')}"
    with NameServer({}) as names:
        connect_to = {**web.connect_to, "photos.own": f"127.0.0.1:{trap.port}"}
        outcomes = fetch(url, redirect, connect_to=connect_to, nameservers=(names.address,))
    assert [outcome.status for outcome in outcomes] == ["forbidden_address"] * 2
    assert [outcome.retryable for outcome in outcomes] == [False] * 2
    assert all("is not a public address" in (outcome.message or "") for outcome in outcomes)
    assert trap.connections == 0
    assert web.requests.total() == before + 1


FORBIDDEN = [
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200", "100.127.255.255", "127.0.0.1"),
    *("168.63.129.16", "169.254.0.23", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.0.192"),
    *("192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1"),
    *(
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
    ),
    *("::ffff:0:8.8.8.8", "64:ff9b::10.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "100::1", "2001::1", "2001:2::1"),
    *("2001:10::1", "2001:20::1", "2001:db8::1", "2002:808:808::1", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254"),
    *("fd20:ce::254", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "2a00::200:5efe:10.0.0.1", "2a00::1%eth0", "no address"),
]


@pytest.mark.parametrize("address", FORBIDDEN)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not Gate().permits(address)


@pytest.mark.parametrize(
    "address",
    [
        *("1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.1", "168.63.129.17", "172.15.0.1", "172.32.0.1", "192.0.1.1"),
        *("::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2001:4860:4860::8888", "2606:4700:4700::1111", "2a00:1450:4001::1"),
    ],
)
def test_public_addresses(address: str) -> None:
    assert Gate().permits(address)


def test_allowed_networks_are_the_exception() -> None:
    gate = Gate(["10.0.0.0/8", "127.0.0.1", "fd00::/8"])
    assert all(gate.permits(address) for address in ("10.1.2.3", "127.0.0.1", "::ffff:10.1.2.3", "fd00::1"))
    assert not any(gate.permits(address) for address in ("11.0.0.1%1", "127.0.0.2", "192.168.1.1", "fe80::1", "fd00::1%eth0"))


def test_an_allowed_address_is_reached(trap: Raw) -> None:
    numbers, other = fetch(f"http://2130706433:{trap.port}/", f"http://127.0.0.2:{trap.port}/", allow=("127.0.0.1",))
    assert (numbers.body, other.status) == (b"secret", "forbidden_address")
    assert b"Host: 127.0.0.1:" in trap.requests[0]  # as a browser would write it


def test_the_socket_is_refused_even_if_all_else_lets_an_address_pass() -> None:
    async def connect() -> None:
        resolver = Resolver(Gate(), {HOST: "127.0.0.1:80"}, [], 1.0)
        address = (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 80))
        resolver.set_route(HOST)
        resolver.open_socket(address).close()  # the user's own route
        resolver.set_route(f"other-{HOST}")
        for forbidden in (address, (socket.AF_INET6, socket.SOCK_STREAM, 0, "", ("2a00::1", 80, 0, 3))):
            with pytest.raises(ForbiddenAddressError):
                resolver.open_socket(forbidden)
        await resolver.close()

    asyncio.run(connect())


# ---- names


@pytest.mark.parametrize(
    ("answers", "status"),
    [
        ([["127.0.0.1"]], "forbidden_address"),
        ([["10.0.0.1", "127.0.0.1", "::1"]], "forbidden_address"),
        ([["::1"]], "forbidden_address"),
        ([["::ffff:127.0.0.1"]], "forbidden_address"),
        ([["64:ff9b::7f00:1"]], "forbidden_address"),
        ([["0.0.0.0"]], "forbidden_address"),
        ([["169.254.169.254", "fd00:ec2::254"]], "forbidden_address"),
        (["NXDOMAIN"], "dns_unknown"),
        ([[]], "dns_unknown"),
        (["SERVFAIL"], "dns"),
        (["REFUSED"], "dns"),
        (["silence"], "dns"),
    ],
)
def test_what_name_servers_say(trap: Raw, answers: list[Answer], status: str) -> None:
    with NameServer({"evil.test": answers}) as names:
        outcomes = fetch(f"http://evil.test:{trap.port}/", nameservers=(names.address,), connect_timeout=1.0)
    assert [outcome.status for outcome in outcomes] == [status]
    assert outcomes[0].message
    assert trap.connections == 0


def test_no_name_server_at_all(free_port: Callable[[], int]) -> None:
    (outcome,) = fetch("http://photos.test/", nameservers=(f"127.0.0.1:{free_port()}",), attempts=2)
    assert (outcome.status, outcome.retryable, outcome.attempts) == ("dns", True, 2)


def test_of_a_name_with_public_and_own_addresses_only_the_public_ones_are_reached(trap: Raw) -> None:
    with (
        Raw(answer(picture()), address="127.0.0.2", port=trap.port) as public,
        NameServer({"evil.test": [["127.0.0.1", "127.0.0.2", "::1"]], "dead.test": [["127.0.0.1", "127.0.0.3"]]}) as names,
    ):
        urls = (f"http://evil.test:{trap.port}/", f"http://dead.test:{trap.port}/")
        outcomes = fetch(*urls, nameservers=(names.address,), allow=("127.0.0.2", "127.0.0.3"))
    assert [outcome.status for outcome in outcomes] == ["success", "connect"]
    assert (public.connections, trap.connections) == (1, 0)


def test_a_name_that_changes_its_address_between_check_and_connection_reaches_nothing(trap: Raw) -> None:
    """The first answer is a public address, all later ones the user's own; every further request takes a new connection."""
    with (
        Raw(answer(picture()), address="127.0.0.2", port=trap.port) as public,
        NameServer({"rebind.test": [["127.0.0.2"], ["127.0.0.1"]]}) as names,
    ):
        url = f"http://rebind.test:{trap.port}/"
        settings = {"nameservers": (names.address,), "allow": ("127.0.0.2",)}
        together = fetch(url, url, url, **settings)
        assert [outcome.status for outcome in together] == ["success"] * 3
        assert names.questions["rebind.test", "A"] == 1
        assert [outcome.status for outcome in fetch(url, **settings)] == ["forbidden_address"]
        assert names.questions["rebind.test", "A"] == 2
    assert (public.connections, trap.connections) == (3, 0)


def test_the_links_of_a_dead_name_cost_one_look_up() -> None:
    async def one_after_the_other(names: NameServer) -> list[Outcome]:
        outcomes = []
        async with Fetcher(FetchConfig(nameservers=(names.address,))) as fetcher:
            for i in range(20):
                async with fetcher.fetch(f"http://gone.test/{i}.jpg") as outcome:
                    outcomes.append(outcome)
        return outcomes

    with NameServer({}) as names:
        outcomes = asyncio.run(one_after_the_other(names))
    assert {outcome.status for outcome in outcomes} == {"dns_unknown"}
    assert names.questions == {("gone.test", "A"): 1}


def test_names_are_absolute() -> None:
    """No search domain of this machine's is tried behind a name."""
    with NameServer({}) as names:
        fetch("http://intranet/x.jpg", "http://photos.nowhere/x.jpg", nameservers=(names.address,))
    assert {name for name, _ in names.questions} == {"intranet", "photos.nowhere"}


# ---- the shape of links


BAD_URLS = [
    *(f"http://{HOST}/a\r\nX-Evil: 1", f"http://{HOST}/a\nb", f"http://{HOST}/a\x00b", f"http://{HOST}\r\nX-Evil: 1/"),
    *(f"http://{HOST}/\x7f", f"http://{HOST}/\udcff", f"http://{HOST}\\@evil.test/", f"http://{HOST}\\.evil.test/"),
    *(f"http://user:secret@{HOST}/image", f"http://user@{HOST}/image", f"http://@{HOST}/", f"http://%40{HOST}/"),
    *(f"http://{HOST}%2f.evil.test/", f"http://{HOST}%00.evil.test/", f"http://{HOST}%0d%0aX-Evil:1/", f"http://{HOST} x/"),
    *(f"http://{HOST}:0/", f"http://{HOST}:65536/", f"http://{HOST}:x/", f"http://{HOST}:-1/", "http://:80/", "http://./"),
    *(
        "http://a..b/",
        f"http://{'a' * 64}.test/",
        f"http://{'a.' * 127}test/",
        f"http://{HOST}/{'a' * 2048}",
        "http://[v1.x]/",
        "http://[::x]/",
    ),
    *("http://1.2.3.4.5/", "http://256.256.256.256/", "http://08.8.8.8/", "http://0x/", "http://a.7/", "http://9999999999/"),
    *("http:/image", "http:image", "http:", "http://", "///x", "image.jpg", "http://[::1", "http://<script>/", "http://a,b/"),
]


@pytest.mark.parametrize("url", BAD_URLS)
def test_bad_urls_send_nothing(web: Web, url: str) -> None:
    before = web.requests.total()
    (outcome,) = fetch(url, connect_to={**web.connect_to, "*.test": f"127.0.0.1:{web.port}"})
    assert (outcome.status, outcome.retryable, outcome.attempts) == ("bad_url", False, 0)
    assert outcome.message
    assert web.requests.total() == before


MARKS = [
    *(
        "http://",
        "https",
        ":",
        "/",
        "//",
        "@",
        "\\",
        "%",
        "%2f",
        "%40",
        "%00",
        "%99",
        "[",
        "]",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "::1",
    ),
    *(
        "127.0.0.1",
        "127.1",
        "0x7f",
        "2130706433",
        "１２７",
        "①",
        "。",
        ".",
        "..",
        "a",
        "ä",
        "ß",
        "İ",
        "\u212a",
        "xn--",
        "-",
        "_",
    ),
    *("\t", "\n", "\r", " ", "\u200b", "\u00ad", "\ud800", "#", "?", "80", "99999", "localhost", "fe80::1", "%25eth0"),
]


def test_any_jumble_of_marks_is_refused_or_one_plain_host() -> None:
    dice = random.Random(0)
    links = []
    for _ in range(20_000):
        with suppress(LinkError):  # and nothing else is raised
            link = link_of("http://" + "".join(dice.choices(MARKS, k=dice.randint(1, 7))))
            links.append(link)
            links.append(follow(link, "".join(dice.choices(MARKS, k=dice.randint(1, 7)))))
    assert len(links) > 1000
    for link in links:
        assert link.url.raw_host is not None
        assert link.url.raw_host.lower().removesuffix(".") == link.host  # what was looked at is what is asked for
        assert link.is_address == is_address(link.host)
        assert link.is_address or re.fullmatch(r"[a-z0-9._-]+", link.host)
        assert link.url.user is None


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
    assert [o.status for o in fetch(url, redirect, connect_to=web.connect_to)] == ["bad_scheme"] * 2
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
        (b"http://" + b"a" * 10_000 + b".test/", "bad_http"),
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
        (outcome,) = fetch(f"http://{HOST}/", connect_to=server.connect_to)
    assert outcome.status == status
    assert server.connections == 1 + (status == "http_404")
    assert all(b"Referer" not in request and b"secret" not in request for request in server.requests)


def test_redirects_in_circles_end(web: Web) -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(answer(b"", "Location: /again", status="301 Moved"))

    with Raw(serve) as server:
        (outcome,) = fetch(f"http://{HOST}/", connect_to=server.connect_to, max_redirects=4)
    assert (outcome.status, outcome.attempts, server.connections) == ("too_many_redirects", 1, 5)


def test_a_redirect_may_forbid_use(web: Web) -> None:
    with Raw(answer(b"", f"Location: http://b.{HOST}/image", "X-Robots-Tag: noai", status="302 Found")) as server:
        connect_to = {**web.connect_to, HOST: f"127.0.0.1:{server.port}"}
        before = web.requests.total()
        (outcome,) = fetch(f"http://{HOST}/", connect_to=connect_to)
        assert (outcome.status, outcome.http_status, outcome.message) == ("opt_out", 302, "X-Robots-Tag: noai")
        assert web.requests.total() == before
        assert fetch(f"http://{HOST}/", connect_to=connect_to, respect_opt_out=False)[0].status == "success"


def test_no_cookie_is_sent_back() -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(answer(b"", "Location: /image", "Set-Cookie: id=1; Path=/", status="302 Found"))

    with Raw(serve) as server:
        fetch(f"http://{HOST}/", connect_to=server.connect_to, max_redirects=1)
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
        (answer(b"", "X: " + "y" * 9000), "bad_http"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, "connect"),
        (b"HTTP/1.1 999999 ?\r\n\r\n", "bad_http"),
        (b"\x16\x03\x01\x02\x00", "bad_http"),
    ],
)
def test_hostile_answers(serve: bytes | Callable[[socket.socket], None], status: str) -> None:
    with Raw(serve) as server:
        (outcome,) = fetch(f"http://{HOST}/", connect_to=server.connect_to, max_bytes=100_000, first_byte_timeout=2.0)
    assert (outcome.status, outcome.body) == (status, b"")
    assert outcome.message


def test_a_gzip_bomb_takes_no_memory() -> None:
    """A gigabyte of zeros: what is unpacked ahead of the byte cap is small."""
    with Raw(answer(gzip_bomb(1024), "Content-Encoding: gzip")) as server:
        tracemalloc.start()
        try:
            (outcome,) = fetch(f"http://{HOST}/", connect_to=server.connect_to, max_bytes=10**6)
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
        (outcome,) = fetch(f"http://{HOST}/", connect_to=server.connect_to)
    assert (outcome.status, outcome.body) == ("success", body)


def test_of_a_body_longer_than_announced_what_was_announced_counts() -> None:
    body = picture(0, (1500, 1000))

    def serve(connection: socket.socket) -> None:
        connection.sendall(answer(body, f"Content-Length: {len(body)}")[:-1])
        time.sleep(0.1)
        connection.sendall(body[-1:] + b"HTTP/1.1 200 OK")

    with Raw(serve) as server:
        (outcome,) = fetch(f"http://{HOST}/", connect_to=server.connect_to)
    assert (outcome.status, outcome.body) == ("success", body)


def test_what_servers_write_cannot_break_a_log() -> None:
    with Raw(b"HTTP/1.1 404 \x1b[31mred" + b"x" * 1000 + b"\r\nContent-Length: 0\r\n\r\n") as server:
        (outcome,) = fetch(f"http://{HOST}/", connect_to=server.connect_to)
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
        (outcome,) = fetch(f"http://{HOST}/", connect_to=server.connect_to, **settings)
    assert (outcome.status, outcome.message) == ("timeout", message)


@pytest.mark.timeout(60)
def test_a_server_that_never_shakes_hands() -> None:
    """It accepts the connection and says nothing, where a TLS client waits for an answer."""
    with Raw(lambda connection: connection.recv(1) and None) as server:
        (outcome,) = fetch(f"https://{HOST}/", connect_to=server.connect_to, connect_timeout=0.3)
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
        (outcome,) = fetch(f"https://{HOST}/", connect_to=server.connect_to, attempts=3)
    assert (outcome.status, outcome.retryable, outcome.attempts) == ("tls", True, 1)
    assert "self-signed certificate" in (outcome.message or "").replace("self signed", "self-signed")
    assert (server.connections, server.requests) == (1, [])


def test_proxies_of_the_environment_are_not_used(web: Web, trap: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{trap.port}")
    monkeypatch.delenv("no_proxy", raising=False)
    assert fetch(f"http://{HOST}/image", connect_to=web.connect_to)[0].body == picture()
    assert trap.connections == 0


def test_many_open_connections_are_allowed(web: Web) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        urls = [f"http://host{i}.{HOST}/image?wait=0.2" for i in range(300)]
        outcomes = fetch(*urls, connect_to=web.connect_to, concurrency=300)
    finally:
        with suppress(ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert {outcome.status for outcome in outcomes} == {"success"}
