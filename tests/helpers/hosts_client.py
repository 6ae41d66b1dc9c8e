"""What a fetcher does with `Hosts`, on a clock that jumps to the next event, or against a small real server."""

import asyncio
import selectors
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from filtering.images.politeness import HostDown, Hosts

T = TypeVar("T")


class _Jump(selectors.DefaultSelector):
    """Passes the time of waiting at once. When everybody waits for ever, the test fails instead of hanging."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "everybody waits for ever"
        self.now += max(timeout, 0.0)
        return super().select(0)


class Clock(asyncio.SelectorEventLoop):
    """An event loop in which no second takes any time; `steps` counts the callbacks that ran."""

    def __init__(self) -> None:
        self.steps = 0
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now

    def call_soon(self, *args: Any, **kwargs: Any) -> asyncio.Handle:
        self.steps += 1
        return super().call_soon(*args, **kwargs)


_WARNINGS: list[str] = []


def run(main: Coroutine[Any, Any, T]) -> T:
    """On the clock; fails for warnings that the test did not ask for."""
    _WARNINGS.clear()
    with asyncio.Runner(loop_factory=Clock) as runner:
        result = runner.run(main)
    assert not _WARNINGS
    return result


def now() -> float:
    return asyncio.get_running_loop().time()


def make(**settings: Any) -> Hosts:
    defaults: dict[str, Any] = {"at_once": 64, "per_host": 8, "rate": 0.0, "failures": 10, "pause": 30.0}
    return Hosts(**{**defaults, "max_wait": 30.0, "patience": 120.0, "warn": _WARNINGS.append, **settings})


Answer = tuple[str, float | None] | tuple[str, float | None, bool]
Server = Callable[[str], Awaitable[str | Answer]]


class Client:
    """What a fetcher does with `Hosts`, against a server that is a function from host to status; keeps a record."""

    def __init__(self, hosts: Hosts, server: Server, attempts: int = 1) -> None:
        self.hosts, self.server, self.attempts = hosts, server, attempts
        self.asked: list[tuple[float, str]] = []
        self.open: Counter[str] = Counter()
        self.most_open, self.most_open_of_one = 0, 0

    async def get(self, host: str) -> str:
        attempts = 0
        while True:
            try:
                async with self.hosts.turn(host) as turn:
                    self.asked.append((now(), host))
                    self.open[host] += 1
                    self.most_open = max(self.most_open, self.open.total())
                    self.most_open_of_one = max(self.most_open_of_one, self.open[host])
                    try:
                        answer = await self.server(host)
                    finally:
                        self.open[host] -= 1
                    status, retry_after, *answered = (answer, None) if isinstance(answer, str) else answer
                    turn.report(status, retry_after, answered=any(answered))
            except HostDown:
                return "host_down"
            if await turn.trusted():
                attempts += 1
                if status not in ("dns", "connect", "http_429") or attempts == self.attempts:
                    return status

    async def get_all(self, hosts: list[str]) -> Counter[str]:
        return Counter(await asyncio.gather(*(self.get(host) for host in hosts)))

    def times(self, host: str) -> list[float]:
        return [time for time, name in self.asked if name == host]


def answers(status: str, seconds: float = 0.1) -> Server:
    async def server(host: str) -> str:
        await asyncio.sleep(seconds)
        return status

    return server


class Site:
    """A real HTTP server that can die (nobody listens any more) and come back on its port."""

    def __init__(self) -> None:
        self.requests = 0
        self.busy_once = 0
        self.port = 0
        self._in_flight = 0
        self._open, self._idle = asyncio.Event(), asyncio.Event()
        self._open.set()
        self._idle.set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Answer what was asked, then die. A listener that closed first would refuse some while it still answers others:
        then the refused ones are those hosts' own failures, and rightly so.
        """
        self._open.clear()
        await self._idle.wait()
        self._server.close()
        await self._server.wait_closed()
        self._open.set()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.requests += 1
        if self.busy_once:
            self.busy_once -= 1
            writer.write(b"HTTP/1.0 429 Slow Down\r\nRetry-After: 1\r\n\r\n")
        else:
            writer.write(b"HTTP/1.0 200 OK\r\n\r\nok")
        await writer.drain()
        writer.close()

    async def __call__(self, host: str) -> str | Answer:
        await self._open.wait()
        self._in_flight += 1
        self._idle.clear()
        try:
            return await self._ask(host)
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()

    async def _ask(self, host: str) -> str | Answer:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(f"GET / HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
            head = await reader.read()
            writer.close()
        except OSError:
            return "connect"
        return ("http_429", 1.0) if b"Retry-After: 1" in head else "success"
