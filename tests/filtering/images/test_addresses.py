"""Links and the addresses behind them: whatever the spelling, nothing of the user's own network is reached."""

import asyncio
import random
import re
import socket
from contextlib import suppress
from urllib.parse import quote

import pytest

from filtering.images.addresses import ForbiddenAddressError, Gate
from filtering.images.resolver import Resolver
from filtering.url import LinkError, follow, is_address, link_of
from helpers.download_web import HOST, Raw, Web
from helpers.downloads import fetch_once
from helpers.name_server import NameServer

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
        outcomes = fetch_once(url, redirect, connect_to=connect_to, nameservers=(names.address,))
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
    numbers, other = fetch_once(f"http://2130706433:{trap.port}/", f"http://127.0.0.2:{trap.port}/", allow=("127.0.0.1",))
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


# ---- the shape of links


BAD_URLS = [
    *(f"http://{HOST}/a\x00b", f"http://{HOST}\r\nX-Evil: 1/", f"http://{HOST}/\x7f", f"http://{HOST}/\udcff"),
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
    (outcome,) = fetch_once(url, connect_to={**web.connect_to, "*.test": f"127.0.0.1:{web.port}"})
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
