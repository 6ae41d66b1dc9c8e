"""What is no outage is not taken for one: dead links, dead hosts, slow ones, name servers that fail."""

import asyncio
import random

import pytest

from helpers.hosts_client import Answer, Client, answers, make, now, run


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
