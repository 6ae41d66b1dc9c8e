"""What name servers say, and what of it is believed."""

import asyncio
from collections.abc import Callable

import pytest

from filtering.images.fetch import Fetcher, Outcome
from filtering.images.fetch_config import FetchConfig
from helpers.download_web import Raw, answer, picture
from helpers.downloads import fetch_once
from helpers.name_server import Answer, NameServer


@pytest.mark.parametrize(
    ("answers", "status"),
    [
        ([["127.0.0.1"]], "forbidden_address"),
        ([["10.0.0.1", "127.0.0.1", "::1"]], "forbidden_address"),
        ([["::1"]], "forbidden_address"),
        ([["::ffff:127.0.0.1"]], "forbidden_address"),
        ([["64:ff9b::7f00:1"]], "forbidden_address"),
        ([["0.0.0.0"]], "forbidden_address"),
        ([["169.254.169.254", "fd00:ec2::254"]], "forbidden_address"),
        (["NXDOMAIN"], "dns_unknown"),
        ([[]], "dns_unknown"),
        (["SERVFAIL"], "dns"),
        (["REFUSED"], "dns"),
        (["silence"], "dns"),
    ],
)
def test_what_name_servers_say(trap: Raw, answers: list[Answer], status: str) -> None:
    with NameServer({"evil.test": answers}) as names:
        outcomes = fetch_once(f"http://evil.test:{trap.port}/", nameservers=(names.address,), connect_timeout=1.0)
    assert [outcome.status for outcome in outcomes] == [status]
    assert outcomes[0].message
    assert trap.connections == 0


def test_no_name_server_at_all(free_port: Callable[[], int]) -> None:
    (outcome,) = fetch_once("http://photos.test/", nameservers=(f"127.0.0.1:{free_port()}",), attempts=2)
    assert (outcome.status, outcome.retryable, outcome.attempts) == ("dns", True, 2)


def test_of_a_name_with_public_and_own_addresses_only_the_public_ones_are_reached(trap: Raw) -> None:
    with (
        Raw(answer(picture()), address="127.0.0.2", port=trap.port) as public,
        NameServer({"evil.test": [["127.0.0.1", "127.0.0.2", "::1"]], "dead.test": [["127.0.0.1", "127.0.0.3"]]}) as names,
    ):
        urls = (f"http://evil.test:{trap.port}/", f"http://dead.test:{trap.port}/")
        outcomes = fetch_once(*urls, nameservers=(names.address,), allow=("127.0.0.2", "127.0.0.3"))
    assert [outcome.status for outcome in outcomes] == ["success", "connect"]
    assert (public.connections, trap.connections) == (1, 0)


def test_a_name_that_changes_its_address_between_check_and_connection_reaches_nothing(trap: Raw) -> None:
    """The first answer is a public address, all later ones the user's own; every further request takes a new connection."""
    with (
        Raw(answer(picture()), address="127.0.0.2", port=trap.port) as public,
        NameServer({"rebind.test": [["127.0.0.2"], ["127.0.0.1"]]}) as names,
    ):
        url = f"http://rebind.test:{trap.port}/"
        settings = {"nameservers": (names.address,), "allow": ("127.0.0.2",)}
        together = fetch_once(url, url, url, **settings)
        assert [outcome.status for outcome in together] == ["success"] * 3
        assert names.questions["rebind.test", "A"] == 1
        assert [outcome.status for outcome in fetch_once(url, **settings)] == ["forbidden_address"]
        assert names.questions["rebind.test", "A"] == 2
    assert (public.connections, trap.connections) == (3, 0)


def test_the_links_of_a_dead_name_cost_one_look_up() -> None:
    async def one_after_the_other(names: NameServer) -> list[Outcome]:
        outcomes = []
        async with Fetcher(FetchConfig(nameservers=(names.address,))) as fetcher:
            for i in range(20):
                async with fetcher.fetch(f"http://gone.test/{i}.jpg") as outcome:
                    outcomes.append(outcome)
        return outcomes

    with NameServer({}) as names:
        outcomes = asyncio.run(one_after_the_other(names))
    assert {outcome.status for outcome in outcomes} == {"dns_unknown"}
    assert names.questions == {("gone.test", "A"): 1}


def test_names_are_absolute() -> None:
    """No search domain of this machine's is tried behind a name."""
    with NameServer({}) as names:
        fetch_once("http://intranet/x.jpg", "http://photos.nowhere/x.jpg", nameservers=(names.address,))
    assert {name for name, _ in names.questions} == {"intranet", "photos.nowhere"}
