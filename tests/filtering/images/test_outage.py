"""The network's breaker: an outage costs no link."""

import asyncio
import random
from collections import Counter
from itertools import pairwise

import pytest

from filtering.images.politeness import NetworkDown
from helpers.hosts_client import Answer, Client, Site, make, now, run


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
