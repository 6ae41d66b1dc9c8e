"""Politeness towards hosts, and the breaker of each: slots, rates, Retry-After, pauses, and what is remembered."""

import asyncio
import random
from collections import Counter
from itertools import pairwise

import pytest

from filtering.images.politeness import HostDown
from helpers.hosts_client import Answer, Client, Clock, Site, answers, make, now, run


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


def test_a_link_that_fails_again_and_again_does_not_pause_its_host() -> None:
    async def main() -> None:
        hosts = make(failures=10)
        for _ in range(9):
            for attempt in range(5):
                async with hosts.turn("host") as turn:
                    turn.report("http_503", again=attempt > 0)
        assert now() == 0.0
        async with hosts.turn("host") as turn:
            turn.report("http_503")  # of a tenth link
        async with hosts.turn("host") as turn:
            turn.report("success")
        assert now() == 30.0

    run(main())
