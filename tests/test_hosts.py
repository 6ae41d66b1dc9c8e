"""Politeness and breakers: on a clock that jumps to the next event, and against a real server that dies and comes back."""

import asyncio
import random
import selectors
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from itertools import pairwise
from typing import Any, TypeVar

import pytest

from filtering.hosts import HostDown, Hosts, NetworkDown

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


def test_a_host_and_the_whole_have_their_slots() -> None:
    async def main() -> None:
        client = Client(make(per_host=3, at_once=7), answers("success", 1.0))
        assert await client.get_all([f"host{i % 4}" for i in range(70)]) == {"success": 70}
        assert (client.most_open, client.most_open_of_one) == (7, 3)
        assert now() == pytest.approx(10.0)  # all slots were in use all the time

    run(main())


def test_hosts_take_turns() -> None:
    async def main() -> None:
        client = Client(make(per_host=8, at_once=8), answers("success", 1.0))
        await client.get_all(["large"] * 1000 + ["small"] * 3)
        assert client.times("small")[-1] <= 3.0

    run(main())


def test_requests_to_a_host_are_spaced() -> None:
    async def main() -> None:
        client = Client(make(rate=20.0), answers("success", 0.15))
        assert await client.get_all(["a"] * 101 + ["b"] * 101) == {"success": 202}
        for host in "ab":
            times = client.times(host)
            assert min(later - earlier for earlier, later in pairwise(times)) >= 0.05 - 1e-9
            assert times[-1] == pytest.approx(5.0)
        await client.get("a")  # also by a link that comes when the host was idle
        await client.get("a")
        assert client.times("a")[-1] - client.times("a")[-2] >= 0.05

    run(main())


def test_what_never_reached_the_host_does_not_use_up_its_rate() -> None:
    async def main() -> None:
        client = Client(make(rate=1.0), answers("dns_unknown", 0.0))
        assert await client.get_all(["dead"] * 1000) == {"dns_unknown": 1000}
        assert now() < 1.0

    run(main())


def test_retry_after_holds_all_links_of_the_host() -> None:
    async def main() -> None:
        async def server(host: str) -> str | Answer:
            await asyncio.sleep(0.1)
            return ("http_429", 20.0) if host == "busy" and now() < 1.0 else "success"

        client = Client(make(per_host=1), server, attempts=2)
        assert await client.get_all(["busy"] * 50 + ["free"] * 50) == {"success": 100}
        first, second, *_ = client.times("busy")
        assert second - first >= 20.0
        assert client.times("free")[-1] < 10.0

    run(main())


def test_a_long_retry_after_is_not_waited_for() -> None:
    async def main() -> None:
        async def server(host: str) -> str | Answer:
            await asyncio.sleep(0.1)
            return ("http_503", 3600.0) if now() < 1000.0 else "success"

        hosts = make(per_host=1)
        client = Client(hosts, server)
        assert await client.get_all(["busy"] * 500) == {"http_503": 1, "host_down": 499}
        assert now() < 1.0
        with pytest.raises(HostDown) as down:
            async with hosts.turn("busy"):
                pytest.fail("it is to be left alone")
        assert down.value.seconds == pytest.approx(3600.0)
        await asyncio.sleep(3580.0)
        assert await client.get("busy") == "success"  # 20 s are worth waiting for
        assert client.times("busy")[1] >= 3600.0

    run(main())


@pytest.mark.parametrize("status", ["connect", "timeout", "tls", "incomplete", "http_500", "http_429", "dns"])
def test_a_dead_host_costs_a_handful_of_requests(status: str) -> None:
    async def main() -> None:
        client = Client(make(), answers(status, 5.0))
        first = client.get_all(["dead"] * 3000)
        living = Client(client.hosts, answers("http_404", 1.0)).get_all([f"host{i % 50}" for i in range(1000)])
        statuses, _ = await asyncio.gather(first, living)
        assert statuses["host_down"] + statuses[status] == 3000
        assert len(client.asked) <= 10 + 8 + 1  # up to the tenth failure, those in flight then, one probe
        assert now() < 60.0
        assert await client.get_all(["dead"] * 3000) == {"host_down": 3000}
        assert len(client.asked) <= 19

    run(main())


def test_a_host_that_heals_in_seconds_loses_nothing() -> None:
    async def main() -> None:
        async def server(host: str) -> str:
            await asyncio.sleep(0.1)
            return "http_502" if 1.0 < now() < 21.0 else "success"

        client = Client(make(), server)
        statuses = await client.get_all(["host"] * 2000)
        assert statuses["host_down"] == 0
        assert statuses["http_502"] <= 17  # those that met it in person
        assert client.most_open_of_one == 8
        during = [time for time in client.times("host") if 1.2 < time < 31.0]
        assert not during

    run(main())


def test_a_pause_as_long_as_links_wait_is_waited_for() -> None:
    async def main() -> None:
        async def server(host: str) -> str:
            await asyncio.sleep(0.1 + 0.0137 * int(host))  # the sums of times are not exact
            return "http_500" if now() < 20.0 else "success"

        client = Client(make(failures=3, per_host=1, pause=30.0, max_wait=30.0), server)
        assert await client.get_all([str(i % 50) for i in range(500)]) == {"http_500": 150, "success": 350}

    run(main())


def test_one_probe_goes_through_and_pauses_double() -> None:
    async def main() -> None:
        client = Client(make(max_wait=1000.0, failures=3, patience=0.0), answers("connect", 1.0))
        tasks = [asyncio.create_task(client.get("dead")) for _ in range(20)]
        await asyncio.sleep(4000.0)
        times = client.times("dead")
        assert times[:10] == [0.0] * 8 + [1.0] * 2  # the third failure opens it, at 1.0
        gaps = [later - earlier for earlier, later in pairwise([0.0, *times[10:]])]
        assert gaps == pytest.approx([31.0, 61.0, 121.0, 241.0, 481.0] + [601.0] * 5)
        for task in tasks:
            task.cancel()

    run(main())


def test_an_answer_closes_the_breaker() -> None:
    async def main() -> None:
        script = iter(["http_500"] * 9 + ["http_404"] + ["http_500"] * 10 + ["http_404"] + ["http_500"] * 9 + ["success"] * 9)

        async def server(host: str) -> str:
            await asyncio.sleep(0.1)
            return next(script)

        client = Client(make(per_host=1), server)
        await client.get_all(["host"] * 39)
        gaps = [later - earlier for earlier, later in pairwise(client.times("host"))]
        assert [i for i, gap in enumerate(gaps) if gap > 1.0] == [19]  # ten in a row, once

    run(main())


def test_a_probe_that_is_given_up_makes_room_for_the_next() -> None:
    async def main() -> None:
        healthy = False

        async def server(host: str) -> str:
            await asyncio.sleep(0.1 if healthy or now() < 5.0 else 1000.0)
            return "success" if healthy else "connect"

        client = Client(make(failures=2, per_host=2), server)
        await client.get_all(["host"] * 2)
        probe = asyncio.create_task(client.get("host"))
        others = asyncio.create_task(client.get_all(["host"] * 9))
        await asyncio.sleep(40.0)
        assert (len(client.asked), client.open["host"]) == (3, 1)
        healthy = True
        probe.cancel()
        assert await others == {"success": 9}

    run(main())


def test_a_link_let_in_and_cancelled_at_once_leaves_its_slot() -> None:
    async def main() -> None:
        hosts = make(at_once=1)
        async with hosts.turn("host"):
            waiting = asyncio.create_task(Client(hosts, answers("success")).get("host"))
            await asyncio.sleep(1.0)
        waiting.cancel()  # it has the slot, but has not run since
        await asyncio.gather(waiting, return_exceptions=True)
        assert waiting.cancelled()
        assert await Client(hosts, answers("success")).get("host") == "success"

    run(main())


def test_idle_hosts_are_forgotten() -> None:
    async def main() -> None:
        hosts = make(rate=20.0)
        await Client(hosts, answers("success")).get_all([f"host{i}" for i in range(3000)])
        await Client(hosts, answers("dns_unknown")).get_all([f"gone{i}" for i in range(10)])
        await asyncio.sleep(1.0)
        assert len(hosts) == 0

    run(main())


def test_hosts_in_bad_standing_are_remembered_up_to_a_bound() -> None:
    async def main() -> None:
        hosts = make(failures=1, per_host=1, max_wait=1.0)
        failing = Client(hosts, answers("http_503", 0.0))
        await failing.get_all([f"host{i}" for i in range(12_000)])
        assert len(hosts) == 10_000
        assert await failing.get("host11999") == "host_down"
        assert await failing.get("host0") == "http_503"  # forgotten: the longest idle

    run(main())


def test_the_work_per_link_does_not_grow_with_those_who_wait() -> None:
    async def steps_of(links: int) -> float:
        client = Client(make(rate=1000.0), answers("success", 0.001))
        await client.get_all(["host"] * links)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Clock)
        return loop.steps / links

    few, many = run(steps_of(200)), run(steps_of(6000))
    assert many < 1.2 * few
    assert many < 20


@pytest.mark.parametrize("seed", range(5))
def test_no_slot_is_lost_whatever_happens(seed: int) -> None:
    async def main() -> None:
        dice = random.Random(seed)

        async def server(host: str) -> str | Answer:
            await asyncio.sleep(dice.random())
            if dice.random() < 0.05:
                raise RuntimeError("a flaw of the client's")
            status = dice.choice(["success", "http_404", "http_500", "connect", "timeout", "dns", "dns_unknown", "http_429"])
            return status, dice.choice([None, None, 3.0, 50.0]) if status == "http_429" else None

        client = Client(make(at_once=10, per_host=3, rate=5.0, failures=4, pause=2.0, max_wait=5.0, warn=str), server, 3)
        tasks = [asyncio.create_task(client.get(f"host{dice.randrange(20)}")) for _ in range(1500)]
        for task in dice.sample(tasks, 500):
            asyncio.get_running_loop().call_later(20 * dice.random(), task.cancel)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        kinds = Counter(type(result) for result in results)
        assert kinds[str] > 500
        assert set(kinds) <= {str, RuntimeError, asyncio.CancelledError}
        assert (client.most_open, client.most_open_of_one) == (10, 3)
        await asyncio.sleep(1000.0)
        begun = now()
        healthy = Client(client.hosts, answers("success", 1.0))
        assert await healthy.get_all([f"other{i}" for i in range(20)]) == {"success": 20}
        assert now() - begun == pytest.approx(2.0)  # ten slots

    run(main())


# The network


class World:
    """Many hosts that live, but for a time in which nobody can be reached."""

    def __init__(self, dead_from: float, dead_until: float, symptom: str, seconds: float = 0.2) -> None:
        self.dead_from, self.dead_until, self.symptom, self.seconds = dead_from, dead_until, symptom, seconds

    async def __call__(self, host: str) -> str:
        if not self.dead_from <= now() < self.dead_until:
            await asyncio.sleep(0.2)
            return "success"
        await asyncio.sleep(self.seconds)
        return self.symptom


@pytest.mark.parametrize(("symptom", "seconds"), [("dns", 0.0), ("dns_unknown", 0.01), ("connect", 0.1), ("timeout", 10.0)])
def test_an_outage_costs_no_link(symptom: str, seconds: float) -> None:
    async def main() -> None:
        told: list[str] = []
        client = Client(make(warn=told.append), World(5.0, 70.0, symptom, seconds))
        assert await client.get_all([f"host{i % 200}" for i in range(5000)]) == {"success": 5000}
        assert len(told) == 2
        assert ("names cannot be looked up" in told[0]) == symptom.startswith("dns")
        assert "\n" not in told[0]
        assert told[1].startswith("the network is back after ")
        dead = [time for time, _ in client.asked if 5.0 <= time < 70.0]
        assert len(dead) <= 64 + 20 + 64 + 8  # until it was noticed, and probes
        assert now() < 70.0 + 15.0 + 20.0

    run(main())


def test_probes_go_one_at_a_time_to_different_hosts_at_growing_intervals() -> None:
    async def main() -> None:
        client = Client(make(warn=str, failures=3), World(0.0, 1e9, "connect", 0.0))
        with pytest.raises(NetworkDown):
            await client.get_all([f"host{i // 50}" for i in range(400)])
        probes = [(time, host) for time, host in client.asked if time > 0]
        assert [round(time) for time, _ in probes] == [1, 3, 7, 15, 30, 45, 60, 75, 90, 105]
        assert len({host for _, host in probes[:8]}) == 8
        assert now() == pytest.approx(120.0, abs=0.2)

    run(main())


def test_requests_that_hang_do_not_hide_an_outage() -> None:
    async def main() -> None:
        told: list[float] = []

        async def server(host: str) -> str:
            await asyncio.sleep(60.0 if int(host) % 2 else 0.1)
            return "timeout" if int(host) % 2 else "connect"

        client = Client(make(at_once=200, patience=50.0, warn=lambda line: told.append(now())), server)
        with pytest.raises(NetworkDown):
            await client.get_all([str(i) for i in range(1000)])
        assert told[0] < 5.0

    run(main())


def test_links_that_are_given_up_in_an_outage_do_not_end_the_probes() -> None:
    async def main() -> None:
        client = Client(make(warn=str), World(1.0, 50.0, "connect"))
        tasks = [asyncio.create_task(client.get(f"host{i % 100}")) for i in range(1000)]
        await asyncio.sleep(20.0)
        for task in tasks[::2]:
            task.cancel()
        results = Counter(type(result) for result in await asyncio.gather(*tasks, return_exceptions=True))
        assert results[str] >= 500
        assert set(results) == {str, asyncio.CancelledError}

    run(main())


def test_a_slow_probe_is_waited_for() -> None:
    async def main() -> None:
        client = Client(make(warn=str), World(0.0, 1e9, "timeout", 20.0))
        with pytest.raises(NetworkDown):
            await client.get_all([f"host{i % 40}" for i in range(400)])
        probes = [time for time, _ in client.asked if time > 20.0]
        assert probes
        assert all(later - earlier >= 20.0 for earlier, later in pairwise(probes))

    run(main())


@pytest.mark.parametrize(("symptom", "cause"), [("dns", "names cannot be looked up"), ("connect", "no server can be reached")])
def test_a_dead_network_is_one_line_and_no_result(symptom: str, cause: str) -> None:
    async def main() -> None:
        told: list[str] = []
        client = Client(make(patience=60.0, warn=told.append), World(1.0, 1e9, symptom))
        results = await asyncio.gather(*(client.get(f"host{i % 100}") for i in range(3000)), return_exceptions=True)
        kinds = Counter(result if isinstance(result, str) else type(result) for result in results)
        assert set(kinds) == {"success", NetworkDown}
        message = str(next(result for result in results if isinstance(result, NetworkDown)))
        assert message.startswith(cause)
        assert "no link was marked as failed" in message
        assert "\n" not in message
        assert len(told) == 1
        with pytest.raises(NetworkDown):
            await client.get("another")

    run(main())


@pytest.mark.parametrize("attempts", [1, 3])
def test_a_few_dead_links_are_final(attempts: int) -> None:
    async def main() -> None:
        client = Client(make(), answers("connect", 0.5), attempts)
        assert await client.get_all([f"dead{i}" for i in range(12)]) == {"connect": 12}
        assert now() < 5.0

    run(main())


def test_dead_links_on_few_hosts_are_no_outage() -> None:
    async def main() -> None:
        client = Client(make(), answers("dns_unknown", 0.01))
        assert await client.get_all([f"dead{i % 4}" for i in range(1000)]) == {"dns_unknown": 1000}

    run(main())


def test_a_large_dead_host_among_living_ones_is_no_outage() -> None:
    async def main() -> None:
        async def server(host: str) -> str:
            await asyncio.sleep(5.0 if host == "dead" else 0.5)
            return "timeout" if host == "dead" else "success"

        client = Client(make(), server)
        statuses = await client.get_all((["dead"] * 9 + ["host1"]) * 1000)
        assert statuses["success"] == 1000
        assert statuses.total() == 10_000

    run(main())


def test_the_slow_ones_that_are_left_at_the_end_are_no_outage() -> None:
    async def main() -> None:
        async def server(host: str) -> str:
            await asyncio.sleep(20.0 if host.startswith("slow") else 1.0)
            return "timeout" if host.startswith("slow") else "success"

        client = Client(make(at_once=500), server)
        assert await client.get_all([f"{'slow' if i % 4 else 'fast'}{i}" for i in range(400)]) == {
            "success": 100,
            "timeout": 300,
        }

    run(main())


@pytest.mark.parametrize("living", [0.5, 0.05])
def test_the_quick_failures_of_the_first_second_are_no_outage(living: float) -> None:
    async def main() -> None:
        async def server(host: str) -> str:
            lives = int(host) * 37 % 100 < 100 * living
            await asyncio.sleep(2.0 if lives else 0.01)
            return "success" if lives else "dns_unknown"

        statuses = await Client(make(), server).get_all([str(i) for i in range(1, 4001)])
        assert statuses["success"] == 4000 * living

    run(main())


def test_asking_the_dead_again_at_the_end_is_no_outage() -> None:
    async def main() -> None:
        async def server(host: str) -> str:
            await asyncio.sleep(2.0 if host.startswith("dead") else 1.0)
            return "connect" if host.startswith("dead") else "success"

        client = Client(make(at_once=500), server, attempts=5)
        assert await client.get_all([f"{'dead' if i % 4 else 'fine'}{i}" for i in range(400)]) == {
            "success": 100,
            "connect": 300,
        }
        assert len(client.asked) == 100 + 300 * 5

    run(main())


@pytest.mark.parametrize("seed", range(3))
def test_a_corpus_whose_links_are_mostly_dead_is_no_outage(seed: int) -> None:
    async def main() -> None:
        dice = random.Random(seed)
        living = {f"host{i}" for i in range(6000) if dice.random() < (0.5 if i < 100 else 0.1)}

        async def server(host: str) -> str:
            await asyncio.sleep((0.1 if host in living else 1.0) * dice.random())
            return "success" if host in living else "connect"

        client = Client(make(at_once=4, patience=1.0), server)
        statuses = await client.get_all([f"host{i}" for i in range(6000)])
        assert statuses == {"success": len(living), "connect": 6000 - len(living)}

    run(main())


def test_hosts_that_the_outage_stopped_are_not_given_up() -> None:
    async def main() -> None:
        told: list[str] = []
        client = Client(make(failures=2, max_wait=1.0, at_once=20, warn=told.append), World(2.0, 40.0, "connect", 0.5))
        assert await client.get_all([f"host{i % 10}" for i in range(2000)]) == {"success": 2000}
        assert len(told) == 2

    run(main())


def test_failures_of_an_outage_are_not_held_against_hosts() -> None:
    async def main() -> None:
        hosts = make(failures=4, max_wait=1.0, patience=60.0, warn=str)  # it is noticed when the quick ones have all failed

        async def server(host: str) -> str:
            began = now()
            await asyncio.sleep(5.0 if host == "slow" else 1.0)
            return "connect" if began < 20.0 else "success"

        slow = asyncio.create_task(Client(hosts, server).get_all(["slow"] * 8))  # all fail while the outage is suspected
        quick = asyncio.create_task(Client(hosts, server).get_all([f"host{i % 7}" for i in range(21)]))
        assert await slow == {"success": 8}
        assert await quick == {"success": 21}

    run(main())


def test_patience_0_takes_silence_as_it_comes() -> None:
    async def main() -> None:
        client = Client(make(patience=0.0), answers("dns", 0.1))
        assert await client.get_all([f"host{i}" for i in range(500)]) == {"dns": 500}

    run(main())


@pytest.mark.parametrize(("share", "start", "warnings"), [(0.3, 0, 1), (0.3, 3000, 1), (0.1, 0, 0)])
def test_a_failing_name_server_is_told_once(share: float, start: int, warnings: int) -> None:
    async def main() -> None:
        told: list[str] = []
        dice = random.Random(0)

        async def server(host: str) -> str:
            await asyncio.sleep(0.1)
            return "dns" if int(host) >= start and dice.random() < share else "success"

        await Client(make(warn=told.append), server).get_all([str(i) for i in range(5000)])
        assert len(told) == warnings
        assert all("name server fails" in line and "fetch.nameservers" in line for line in told)

    run(main())


def test_a_failure_behind_a_redirect_is_not_the_hosts() -> None:
    async def main() -> None:
        async def server(host: str) -> Answer:
            await asyncio.sleep(0.1)
            return "connect", None, host.startswith("redirect")

        client = Client(make(failures=5), server)
        assert await client.get_all([f"redirect{i % 7}" for i in range(700)]) == {"connect": 700}
        statuses = await client.get_all(["host"] * 700)
        assert statuses["host_down"] > 600

    run(main())


def test_responses_that_break_off_in_an_outage_are_asked_for_again() -> None:
    async def main() -> None:
        told: list[str] = []

        async def server(host: str) -> str | Answer:
            began = now()
            await asyncio.sleep(0.05 if 10.0 <= began < 60.0 else 8.0)
            if 10.0 <= began < 60.0:
                return "dns"
            if began < 10.0 <= now() < 60.0:
                return random.choice([("timeout", None, True), ("incomplete", None, True)])
            return "success"

        client = Client(make(warn=told.append), server)
        assert await client.get_all([f"host{i % 300}" for i in range(3000)]) == {"success": 3000}
        assert len(told) == 2

    run(main())


def test_in_an_outage_the_really_dead_keep_their_status() -> None:
    async def main() -> None:
        told: list[str] = []
        living = World(20.0, 50.0, "timeout", 5.0)

        async def server(host: str) -> str:
            if host.startswith("dead"):
                await asyncio.sleep(3.0)
                return "connect"
            return await living(host)

        client = Client(make(at_once=32, warn=told.append), server, attempts=2)
        names = [f"{'dead' if i % 3 == 0 else 'host'}{i % 600}" for i in range(6000)]
        statuses = await client.get_all(names)
        assert statuses["success"] == 4000
        assert statuses["connect"] + statuses["host_down"] == 2000
        assert len(told) == 2

    run(main())


def test_an_outage_shows_through_callers_that_hold_their_links_back() -> None:
    async def main() -> None:
        told: list[str] = []
        client = Client(make(warn=told.append), World(1.0, 1e9, "connect"))
        few = asyncio.Semaphore(4)
        statuses: Counter[str] = Counter()

        async def get(host: str) -> None:
            async with few:
                statuses[await client.get(host)] += 1

        with pytest.raises(NetworkDown):
            await asyncio.gather(*(get(f"host{i}") for i in range(1000)))
        assert statuses["success"] >= 20
        assert statuses["connect"] <= 20

    run(main())


# Real time and real sockets


class Site:
    """A real HTTP server that can die (nobody listens any more) and come back on its port."""

    def __init__(self) -> None:
        self.requests = 0
        self.busy_once = 0
        self.port = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._server.close()
        await self._server.wait_closed()

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
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(f"GET / HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
            head = await reader.read()
            writer.close()
        except OSError:
            return "connect"
        return ("http_429", 1.0) if b"Retry-After: 1" in head else "success"


def test_a_server_that_dies_and_comes_back_costs_no_link() -> None:
    async def main() -> None:
        told: list[str] = []
        site = Site()
        await site.start()
        client = Client(make(at_once=16, rate=100.0, warn=told.append), site)
        work = asyncio.create_task(client.get_all([f"host{i % 10}" for i in range(600)]))
        while site.requests < 100:
            await asyncio.sleep(0.01)
        await site.stop()
        while not told:
            await asyncio.sleep(0.01)
        answered = site.requests
        asked = len(client.asked)
        await asyncio.sleep(0.5)
        assert len(client.asked) - asked <= 16  # those in flight; then silence
        assert site.requests == answered
        await site.start()
        assert await work == {"success": 600}
        assert site.requests == 600
        assert len(told) == 2
        await site.stop()

    asyncio.run(main())


def test_a_server_that_never_comes_back_ends_the_run() -> None:
    async def main() -> None:
        site = Site()
        await site.start()
        await site.stop()
        client = Client(make(patience=1.0, warn=str), site)
        with pytest.raises(NetworkDown, match="no server can be reached"):
            async with asyncio.timeout(60):
                await client.get_all([f"host{i % 10}" for i in range(100)])

    asyncio.run(main())


def test_a_busy_server_gets_its_rest() -> None:
    async def main() -> None:
        site = Site()
        site.busy_once = 1
        await site.start()
        client = Client(make(per_host=2), site, attempts=2)
        assert await client.get_all(["host"] * 20) == {"success": 20}
        gaps = [later - earlier for earlier, later in pairwise(client.times("host"))]
        assert max(gaps) >= 0.99
        await site.stop()

    asyncio.run(main())
