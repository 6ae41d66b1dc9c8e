"""Who may be asked when: politeness towards hosts and patience with those that are down, for one event loop.

A fetcher goes through it in three steps:

    async with hosts.turn(host) as turn:  # waits; raises HostDown: not now, nothing was sent; NetworkDown: stop
        ...  # the request
        turn.report(status, retry_after, answered=..., again=...)
    if not await turn.trusted():  # outside of the turn, as it may wait
        ...  # the network was at fault: ask again, as if this attempt had not been made

A host has slots, a rate, and the pauses that its Retry-After headers ask for. After some failures in a row it is left alone for
a while; then one request alone goes through, and an answer ends the pause, while a failure doubles it.
`filtering.images.outage` tells silent hosts from a dead network.
"""

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from filtering.images.outage import Hearing, HostState, Network, NetworkDown

__all__ = ["HostDown", "Hosts", "NetworkDown", "Turn"]

_FAILURES = frozenset({"dns", "connect", "tls", "timeout", "incomplete", "http_429"})
_BEFORE_ANY_ANSWER = frozenset({"dns", "connect", "tls"})  # if there was one, it is a redirect's target that failed
_UNSENT = frozenset({"dns", "dns_unknown", "forbidden_address"})  # the host never heard of the request
_LONGEST_PAUSE = 600.0
_REMEMBERED = 10_000
"""Idle hosts whose failures and pauses are remembered at most: the latest."""

_LOG = logging.getLogger(__name__)


class HostDown(Exception):  # noqa: N818 (no error: a decision)
    """The host is left alone for longer than a link is willing to wait: for `seconds` from now."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"not to be asked for another {seconds:.0f} s")
        self.seconds = seconds


class _Host(HostState):
    """What is known of a host while links wait for it, and afterwards as long as it is not in good standing."""

    __slots__ = ("failures", "free_at", "held_until", "open_until", "pause", "running", "timer", "waiting")

    def __init__(self) -> None:
        super().__init__()
        self.running = 0
        self.waiting: deque[asyncio.Future[bool | float]] = deque()
        """The links' admissions: whether they are the breaker's probe, or for how many seconds none is admitted."""
        self.timer: asyncio.TimerHandle | None = None
        self.free_at = 0.0
        """When the rate allows the next request."""
        self.held_until = 0.0
        """When its Retry-After is over."""
        self.failures = 0
        """In a row."""
        self.pause = 0.0
        """Length of the breaker's present pause; 0: closed."""
        self.open_until = 0.0

    @property
    def rests_until(self) -> float:
        return max(self.held_until, self.open_until)

    def close(self) -> None:
        self.failures, self.pause, self.open_until = 0, 0.0, 0.0

    def drop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Turn:
    """The right to send one request to a host."""

    def __init__(self, hosts: "Hosts", host: _Host, probe: bool) -> None:
        self._hosts, self._host, self._probe = hosts, host, probe
        self._began = hosts.network.signs
        self._verdict: asyncio.Future[bool] | bool = True
        self.reported = False

    def report(self, status: str, retry_after: float | None = None, *, answered: bool = False, again: bool = False) -> None:
        """Say what came of the request; `retry_after` in seconds; `answered`: the head of some response arrived.

        `again`: the link was asked for before. Another failure of the same link is no news of its host: a few links that fail
        for ever, asked for again and again at the end of a shard, would pause a healthy one.
        """
        self.reported = True
        failed = status in _FAILURES or status.startswith("http_5")
        if answered and status in _BEFORE_ANY_ANSWER:
            failed = False
        if status in _UNSENT and not answered:
            self._host.free_at = 0.0
        self._verdict = self._hosts.network.judge(self._host, status, answered, self._began)
        if not (failed and again) or self._probe or retry_after is not None:
            self._hosts.record(self._host, failed, self._probe, retry_after)

    async def trusted(self) -> bool:
        """Whether the result is the link's own; False: nobody can be reached. Waits for the next sign of life to know."""
        return self._verdict if isinstance(self._verdict, bool) else await asyncio.shield(self._verdict)


class Hosts:
    """Politeness and breakers of one event loop, in which it has to be made.

    `at_once` requests in flight in all, `per_host` to one host, `rate` per second to one host (0: any). After `failures` in a
    row a host is left alone for `pause` seconds (0: never), twice as long after each failed probe. Links wait for a host that
    rests for up to `max_wait` seconds. After `patience` seconds without a sign of life from anybody: NetworkDown (0: never);
    `probe` is heard first.
    """

    def __init__(
        self,
        *,
        at_once: int,
        per_host: int,
        rate: float,
        failures: int,
        pause: float,
        max_wait: float,
        patience: float,
        warn: Callable[[str], None] = _LOG.warning,
        probe: Hearing | None = None,
    ) -> None:
        self._free, self._per_host = at_once, per_host
        self._spacing = 1 / rate if rate else 0.0
        self._failures, self._pause = failures, pause
        self._longest_wait = max_wait + 0.001  # times are sums: a pause of max_wait is not longer than that
        self._loop = asyncio.get_running_loop()
        self._hosts: dict[str, _Host] = {}
        self._ready: OrderedDict[str, None] = OrderedDict()  # hosts whose next link lacks but one of the `at_once`, in order
        self._resting: OrderedDict[str, None] = OrderedDict()  # idle hosts not in good standing, the longest idle first
        self.network = Network(patience, warn, self._forgive, probe)

    def __len__(self) -> int:
        """Hosts that are remembered at present."""
        return len(self._hosts)

    @asynccontextmanager
    async def turn(self, name: str) -> AsyncIterator[Turn]:
        """Wait until host `name` may be asked, and hold a slot of it. Raises HostDown or NetworkDown."""
        while True:
            if (host := self._hosts.get(name)) is None:
                host = self._hosts[name] = _Host()
            self._resting.pop(name, None)
            try:
                probe = await self._admitted(name, host)
                break
            except HostDown:
                if host.held_until >= host.open_until or await self.network.believes():
                    raise  # otherwise the failures were the network's, and are forgiven
        turn = None
        try:
            async with self.network.request(name):
                turn = Turn(self, host, probe)
                yield turn
        finally:
            if turn is None or not turn.reported:
                host.free_at = 0.0
            self._leave(name, host)

    async def _admitted(self, name: str, host: _Host) -> bool:
        """Wait for a slot of the host; returns whether the request is the probe of its breaker."""
        if (seconds := host.rests_until - self._loop.time()) > self._longest_wait:
            self._serve(name, host)
            raise HostDown(seconds)
        admission: asyncio.Future[bool | float] = self._loop.create_future()
        host.waiting.append(admission)
        self._serve(name, host)
        try:
            answer = await admission
        except asyncio.CancelledError:
            if admission.done() and not admission.cancelled() and isinstance(admission.result(), bool):
                self._leave(name, host)  # let in and cancelled at the same moment
            else:
                self._serve(name, host)
            raise
        if isinstance(answer, float):
            raise HostDown(answer)
        return answer

    def allow(self, more: int) -> None:
        """Let so many more requests be in flight in all than so far, or fewer."""
        self._free += more
        while self._free > 0 and self._ready:
            ready, _ = self._ready.popitem(last=False)
            if ready in self._hosts:
                self._serve(ready, self._hosts[ready])

    def _serve(self, name: str, host: _Host) -> None:
        """Let those in who may; otherwise see to it that this is called again in time."""
        now = self._loop.time()
        while host.waiting:
            if host.waiting[0].done():  # cancelled
                host.waiting.popleft()
                continue
            if host.running >= (1 if host.pause else self._per_host):
                return  # the end of a turn calls again
            if (ready := max(host.free_at, host.rests_until)) > now:
                self._serve_at(ready, name, host)
                return
            if self._free <= 0:
                self._ready[name] = None
                return
            self._free -= 1
            host.running += 1
            host.free_at = now + self._spacing
            host.waiting.popleft().set_result(host.pause > 0)
        if not host.running and self._hosts.get(name) is host:
            self._put_aside(name, host, now)

    def _serve_at(self, when: float, name: str, host: _Host) -> None:
        """Call `_serve` then; a host has one timer at most."""

        def wake() -> None:
            host.timer = None
            self._serve(name, host)

        if host.timer is None or host.timer.when() != when:
            host.drop_timer()
            host.timer = self._loop.call_at(when, wake)

    def _leave(self, name: str, host: _Host) -> None:
        host.running -= 1
        self.allow(1)
        self._serve(name, host)

    def _put_aside(self, name: str, host: _Host, now: float) -> None:
        """Forget an idle host in good standing; of the others, those that have been idle the longest."""
        self._resting.pop(name, None)
        if host.failures or host.dead or host.rests_until > now:
            host.drop_timer()
            self._resting[name] = None
            if len(self._resting) > _REMEMBERED:
                del self._hosts[self._resting.popitem(last=False)[0]]
        elif host.free_at > now:
            self._serve_at(host.free_at, name, host)
        else:
            host.drop_timer()
            del self._hosts[name]

    def record(self, host: _Host, failed: bool, probe: bool, retry_after: float | None) -> None:
        """Draw the conclusions from a result for the host's next turns."""
        now = self._loop.time()
        if retry_after is not None:
            host.held_until = max(host.held_until, now + retry_after)
        if not failed:
            host.close()
        elif not self.network.suspected:
            host.failures += 1
            if probe:
                host.pause = min(2 * host.pause, max(self._pause, _LONGEST_PAUSE))
                host.open_until = now + host.pause
            elif not host.pause and host.failures >= self._failures:
                host.pause = self._pause
                host.open_until = now + host.pause
        if (seconds := host.rests_until - now) > self._longest_wait:
            for admission in host.waiting:
                if not admission.done():
                    admission.set_result(seconds)

    def _forgive(self) -> None:
        """Close the breakers of all hosts: it was the network."""
        for name, host in list(self._hosts.items()):
            host.close()
            self._serve(name, host)
