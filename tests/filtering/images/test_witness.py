"""Dead hosts, or a dead network? A host that answered before tells, without being asked for anything."""

import asyncio
import socket
from pathlib import Path

import pytest

from filtering.images.download import download_corpus
from filtering.images.politeness import NetworkDown
from helpers.download_web import Web
from helpers.downloads import config_for, images, statuses, write_corpus
from helpers.hosts_client import Client, answers, make, now, run

DEAD = [f"host{i % 60}" for i in range(600)]


@pytest.mark.parametrize("symptom", ["connect", "dns", "dns_unknown"])
def test_dead_links_are_believed_while_a_witness_lives(symptom: str) -> None:
    async def main() -> None:
        heard: list[float] = []

        async def probe() -> bool:
            heard.append(now())
            return True

        client = Client(make(probe=probe, pause=0.0), answers(symptom))
        assert await client.get_all(DEAD) == {symptom: len(DEAD)}
        assert heard
        assert len(client.asked) == len(DEAD)  # each was asked once
        assert now() < 60.0

    run(main())


def test_a_dead_witness_proves_nothing() -> None:
    async def main() -> None:
        async def probe() -> bool:
            return False

        with pytest.raises(NetworkDown):
            await Client(make(probe=probe, warn=str), answers("connect")).get_all(DEAD)
        assert now() == pytest.approx(120.0, abs=5.0)

    run(main())


@pytest.mark.parametrize("seconds", [0.0, 4.0])
def test_a_dead_witness_does_not_stop_a_run_whose_names_are_all_unknown(seconds: float) -> None:
    async def main() -> None:
        told: list[str] = []

        async def probe() -> bool:
            await asyncio.sleep(seconds)
            return False

        hosts = make(probe=probe, warn=told.append, pause=0.0)
        await Client(hosts, answers("dns_unknown")).get_all(DEAD)
        assert hosts.network.names_doubted
        assert now() < 90.0
        assert len(told) == 2
        assert told[1].startswith("the name server knows none of the names")

    run(main())


def test_a_witness_that_comes_back_ends_the_outage() -> None:
    async def main() -> None:
        told: list[str] = []

        async def probe() -> bool:
            return now() > 50.0

        hosts = make(probe=probe, warn=told.append, pause=0.0)
        assert await Client(hosts, answers("connect")).get_all(DEAD) == {"connect": len(DEAD)}
        assert 50.0 < now() < 90.0
        assert len(told) == 2
        assert told[1].startswith("the network is back")

    run(main())


def test_a_name_server_that_knows_nobody_delays_but_does_not_end_the_run() -> None:
    async def main() -> None:
        told: list[str] = []
        hosts = make(warn=told.append, patience=600.0)
        assert await Client(hosts, answers("dns_unknown")).get_all(DEAD) == {"dns_unknown": len(DEAD)}
        assert hosts.network.names_doubted
        assert 60.0 < now() < 80.0
        assert len(told) == 2
        assert "asks for them again" in told[1]

    run(main())


def test_a_rerun_of_nothing_but_dead_hosts_ends(web: Web, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens there
        dead = [f"http://host{i % 8}.dead.test/{i}.jpg" for i in range(40)]
        routes = {**web.connect_to, "*.dead.test": f"127.0.0.1:{closed.getsockname()[1]}"}
        config = config_for(web, shard_size=100, connect_to=routes, attempts=1, outage_patience=30.0)
        corpus, out = write_corpus(tmp_path / "corpus", [*images(5), *dead]), tmp_path / "shards"
        first = download_corpus(config, corpus, out)
        requests = web.requests.total()
        second = download_corpus(config, corpus, out)
    assert second == {**first, "asked": 40}
    assert second["by_status"]["success"] == 5
    assert second["by_failure"]["transient"] == 40
    assert {row["failure"] for row in statuses(out)} == {None, "transient"}
    assert web.requests.total() == requests == 5  # the witness is not asked for anything
    assert "no server can be reached" not in capfd.readouterr().err
