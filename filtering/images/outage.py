"""The breaker for the network as a whole: is a host silent, or can nobody be reached?

The network is suspected when many requests in a row, to several hosts, brought no sign of life from anybody. Until somebody
answers, nobody knows whether the hosts or the network were at fault, and results wait for the verdict. A run of silence proves
the less the more of the links are dead, so it has to be longer where many were silent before. What proves nothing: hosts that
were silent while others answered, and requests that began before the last answer (at the end of a run only the slow timeouts
are left, and they all come in a row). A response that breaks off proves nothing either, but is as doubtful.

Before the network is suspected, a probe is heard, if there is one: a host that answered before. If it still takes
connections, the silence is that of the others, as in a rerun that asks for nothing but what failed.
"""

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from filtering import InputError

_ANSWERS = frozenset({"success", "opt_out", "too_large", "too_many_redirects", "bad_http", "unknown_coding", "tls"})
_SILENT = frozenset({"dns", "dns_unknown", "connect", "timeout"})
_BROKEN_OFF = frozenset({"incomplete"})  # and what is silent after an answer: nobody knows when the last byte came
_REQUESTS, _HOSTS = 20, 5
"""Silent requests, and hosts among them, that make the network suspect at least."""
_CHANCE = 0.5**_REQUESTS
"""How improbable a run of silence must be for a network that is alive."""
_MOST_SILENT = 0.97
_SILENCE = 3.0
"""Seconds that silence must last while requests are in flight: dead names fail at once, those who live take their time."""
_PROBE, _RAREST_PROBE = 1.0, 15.0
_NAMES_PATIENCE = 60.0
"""Seconds to wait if every name was unknown, from the start, to a name server that answers."""
_LULL = 0.1
"""Seconds without any request in flight after which nobody is left who could still give a sign of life."""
_FEWEST_LOOK_UPS, _MOST_LOOK_UPS, _DNS_SHARE = 200, 1000, 0.2
"""When the name server is overloaded; beyond the most, look-ups count half, so that it shows late in a run too."""


class NetworkDown(InputError):  # noqa: N818 (it is a state, as HostDown)
    """Nobody has answered for too long. No link was marked as failed for it."""


class HostState:
    """What the breaker knows of a host."""

    __slots__ = ("dead", "met")

    def __init__(self) -> None:
        self.met = False
        """Whether it was asked before."""
        self.dead = False
        """Whether it was silent while others answered."""


Hearing = Callable[[], Awaitable[bool]]
"""Finds out whether a host that answered before still takes connections. False if none is known."""


class Network:
    """The breaker for all hosts together."""

    def __init__(
        self, patience: float, warn: Callable[[str], None], forgive: Callable[[], None], probe: Hearing | None
    ) -> None:
        self._patience, self._warn, self._forgive, self._witness = patience, warn, forgive, probe
        self._loop = asyncio.get_running_loop()
        self.signs = 0
        """Signs of life so far."""
        self.suspected = False
        self.names_doubted = False
        """Whether the name server knows no name at all, so that "this one does not exist" says nothing."""
        self._down = ""  # then the message
        self._in_flight = 0
        # Since the last sign of life:
        self._silent: Counter[str] = Counter()  # results by status, of hosts that were not known as dead
        self._silent_hosts: set[HostState] = set()
        self._evidence = 0  # those of them that also began since then
        self._verdict: asyncio.Future[bool] | None = None  # for the results that came since then
        # Of the run so far:
        self._alive, self._dead = 0, 0  # results of hosts that were not known as dead
        self._looked_up, self._dns = 0, 0
        self._dns_told = False
        self._hearing: asyncio.Task[None] | None = None
        # While the gate is closed, first on the quiet, then because an outage is suspected:
        self._timer: asyncio.TimerHandle | None = None
        self._since = 0.0
        self._gate: list[tuple[str, asyncio.Future[None]]] = []
        self._probed: set[str] = set()

    @asynccontextmanager
    async def request(self, name: str) -> AsyncIterator[None]:
        """Around each request. Waits while an outage is suspected; raises NetworkDown when patience is at its end."""
        if self._timer is not None:
            opened: asyncio.Future[None] = self._loop.create_future()
            self._gate.append((name, opened))
            await opened
        if self._down:
            raise NetworkDown(self._down)
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1
            if not self._in_flight and self._verdict is not None:
                self._loop.call_later(_LULL, self._end_lull)

    def judge(self, host: HostState, status: str, answered: bool, began: int) -> asyncio.Future[bool] | bool:
        """Take note of a result; returns whether it is the link's own, or what will tell.

        `answered`: the head of some response arrived, however long ago; `began`: `signs` when the request began.
        """
        if not host.met:
            host.met = True
            self._looked_up += 1
            self._dns += status == "dns"
        if status in _ANSWERS or status.startswith("http_"):
            self._sign_of_life(host)
            return True
        if status not in _SILENT | _BROKEN_OFF or not self._patience:
            return True
        if status == "dns_unknown" and self.names_doubted:
            return True
        silent = status in _SILENT and not answered and not host.dead
        self._silent[status] += silent
        if self.suspected:
            return False
        if silent:
            self._silent_hosts.add(host)
            self._evidence += began == self.signs
            if self._timer is None and self._is_suspicious():
                self._timer = self._loop.call_later(min(_SILENCE, self._patience / 10), self._hear)
        if self._verdict is None:
            self._verdict = self._loop.create_future()
        return self._verdict

    async def believes(self) -> bool:
        """Whether the failures up to now were the hosts' own; waits as long as nobody can know."""
        return not self.suspected and (self._verdict is None or await asyncio.shield(self._verdict))

    def _is_suspicious(self) -> bool:
        """Whether the silence since the last sign of life is long enough to prove something."""
        share = min((self._dead + 1) / (self._alive + self._dead + 2), _MOST_SILENT)
        enough = max(_REQUESTS, math.log(_CHANCE) / math.log(share))
        return self._evidence >= enough and len(self._silent_hosts) >= _HOSTS

    def _hear(self) -> None:
        """Ask the probe, and suspect the network unless it is well or a sign of life comes first."""
        if self._witness is None:
            self._suspect()
        elif self._hearing is None:
            self._hearing = self._loop.create_task(self._decide(self.signs, self._witness))

    async def _decide(self, signs: int, probe: Hearing) -> None:
        alive = await probe()
        self._hearing = None
        if signs != self.signs:
            return
        if alive:
            self._sign_of_life()
        elif not self.suspected:
            self._suspect()

    def stop(self) -> None:
        """Forget the probe that is being heard: the outage is settled without it, or the event loop is about to end."""
        if self._hearing is not None:
            self._hearing.cancel()
            self._hearing = None

    def _sign_of_life(self, host: HostState | None = None) -> None:
        """`host` answered, or the probe did."""
        self.signs += 1
        self.names_doubted = False
        if not self.suspected:
            self._dead += self._silent.total()
            self._believe()
        if self._timer is not None:
            self._recover(self._timer)
        self._silent.clear()
        self._silent_hosts.clear()
        self._evidence = 0
        if host is not None:
            host.dead = False
            self._alive += 1
        self._watch_name_server()

    def _believe(self) -> None:
        """The silence so far was that of the hosts themselves."""
        for host in self._silent_hosts:
            host.dead = True
        self._settle(trusted=True)

    def _settle(self, *, trusted: bool) -> None:
        if self._verdict is not None:
            self._verdict.set_result(trusted)
            self._verdict = None

    def _end_lull(self) -> None:
        """Nobody is left who could still give a sign of life: does the silence so far make an outage?"""
        if self._in_flight or self.suspected:
            return
        if self._timer is None:
            self._believe()
        elif not self._hearing:
            self._timer.cancel()
            self._hear()

    def _suspect(self) -> None:
        requests, hosts = self._silent.total(), len(self._silent_hosts)
        self._warn(
            f"{self._cause()} Nobody answered the last {requests} requests to {hosts} hosts. "
            f"Waiting for a sign of life, for {self._patience_now:.0f} s at most; no link is marked as failed meanwhile"
        )
        self.suspected, self._since = True, self._loop.time()
        self._looked_up = self._dns = 0
        self._settle(trusted=False)
        self._forgive()
        self._probe_in(min(_PROBE, self._patience / 10))

    def _probe_in(self, seconds: float) -> None:
        left = self._since + self._patience_now - self._loop.time()
        self._timer = self._loop.call_later(max(0.0, min(seconds, left)), self._probe, seconds)

    def _probe(self, seconds: float) -> None:
        """Let one of the waiting links through, of a host not yet tried if there is one; or lose patience."""
        if self._witness is not None and self._hearing is None:
            self._hear()
        if self._loop.time() >= self._since + self._patience_now:
            self._timer = None
            if self._only_unknown_names:
                self._doubt_names()
                return
            self._down = (
                f"{self._cause()} Nobody answered for {self._patience:.0f} s; no link was marked as failed for it, a new run "
                "resumes from here (if the network is fine and all these links are dead: download.fetch.outage_patience=0)"
            )
            self._open_gate()
        elif self._in_flight:
            self._probe_in(seconds)
        else:
            self._gate = [(name, opened) for name, opened in self._gate if not opened.done()]  # without the cancelled
            if self._gate:
                chosen = next((i for i, (name, _) in enumerate(self._gate) if name not in self._probed), 0)
                name, opened = self._gate.pop(chosen)
                self._probed.add(name)
                opened.set_result(None)
            self._probe_in(min(2 * seconds, _RAREST_PROBE))

    @property
    def _only_unknown_names(self) -> bool:
        """Whether the name server answers, but never knew anybody: it is cut off, or the links are all dead."""
        return not self._alive and 0 < self._silent["dns_unknown"] == self._silent.total()

    @property
    def _patience_now(self) -> float:
        return min(self._patience, _NAMES_PATIENCE) if self._only_unknown_names else self._patience

    def _doubt_names(self) -> None:
        self.stop()  # its silence would make another outage
        self.suspected, self.names_doubted = False, True
        self._probed.clear()
        self._silent.clear()
        self._silent_hosts.clear()
        self._evidence = 0
        self._open_gate()
        self._warn(
            "the name server knows none of the names: continuing, but they count as failed look-ups (dns) and not as unknown "
            "names, so that a new run asks for them again"
        )

    def _recover(self, timer: asyncio.TimerHandle) -> None:
        timer.cancel()
        self._timer = None
        self._open_gate()
        if self.suspected:
            self.suspected = False
            self._probed.clear()
            self._warn(f"the network is back after {self._loop.time() - self._since:.0f} s")

    def _open_gate(self) -> None:
        for _, opened in self._gate:
            if not opened.done():
                opened.set_result(None)
        self._gate.clear()

    def _cause(self) -> str:
        if 2 * (self._silent["dns"] + self._silent["dns_unknown"]) > self._silent.total():
            return "names cannot be looked up: is the network or its name server down?"
        return "no server can be reached: is the network down, or does a firewall or proxy forbid it?"

    def _watch_name_server(self) -> None:
        """Warn once if many look-ups fail: without a word the links would be lost to an overloaded name server."""
        if self._looked_up >= _FEWEST_LOOK_UPS and self._dns > _DNS_SHARE * self._looked_up and not self._dns_told:
            self._dns_told = True
            self._warn(
                f"the name server fails {self._dns / self._looked_up:.0%} of look-ups: lower download.fetch.concurrency or set "
                "download.fetch.nameservers to a caching resolver"
            )
        if self._looked_up > _MOST_LOOK_UPS:
            self._looked_up, self._dns = self._looked_up // 2, self._dns // 2
