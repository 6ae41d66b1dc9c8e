"""One asynchronous HTTP client: a URL in, its body or the reason why not out. It never raises for what the web does."""

import asyncio
import logging
import os
import random
import resource
import ssl
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import aiohttp

from filtering.images.addresses import ConnectError, ForbiddenAddressError, Gate
from filtering.images.fetch_config import FetchConfig
from filtering.images.headers import opts_out, retry_after
from filtering.images.politeness import HostDown, Hosts
from filtering.images.reasons import failure_of
from filtering.images.resolver import NameServerError, Resolver, UnknownNameError, nameserver_of
from filtering.url import Link, LinkError, follow, link_of


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one URL: `body` is there if and only if `status` is "success".

    Other statuses: http_<code>, timeout, dns, dns_unknown, connect, tls, incomplete, host_down, bad_http, bad_url, bad_scheme,
    forbidden_address, too_large, too_many_redirects, opt_out, client_error. `attempts` counts the requests made, redirects not
    counted; `message` says in words what was wrong.
    """

    status: str
    http_status: int | None = None
    attempts: int = 0
    body: bytes = field(default=b"", repr=False)
    message: str | None = field(default=None, compare=False)

    @property
    def retryable(self) -> bool:
        """Whether asking again on another day may help."""
        return failure_of(self.status) == "transient"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Answer:
    """What came of one request."""

    status: str
    http_status: int | None = None
    body: bytes = b""
    message: str | None = None
    answered: bool = False
    """Whether the head of an answer was there."""
    retry_after: float | None = None
    location: str | None = None


# In this order: aiohttp's exceptions inherit from one another.
_FAILURES: tuple[tuple[type[BaseException], str], ...] = (
    (TimeoutError, "timeout"),
    (aiohttp.ClientConnectorDNSError, "dns"),
    (aiohttp.ClientSSLError, "tls"),
    (aiohttp.ClientPayloadError, "incomplete"),
    (aiohttp.ClientConnectionError, "connect"),
    (aiohttp.ClientResponseError, "bad_http"),
    (OSError, "connect"),
    (ValueError, "bad_url"),  # aiohttp.InvalidURL, and what an impossible host name raises on its way to the wire
    (Exception, "client_error"),  # a flaw of the client's that some server found: it must not stop millions of other links
)

# Worth another attempt within the run. A timeout has had its full time and mostly meets a slow host; a certificate will not
# heal in seconds.
_ASK_AGAIN = frozenset({"dns", "connect", "incomplete", "http_408", "http_425", "http_429"})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_BUFFER = 2**17  # bytes: twice as many are read ahead before the server has to wait
_IDLE = 3.0  # seconds that a connection is kept for the next link; with a host per link, most are never used again
_OPEN_FILES = 2**14
_UNKNOWN_FOR, _REMEMBERED = 60.0, 2**16  # seconds, and names: those that do not exist are not looked up for each of their links
_LOG = logging.getLogger(__name__)


MAX_PROBED = 4
"""Hosts that answered, remembered to tell a dead network from dead hosts."""


class _Flight:
    """One link under way: the seconds that it has left, the requests made for it, and the turn that it holds."""

    __slots__ = ("held", "requests", "seconds")

    def __init__(self, seconds: float, held: AsyncExitStack) -> None:
        self.seconds = seconds
        self.requests = 0
        self.held = held


class Fetcher:
    """The client, an async context manager. One serves many links, so that connections are kept alive.

    `workers` processes share the limits per host. Thousands of tasks may wait on one fetcher: those for a busy host stand in
    that host's queue and take no place of others.
    """

    def __init__(self, config: FetchConfig, workers: int = 1) -> None:
        self._config = config
        self._workers = workers
        self._agent = config.agent
        self._gate = Gate(config.allow)
        self._probes: OrderedDict[tuple[str, int], None] = OrderedDict()
        """Hosts and ports that gave an image, the latest last."""
        self._unknown: dict[str, float] = {}
        """Names that do not exist, and until when they need not be looked up again."""

    async def __aenter__(self) -> Self:
        config = self._config
        _allow_open_files()
        self._hosts = Hosts(
            at_once=config.concurrency,
            per_host=max(1, config.per_host // self._workers),
            rate=config.per_host_rate / self._workers,
            failures=config.host_failures,
            pause=config.host_pause,
            max_wait=config.max_wait,
            patience=config.outage_patience,
            probe=self._probe_hosts,
        )
        # A look-up ends before the connection's deadline, so that a dead name server is told from a dead server.
        servers = [nameserver_of(server) for server in config.nameservers]
        self._resolver = Resolver(self._gate, config.connect_to, servers, 0.8 * config.connect_timeout)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=self._resolver,
                socket_factory=self._resolver.open_socket,
                limit=0,  # waiting in the connector's queue would count against the deadline of a link
                ttl_dns_cache=300,
                keepalive_timeout=_IDLE,
            ),
            timeout=aiohttp.ClientTimeout(total=None, connect=config.connect_timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": self._agent, "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"},
            read_bufsize=_BUFFER,
            trust_env=False,  # a proxy would resolve names itself and connect to what the gate refuses
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hosts.network.stop()
        await self._session.close()
        await self._resolver.close()

    @asynccontextmanager
    async def fetch(self, url: str) -> AsyncIterator[Outcome]:
        """The outcome of one URL. A body's link keeps its turn until the block is left, so bodies in memory ≤ concurrency.

        Raises `hosts.NetworkDown` if nobody has answered for `outage_patience` seconds.
        """
        async with AsyncExitStack() as held:
            yield await self._obtain(url, _Flight(self._config.timeout, held))

    def vouch(self, url: str) -> None:
        """Say that the host of a URL gave an image in an earlier run: it may tell a dead network from dead hosts."""
        with suppress(LinkError):
            self._remember_witness(link_of(url))

    def _remember_witness(self, link: Link) -> None:
        self._probes[link.host, link.url.port or 80] = None
        self._probes.move_to_end((link.host, link.url.port or 80))
        if len(self._probes) > MAX_PROBED:
            self._probes.popitem(last=False)

    async def _probe_hosts(self) -> bool:
        """Whether one of the hosts that answered before still takes connections. Nothing is asked of it."""

        async def alive(host: str, port: int) -> bool:
            with suppress(OSError):  # TimeoutError is one
                async with asyncio.timeout(self._config.connect_timeout):
                    await self._resolver.try_connect(host, port)
                return True
            return False

        return any(await asyncio.gather(*(alive(host, port) for host, port in list(self._probes))))

    async def _obtain(self, url: str, flight: _Flight) -> Outcome:
        """Ask until there is an answer that asking again will not change today."""
        try:
            link = link_of(url)
        except LinkError as refusal:
            return Outcome(status=refusal.status, message=str(refusal))
        answer = await self._follow(link, flight)
        while self._is_worth_asking_again(answer, flight):
            pause = self._config.backoff * 2.0 ** (flight.requests - 1) * random.uniform(0.5, 1.5)
            await asyncio.sleep(min(pause, self._config.max_wait))
            again = await self._follow(link, flight)
            if again.status == "host_down":
                break  # what the host said before says more
            answer = again
        return Outcome(
            status=answer.status,
            http_status=answer.http_status,
            attempts=flight.requests,
            body=answer.body,
            message=answer.message,
        )

    def _is_worth_asking_again(self, answer: _Answer, flight: _Flight) -> bool:
        if flight.requests >= self._config.attempts or flight.seconds <= 0:
            return False
        return answer.status in _ASK_AGAIN or answer.status.startswith("http_5")

    async def _follow(self, link: Link, flight: _Flight) -> _Answer:
        """One attempt: a request, and those that its redirects lead to."""
        for hop in range(self._config.max_redirects + 1):
            answer = await self._hop(link, flight, first=hop == 0)
            if answer.location is None:
                return answer
            try:
                link = follow(link, answer.location)
            except LinkError as refusal:
                return _Answer(status=refusal.status, http_status=answer.http_status, message=str(refusal))
        return _Answer(
            status="too_many_redirects",
            http_status=answer.http_status,
            message=f"more than {self._config.max_redirects} redirects",
        )

    async def _hop(self, link: Link, flight: _Flight, first: bool) -> _Answer:
        """One request, when its host's turn has come; again if it was the network that failed. Only a body keeps its turn."""
        if link.is_address and not self._gate.permits(link.host):
            return _Answer(status=ForbiddenAddressError.status, message=f"{link.host} is not a public address")
        if self._unknown.get(link.host, 0.0) > time.monotonic():
            return _Answer(status=UnknownNameError.status, message=f"{link.host} does not exist")
        while True:
            try:
                turn = await flight.held.enter_async_context(self._hosts.turn(link.host))
            except HostDown as down:
                return _Answer(status="host_down", message=str(down))
            began = time.monotonic()
            answer = await self._request(link, flight.seconds)
            spent = time.monotonic() - began
            again = flight.requests > 0
            turn.report(answer.status, answer.retry_after, answered=answer.answered, again=again)
            if answer.status != "success":
                await flight.held.aclose()
            if await turn.trusted():
                break
        flight.seconds -= spent
        flight.requests += first
        if answer.status == "success":
            self._remember_witness(link)
        elif answer.status == UnknownNameError.status:
            if self._hosts.network.names_doubted:
                return _Answer(status=NameServerError.status, message="the name server knows none of the names")
            self._remember_unknown(link.host)
        return answer

    def _remember_unknown(self, host: str) -> None:
        if len(self._unknown) >= _REMEMBERED:
            self._unknown.clear()
        self._unknown[host] = time.monotonic() + _UNKNOWN_FOR

    async def _request(self, link: Link, seconds: float) -> _Answer:
        """One request, over at the deadline whatever the server does."""
        self._resolver.set_route(link.host)
        began = asyncio.get_running_loop().time()
        limit = min(seconds, self._config.first_byte_timeout)
        answered = False
        try:
            async with asyncio.timeout(limit) as deadline, self._session.get(link.url, allow_redirects=False) as response:
                answered = True
                deadline.reschedule(began + seconds)
                return await self._read(response)
        except aiohttp.ServerTimeoutError:  # aiohttp's own: no connection
            return _Answer(status="timeout", message=f"no connection within {self._config.connect_timeout:g} s")
        except TimeoutError:
            message = f"not all of the body within {seconds:.3g} s" if answered else f"no answer within {limit:.3g} s"
            return _Answer(status="timeout", message=message, answered=answered)
        except Exception as error:
            status, message = _failure(error)
            if status == "client_error":
                _LOG.warning("%s", link.url, exc_info=error)
            return _Answer(status=status, message=message, answered=answered)

    async def _read(self, response: Any) -> _Answer:
        code: int = response.status
        headers = response.headers
        location = (headers.get("Location") or None) if code in _REDIRECTS else None
        if self._config.respect_opt_out and (code == 200 or location is not None):
            for tag in headers.getall("X-Robots-Tag", ()):
                if opts_out(tag, self._agent):
                    return _Answer(status="opt_out", http_status=code, message=_line(f"X-Robots-Tag: {tag}"))
        if code != 200:
            return _Answer(
                status=f"http_{code}",
                http_status=code,
                message=_line(f"{code} {response.reason or ''}"),
                retry_after=retry_after(headers.get("Retry-After")),
                location=location,
            )
        most = self._config.max_bytes
        if (announced := response.content_length) is not None and announced > most:
            return _Answer(status="too_large", http_status=code, message=f"{announced} bytes announced, at most {most} wanted")
        chunks, size = [], 0
        while chunk := await response.content.readany():
            chunks.append(chunk)
            size += len(chunk)
            if size > most:
                return _Answer(status="too_large", http_status=code, message=f"more than {most} bytes")
        return _Answer(status="success", http_status=code, body=b"".join(chunks))


def _failure(error: Exception) -> tuple[str, str]:
    """The status of what a request raised, and the reason in words."""
    cause = getattr(error, "os_error", None)
    if isinstance(cause, ConnectError):
        return cause.status, str(cause)
    status = next(status for kind, status in _FAILURES if isinstance(error, kind))
    if isinstance(cause, ssl.SSLCertVerificationError):
        return status, cause.verify_message
    if isinstance(cause, ssl.SSLError):
        return status, (cause.reason or "TLS failed").lower().replace("_", " ")
    if (number := getattr(cause or error, "errno", None)) is not None:
        return status, os.strerror(number)
    if cause is not None:
        return status, _line(str(cause)) or "the server closed the connection"
    text = str(getattr(error, "message", "") or error).removeprefix("400, message:").strip()
    return status, _line(text.partition("\n")[0].rstrip(":")) or type(error).__name__


def _line(text: str) -> str:
    """What a server wrote, fit to be shown: one line, no control characters, not long."""
    return "".join(c if c.isprintable() else " " for c in text[:200]).strip()


def _allow_open_files() -> None:
    """Raise the soft limit of open files: 1024, a common one, is less than the connections that a fast worker keeps open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
