"""From host names to sockets: name look-ups, the user's own routes, and the last check before a connection is made."""

import asyncio
import socket
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import aiodns
import pycares

from filtering import InputError
from filtering.images.addresses import ConnectError, ForbiddenAddressError, Gate
from filtering.url import is_address

_AT_ONCE = 32  # look-ups, mostly one question each: name servers drop what goes beyond their limits
_ADDRESSES = 4  # per name: if all are dead, aiohttp tries n, n - 1, n - 2, ... of them
# Names are absolute: with the search domains of resolv.conf "example.com" could mean a host of the user's cluster.
_FLAGS = pycares.ARES_FLAG_NOSEARCH | pycares.ARES_FLAG_NOALIASES | pycares.ARES_FLAG_EDNS

_OWN_ROUTE: ContextVar[bool] = ContextVar("own_route", default=False)
"""Whether the request under way goes to a host whose route the user gave."""


class UnknownNameError(ConnectError):
    """The name servers say that there is no such name, or that it has no address."""

    status = "dns_unknown"


class NoAddressError(UnknownNameError):
    """The name exists, but not with an address of this family."""


class NameServerError(ConnectError):
    """The name servers failed or did not answer."""

    status = "dns"


class Resolver:
    """aiohttp's resolver and socket factory, and so the one place where the address of a connection is decided."""

    def __init__(self, gate: Gate, connect_to: Mapping[str, str], nameservers: Sequence[str], seconds: float) -> None:
        """`seconds` is the longest that a look-up may take. InputError if a target or a name server is none."""
        self._gate = gate
        self._targets = {host.lower(): target_of(target) for host, target in connect_to.items()}
        self._seconds = seconds
        self._dns = aiodns.DNSResolver(nameservers or None, timeout=seconds / 3, tries=2, flags=_FLAGS)
        self._at_once = asyncio.Semaphore(_AT_ONCE)
        self.target = lru_cache(2**12)(self._target)

    def set_route(self, host: str) -> None:
        """To be called before a request to `host`, in the task that makes it."""
        _OWN_ROUTE.set(self.target(host) is not None)

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[Any]:
        """The addresses of `host` that may be connected to; ConnectError if there are none."""
        name = host.lower().rstrip(".")
        target = self.target(name)
        address, port = target or (name, port)
        if target and is_address(address):
            return [_found(host, address, port)]
        found = await self._look_up(address)
        if not target:
            found, refused = [a for a in found if self._gate.permits(a)], found
            if not found:
                raise ForbiddenAddressError(f"{refused[0]} is not a public address")
        return [_found(host, address, port) for address in found[:_ADDRESSES]]

    async def try_connect(self, host: str, port: int) -> None:
        """Connect to `host`, and hang up without a word. OSError if nobody takes the connection."""
        found, *_ = await self.resolve(host, port)
        _, writer = await asyncio.open_connection(found["host"], found["port"])
        writer.close()

    def open_socket(self, addr_info: tuple[Any, ...]) -> socket.socket:
        """A socket for the address that it is connected to right after: no name can mean another one in between."""
        family, kind, protocol, _, address = addr_info
        if not _OWN_ROUTE.get():
            self._gate.check(address[0] if len(address) < 4 or not address[3] else f"{address[0]}%{address[3]}")
        return socket.socket(family, kind, protocol)

    async def close(self) -> None:
        await self._dns.close()

    async def _look_up(self, name: str) -> list[str]:
        """The addresses of a name: IPv4, or IPv6 where it has no other. That is one question for nearly every name."""
        async with self._at_once:
            try:
                async with asyncio.timeout(self._seconds):
                    try:
                        return await self._ask(name, socket.AF_INET)
                    except NoAddressError:
                        return await self._ask(name, socket.AF_INET6)
            except TimeoutError:
                raise NameServerError(f"no answer from the name server within {self._seconds:g} s") from None

    async def _ask(self, name: str, family: socket.AddressFamily) -> list[str]:
        try:
            result = await self._dns.getaddrinfo(name, family=family, type=socket.SOCK_STREAM)
        except aiodns.error.DNSError as error:
            code, message = error.args
            if code == aiodns.error.ARES_ENODATA:
                raise NoAddressError(f"{name} has no address") from None
            if code == aiodns.error.ARES_ENOTFOUND:
                raise UnknownNameError(f"{name} does not exist") from None
            raise NameServerError(message) from None
        return [_with_scope(node.addr) for node in result.nodes]

    def _target(self, host: str) -> tuple[str, int] | None:
        """The exact name first, then the longest suffix."""
        labels = host.split(".")
        patterns = [host, *("*." + ".".join(labels[i:]) for i in range(1, len(labels)))]
        return next((self._targets[pattern] for pattern in patterns if pattern in self._targets), None)


def target_of(text: str) -> tuple[str, int]:
    """A target of connect_to, "address:port" or "[IPv6]:port", as (address, port)."""
    if (parts := _host_and_port(text)) is None:
        raise InputError(f"connect_to: {text!r} is not 'address:port', such as '127.0.0.1:8080'")
    return parts


def nameserver_of(text: str) -> str:
    """A name server as c-ares reads it: "address" or "address:port", IPv6 in brackets before a port."""
    if is_address(text):
        return text
    parts = _host_and_port(text)
    if parts is None or not is_address(parts[0]):
        raise InputError(f"nameservers: {text!r} is not an address such as '192.0.2.53' or '192.0.2.53:53'")
    return f"[{parts[0]}]:{parts[1]}" if ":" in parts[0] else text


def _host_and_port(text: str) -> tuple[str, int] | None:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        return None
    return host.removeprefix("[").removesuffix("]"), int(port)


def _with_scope(address: tuple[Any, ...]) -> str:
    """c-ares' (bytes, port) or (bytes, port, flow, scope) as text; with its zone, a link-local address cannot be mistaken."""
    text: str = address[0].decode()
    return f"{text}%{address[3]}" if len(address) > 3 and address[3] else text


def _found(host: str, address: str, port: int) -> dict[str, Any]:
    return {"hostname": host, "host": address, "port": port, "family": socket.AF_UNSPEC, "proto": 0, "flags": 0}
