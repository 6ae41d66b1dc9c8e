"""Where strangers' links may lead: to the addresses of the public internet alone.

A caption file can name the user's own router, the cloud's metadata service, or a file. Nothing here asks the network.
"""

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

from filtering import InputError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class ConnectError(OSError):
    """A host that no connection is made to; the class says which status that is."""

    status: str


class ForbiddenAddressError(ConnectError):
    """The address is not public, and `allow` does not name it."""

    status = "forbidden_address"


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
