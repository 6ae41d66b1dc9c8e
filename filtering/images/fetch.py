"""One asynchronous HTTP client: a URL in, its body or the reason why not out. It never raises for what the web does."""

import asyncio
import logging
import random
import resource
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import aiohttp

from filtering.images.addresses import ForbiddenAddressError, Gate
from filtering.images.answers import HEADERS, LINE_BYTES, Answer, DisconnectedError, failure, read
from filtering.images.fetch_config import FetchConfig
from filtering.images.politeness import HostDown, Hosts
from filtering.images.reasons import failure_of
from filtering.images.resolver import NameServerError, Resolver, UnknownNameError, nameserver_of
from filtering.url import Link, LinkError, follow, link_of


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one URL: `body` is there if and only if `status` is "success".

    Other statuses: http_<code>, timeout, dns, dns_unknown, connect, tls, incomplete, unknown_coding, host_down, bad_http,
    bad_url, bad_scheme, forbidden_address, too_large, too_many_redirects, opt_out, client_error. `attempts` counts the requests
    made, redirects not counted; `message` says in words what was wrong.
    """

    status: str
    http_status: int | None = None
    attempts: int = 0
    body: bytes = field(default=b"", repr=False)
    delimited: bool = True
    """Whether the server said where the body ends. Otherwise one that was cut looks as if it were whole."""
    message: str | None = field(default=None, compare=False)

    @property
    def retryable(self) -> bool:
        """Whether asking again on another day may help."""
        return failure_of(self.status) == "transient"


# Worth another attempt within the run. A timeout has had its full time and mostly meets a slow host; a certificate will not
# heal in seconds.
_ASK_AGAIN = frozenset({"dns", "connect", "incomplete", "http_408", "http_425", "http_429"})
_BUFFER = 2**17  # bytes: twice as many are read ahead before the server has to wait
_WAITING_BODIES = 32
"""Bodies that wait for whoever asked for them: from so many on it is he who is slow, and fewer links are asked for at once."""
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
        self._at_once = min(2 * _WAITING_BODIES, config.concurrency)
        """Links that may be in flight now: one more after each link, as far as `concurrency`, unless bodies wait."""
        self._bodies = 0
        self._unknown: dict[str, float] = {}
        """Names that do not exist, and until when they need not be looked up again."""

    async def __aenter__(self) -> Self:
        config = self._config
        _allow_open_files()
        self._hosts = Hosts(
            at_once=self._at_once,
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
            auto_decompress=False,  # it knows some codings, and takes a stream that is cut for whole
            max_line_size=LINE_BYTES,
            max_field_size=LINE_BYTES,
            max_headers=HEADERS,
            middlewares=(_once,),
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
            outcome = await self._obtain(url, _Flight(self._config.timeout, held))
            self._adapt()
            self._bodies += outcome.status == "success"
            try:
                yield outcome
            finally:
                self._bodies -= outcome.status == "success"

    def _adapt(self) -> None:
        """Ask for more links at once, or for fewer where bodies wait: they would fill the memory."""
        change = -1 if self._bodies >= _WAITING_BODIES else 1
        if _WAITING_BODIES <= self._at_once + change <= self._config.concurrency:
            self._at_once += change
            self._hosts.allow(change)

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
            delimited=answer.delimited,
            message=answer.message,
        )

    def _is_worth_asking_again(self, answer: Answer, flight: _Flight) -> bool:
        if flight.requests >= self._config.attempts or flight.seconds <= 0:
            return False
        return answer.status in _ASK_AGAIN or answer.status.startswith("http_5")

    async def _follow(self, link: Link, flight: _Flight) -> Answer:
        """One attempt: a request, and those that its redirects lead to."""
        for hop in range(self._config.max_redirects + 1):
            answer = await self._hop(link, flight, first=hop == 0)
            if answer.location is None:
                return answer
            try:
                link = follow(link, answer.location)
            except LinkError as refusal:
                return Answer(status=refusal.status, http_status=answer.http_status, message=str(refusal))
        return Answer(
            status="too_many_redirects",
            http_status=answer.http_status,
            message=f"more than {self._config.max_redirects} redirects",
        )

    async def _hop(self, link: Link, flight: _Flight, first: bool) -> Answer:
        """One request, when its host's turn has come; again if it was the network that failed. Only a body keeps its turn."""
        if link.is_address and not self._gate.permits(link.host):
            return Answer(status=ForbiddenAddressError.status, message=f"{link.host} is not a public address")
        if self._unknown.get(link.host, 0.0) > time.monotonic():
            return Answer(status=UnknownNameError.status, message=f"{link.host} does not exist")
        while True:
            try:
                turn = await flight.held.enter_async_context(self._hosts.turn(link.host))
            except HostDown as down:
                return Answer(status="host_down", message=str(down))
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
                return Answer(status=NameServerError.status, message="the name server knows none of the names")
            self._remember_unknown(link.host)
        return answer

    def _remember_unknown(self, host: str) -> None:
        if len(self._unknown) >= _REMEMBERED:
            self._unknown.clear()
        self._unknown[host] = time.monotonic() + _UNKNOWN_FOR

    async def _request(self, link: Link, seconds: float) -> Answer:
        """One request, over at the deadline whatever the server does."""
        self._resolver.set_route(link.host)
        began = asyncio.get_running_loop().time()
        limit = min(seconds, self._config.first_byte_timeout)
        answered = False
        try:
            async with asyncio.timeout(limit) as deadline, self._session.get(link.url, allow_redirects=False) as response:
                answered = True
                deadline.reschedule(began + seconds)
                return await read(response, self._config)
        except aiohttp.ServerTimeoutError:  # aiohttp's own: no connection
            return Answer(status="timeout", message=f"no connection within {self._config.connect_timeout:g} s")
        except TimeoutError:
            message = f"not all of the body within {seconds:.3g} s" if answered else f"no answer within {limit:.3g} s"
            return Answer(status="timeout", message=message, answered=answered)
        except Exception as error:
            status, message = failure(error)
            if status == "client_error":
                _LOG.warning("%s", link.url, exc_info=error)
            return Answer(status=status, message=message, answered=answered)


async def _once(request: Any, send: Callable[[Any], Awaitable[Any]]) -> Any:
    """Send a request, and hide from aiohttp that the server hung up: it would send another, which nobody counts or limits."""
    try:
        return await send(request)
    except aiohttp.ClientConnectorError:  # there was no connection
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise DisconnectedError(failure(error)[1]) from error


def _allow_open_files() -> None:
    """Raise the soft limit of open files: 1024, a common one, is less than the connections that a fast worker keeps open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
