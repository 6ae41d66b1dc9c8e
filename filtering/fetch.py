"""One asynchronous HTTP client: a URL in, its body or the reason why not out. It never raises for what the web does."""

import asyncio
import email.utils
import ipaddress
import logging
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import aiohttp
from yarl import URL

from filtering.stage import InputError


@dataclass(frozen=True, kw_only=True)
class FetchConfig:
    """How links are asked for. The limits hold per worker process."""

    timeout: float = 20.0
    """Seconds that one image may take in all: redirects, the whole body, further attempts (the waits between not counted)."""
    max_bytes: int = 32 * 2**20
    """Largest body in bytes, after content decoding; more is refused as "too_large"."""
    max_redirects: int = 10
    """Redirects followed per attempt."""
    attempts: int = 3
    """Requests per link at most: server errors (5xx), 408, 425, 429, name look-up and connection failures are asked again."""
    backoff: float = 0.5
    """Seconds before the second attempt; doubles with each further one, with a jitter of half its length."""
    max_wait: float = 30.0
    """Longest wait in seconds before another attempt; a server whose Retry-After asks for more is left alone in this run."""
    concurrency: int = 64
    """Links in flight at once."""
    per_host: int = 8
    """Links in flight at once on one host."""
    user_agent: str = "Mozilla/5.0 (compatible; open-world-segmentation/0.1)"
    """User-Agent header; an X-Robots-Tag scoped to an agent applies if the agent's name occurs in it."""
    respect_opt_out: bool = True
    """Refuse images whose X-Robots-Tag header says noai, noimageai, noindex, noimageindex or none."""
    connect_to: dict[str, str] = field(default_factory=dict)
    """Where to connect instead: host name or "*.suffix" → "address:port"; the URL and the Host header stay. For mirrors."""

    def __post_init__(self) -> None:
        for name in ("timeout", "max_bytes", "attempts", "concurrency", "per_host"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name}: {getattr(self, name)} is not above 0")
        for name in ("max_redirects", "backoff", "max_wait"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}: {getattr(self, name)} is below 0")
        for host, target in self.connect_to.items():
            if _is_ip_address(host):
                raise InputError(f"connect_to: {host!r} is an address; give the host name that the links carry, or '*.suffix'")
            _address(target)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one URL: `body` is there if and only if `status` is "success".

    Other statuses: http_<code>, timeout, dns, connect, tls, incomplete, bad_http, too_large, too_many_redirects, opt_out,
    bad_scheme, bad_url, client_error. `retryable` says whether asking again on another day may help; `attempts` counts the
    requests made, redirects not counted.
    """

    status: str
    retryable: bool = False
    http_status: int | None = None
    attempts: int = 0
    body: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, kw_only=True)
class _Answer:
    status: str
    http_status: int | None = None
    body: bytes = b""
    retry_after: float | None = None


# In this order: aiohttp's exceptions inherit from one another.
_FAILURES: tuple[tuple[type[BaseException], str], ...] = (
    (TimeoutError, "timeout"),
    (aiohttp.ClientConnectorDNSError, "dns"),
    (aiohttp.ClientSSLError, "tls"),
    (aiohttp.TooManyRedirects, "too_many_redirects"),
    (aiohttp.NonHttpUrlClientError, "bad_scheme"),
    (aiohttp.ClientPayloadError, "incomplete"),
    (aiohttp.ClientConnectionError, "connect"),
    (aiohttp.ClientResponseError, "bad_http"),
    (OSError, "connect"),
    (ValueError, "bad_url"),  # aiohttp.InvalidURL, and what an impossible host name raises on its way to the wire
    (Exception, "client_error"),  # a flaw of the client's that some server found: it must not stop millions of other links
)

# Worth another attempt within the run. "dns" is here although many names are dead for ever: getaddrinfo answers the same
# "unknown name" when the network is down.
_ASK_AGAIN = frozenset({"dns", "connect", "incomplete", "http_408", "http_425", "http_429"})
_OPT_OUT = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})  # "none" is short for "noindex, nofollow"
_DIRECTIVES_WITH_VALUE = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
_CHUNK = 2**16
_LOG = logging.getLogger(__name__)


class Fetcher:
    """The client, an async context manager. One serves many links, so that connections are kept alive."""

    def __init__(self, config: FetchConfig) -> None:
        self._config = config
        self._slots = asyncio.Semaphore(config.concurrency)
        self._hosts: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(config.per_host))

    async def __aenter__(self) -> Self:
        # Looking a name up blocks a thread for seconds when the name is dead: the default pool of cpu + 4 would be the brake.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(self._config.concurrency, "dns"))
        self._session = aiohttp.ClientSession(
            # No limits here: waiting in the connector's queue would count against the deadline of a link.
            connector=aiohttp.TCPConnector(resolver=_Route(self._config.connect_to), limit=0, ttl_dns_cache=300),
            timeout=aiohttp.ClientTimeout(total=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": self._config.user_agent, "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"},
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    @asynccontextmanager
    async def fetch(self, url: str) -> AsyncIterator[Outcome]:
        """The outcome of one URL. The link holds its slot until the block is left, so bodies in memory ≤ concurrency."""
        if (refusal := _refusal(url)) is not None:
            yield Outcome(status=refusal)
            return
        seconds, attempts = self._config.timeout, 0
        while True:
            async with self._hosts[URL(url).host or ""], self._slots:
                began = time.monotonic()
                answer = await self._ask(url, seconds)
                seconds -= time.monotonic() - began
                attempts += 1
                again = _worth_asking_again(answer.status)
                pause = self._pause(answer, attempts) if again and attempts < self._config.attempts and seconds > 0 else None
                if pause is None:
                    # A timeout has had its full time and mostly meets a slow host: not again now, but on another day.
                    retryable = again or answer.status == "timeout"
                    yield Outcome(
                        status=answer.status,
                        retryable=retryable,
                        http_status=answer.http_status,
                        attempts=attempts,
                        body=answer.body,
                    )
                    return
            await asyncio.sleep(pause)

    def _pause(self, answer: _Answer, attempts: int) -> float | None:
        """Seconds to wait before the next attempt; None if the server wants to be left alone for longer than `max_wait`."""
        pause = self._config.backoff * 2.0 ** (attempts - 1) * random.uniform(0.5, 1.5)
        if answer.retry_after is None:
            return min(pause, self._config.max_wait)
        return max(pause, answer.retry_after) if answer.retry_after <= self._config.max_wait else None

    async def _ask(self, url: str, seconds: float) -> _Answer:
        """One attempt, over at the deadline whatever the server does."""
        try:
            async with (
                asyncio.timeout(seconds),
                # aiohttp raises when the count reaches the maximum, hence + 1.
                self._session.get(url, max_redirects=self._config.max_redirects + 1) as response,
            ):
                return await self._read(response)
        except Exception as error:
            status = next(status for kind, status in _FAILURES if isinstance(error, kind))
            if status == "client_error":
                _LOG.warning("%s", url, exc_info=error)
            return _Answer(status=status)

    async def _read(self, response: Any) -> _Answer:
        code: int = response.status
        if code != 200:
            return _Answer(
                status=f"http_{code}", http_status=code, retry_after=_retry_after(response.headers.get("Retry-After"))
            )
        tags = response.headers.getall("X-Robots-Tag", [])
        if self._config.respect_opt_out and any(opts_out(tag, self._config.user_agent) for tag in tags):
            return _Answer(status="opt_out", http_status=code)
        body = bytearray()
        if (response.content_length or 0) <= self._config.max_bytes:
            async for chunk in response.content.iter_chunked(_CHUNK):
                body += chunk
                if len(body) > self._config.max_bytes:
                    break
            else:
                return _Answer(status="success", http_status=code, body=bytes(body))
        return _Answer(status="too_large", http_status=code)


def opts_out(tag: str, user_agent: str) -> bool:
    """Whether one X-Robots-Tag header value forbids use: `[agent:] directive, directive, ...`.

    As img2dataset 1.47.0 decides it (a directive without an agent, or with ours), but `unavailable_after: <date>` and its like
    are not taken for an agent, and an agent may also open a later part: `a: nofollow, b: noai`.
    """
    applies = True
    for part in tag.lower().split(","):
        name, colon, rest = part.partition(":")
        directive = name.strip()
        if colon and directive not in _DIRECTIVES_WITH_VALUE:
            applies, directive = directive == "*" or directive in user_agent.lower(), rest.strip()
        if applies and directive in _OPT_OUT:
            return True
    return False


class _Route:
    """aiohttp's resolver, and the one place where the address of a connection is decided."""

    def __init__(self, connect_to: dict[str, str]) -> None:
        self._targets = {host.lower(): _address(target) for host, target in connect_to.items()}
        self._dns = aiohttp.ThreadedResolver()

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[dict[str, Any]]:
        address, port = self._target(host.lower().rstrip(".")) or (host, port)
        if _is_ip_address(address):
            return [{"hostname": host, "host": address, "port": port, "family": family, "proto": 0, "flags": 0}]
        found: list[dict[str, Any]] = await self._dns.resolve(address, port, family)
        return found

    async def close(self) -> None:
        await self._dns.close()

    def _target(self, host: str) -> tuple[str, int] | None:
        """The exact name first, then the longest suffix."""
        labels = host.split(".")
        patterns = [host, *("*." + ".".join(labels[i:]) for i in range(1, len(labels)))]
        return next((self._targets[pattern] for pattern in patterns if pattern in self._targets), None)


def _address(target: str) -> tuple[str, int]:
    """ "address:port" or "[IPv6]:port" as (address, port)."""
    address, _, port = target.rpartition(":")
    if not address or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError(f"connect_to: {target!r} is not 'address:port', such as '127.0.0.1:8080'")
    return address.removeprefix("[").removesuffix("]"), int(port)


def _is_ip_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _refusal(url: str) -> str | None:
    """Why a URL is not even asked for."""
    try:
        parsed = URL(url)
    except ValueError:
        return "bad_url"
    if parsed.scheme and parsed.scheme not in ("http", "https"):
        return "bad_scheme"
    return None if parsed.scheme and parsed.host else "bad_url"


def _worth_asking_again(status: str) -> bool:
    return status in _ASK_AGAIN or status.startswith("http_5")


def _retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for: a number, or a date. None if there is none or it cannot be read."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        date: float = email.utils.parsedate_to_datetime(value).timestamp()
        return max(0.0, date - time.time())
    except ValueError:
        return None
