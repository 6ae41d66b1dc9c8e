"""What strangers' links may lead to: the shape of a URL, and the addresses of the public internet alone.

A caption file can name the user's own router, the cloud's metadata service, or a file. Nothing here asks the network.
"""

import ipaddress
import re
import socket
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote, urljoin

from yarl import URL

from filtering import InputError
from filtering.url import MAX_LENGTH

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class LinkError(ValueError):
    """A link that is not asked for: `status` is "bad_url" or "bad_scheme"."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


class ConnectError(OSError):
    """A host that no connection is made to; the class says which status that is."""

    status: str


class ForbiddenAddressError(ConnectError):
    """The address is not public, and `allow` does not name it."""

    status = "forbidden_address"


class Link(NamedTuple):
    """A URL as it goes on the wire."""

    url: URL
    host: str
    """Lower case, IDNs as "xn--...", without a trailing dot; IPv6 addresses without brackets."""
    is_address: bool


_ABSOLUTE = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*):(?P<slashes>//)?(?P<authority>[^/?#]*)", re.IGNORECASE)
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_RAW_BYTE = re.compile(r"[\udc80-\udcff]")  # how aiohttp hands over header bytes that are not UTF-8
_HOST_NAME = re.compile(r"(?=.{1,253}$)(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}")
_ENDS_IN_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")


def link_of(url: str) -> Link:
    """The link that a browser would open for `url`; LinkError if there is none, or it is none for us.

    Addresses are read as the WHATWG URL standard reads them: 2130706433, 0x7f.1, 0177.0.0.1, "127.0.0.1." and full-width digits
    all become 127.0.0.1. Credentials are refused: pictures that need a password are not ours to take.
    """
    url = url.strip()
    if len(url) > MAX_LENGTH:
        raise LinkError("bad_url", f"longer than {MAX_LENGTH} characters")
    if _UNPRINTABLE.search(url):
        raise LinkError("bad_url", "control characters in the URL")
    if (parts := _ABSOLUTE.match(url)) is None:
        raise LinkError("bad_url", "not an absolute URL")
    if (scheme := parts["scheme"].lower()) not in ("http", "https"):
        raise LinkError("bad_scheme", f"{scheme}: is not http or https")
    authority = parts["authority"]
    if "%" in authority and "[" not in authority:
        authority = unquote(authority)  # what is no UTF-8 becomes a mark that no host name holds
        url = f"{scheme}://{authority}{url[parts.end() :]}"
    if not parts["slashes"] or not authority or re.search(r"[\s@\\/?#\x00-\x1f]", authority):
        raise LinkError("bad_url", "no host, or credentials or other marks in its place")
    try:
        parsed = URL(url)
    except ValueError as error:  # UnicodeError is one
        raise LinkError("bad_url", str(error)) from None
    if not (host := parsed.raw_host) or parsed.port == 0:
        raise LinkError("bad_url", "no host or no port")
    name = host.lower().removesuffix(".")
    if "[" in authority and is_address(name):
        return Link(parsed, name, True)
    if "[" in authority or not _HOST_NAME.fullmatch(name):
        raise LinkError("bad_url", f"{name[:80]!r} is not a host name")
    if not _ENDS_IN_NUMBER.fullmatch(name):
        return Link(parsed, name, False)
    try:
        address = socket.inet_ntoa(socket.inet_aton(name))
    except OSError:
        raise LinkError("bad_url", f"{name[:80]!r} is not an address") from None
    return Link(parsed if host == address else parsed.with_host(address), address, True)


def follow(link: Link, location: str) -> Link:
    """Where a redirect leads; LinkError as `link_of`."""
    location = _RAW_BYTE.sub(lambda byte: f"%{ord(byte[0]) - 0xDC00:02X}", location.strip())
    if _UNPRINTABLE.search(location):  # urljoin would take some of them out
        raise LinkError("bad_url", "control characters in the redirect")
    try:
        return link_of(urljoin(str(link.url), location))
    except LinkError as refusal:
        raise LinkError(refusal.status, f"redirected: {refusal}") from None
    except ValueError as error:
        raise LinkError("bad_url", f"redirected: {error}") from None


def is_address(host: str) -> bool:
    """Whether `host` is an address in the usual spelling."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


# What `ipaddress` calls global differs from one patch release of Python to the next, so the registries' special networks
# (RFC 6890 and its followers) are named here too.
_NOT_PUBLIC = [
    ipaddress.ip_network(network)
    for network in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24"),
        *("192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
        *("224.0.0.0/4", "240.0.0.0/4"),
        "168.63.129.16/32",  # a public address on paper; on Azure the host of the virtual machine
        "2001::/23",  # Teredo, benchmarking, ORCHID: protocols, no web servers
        "2001:db8::/32",
        "2002::/16",  # 6to4: an IPv4 address of anybody's inside
        "3fff::/20",
    )
]
_UNICAST = ipaddress.ip_network("2000::/3")
"""All that IPv6 has of public addresses; loopback, unique local, link-local, multicast, IPv4-compatible ones lie outside."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_ISATAP = (0x00005EFE, 0x02005EFE)


class Gate:
    """Which addresses may be connected to: those of the public internet, and those that the user allows."""

    def __init__(self, allow: Iterable[str] = ()) -> None:
        self._allow = [_network(text) for text in allow]
        self.permits = lru_cache(2**16)(self._permits)

    def check(self, address: str) -> None:
        """ForbiddenAddressError unless `address` may be connected to."""
        if not self.permits(address):
            raise ForbiddenAddressError(f"{address} is not a public address")

    def _permits(self, text: str) -> bool:
        try:
            address: Address = ipaddress.ip_address(text)
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address):
            if address.scope_id is not None:
                return False
            address = address.ipv4_mapped or address
        return any(address in network for network in self._allow) or _is_public(address)


def _is_public(address: Address) -> bool:
    if any(address in network for network in _NOT_PUBLIC):
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_global and not address.is_multicast
    ipv4 = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address in _NAT64:
        return _is_public(ipv4)  # how a network without IPv4 reaches the rest of the web
    if int(address) >> 32 & 0xFFFFFFFF in _ISATAP and not _is_public(ipv4):
        return False
    return address in _UNICAST and address.is_global


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise InputError(f"allow: {error}; give addresses or networks such as '10.0.0.0/8'") from None
