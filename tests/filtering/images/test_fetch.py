"""The HTTP client against a real server: every way in which the web says no, and how often it was asked."""

import asyncio
from collections.abc import Callable
from email.utils import formatdate
from time import time
from urllib.parse import quote

import pytest

from filtering.images.fetch import Fetcher, Outcome
from filtering.images.fetch_config import FetchConfig
from filtering.images.politeness import NetworkDown
from helpers.download_web import HOST, Raw, Web, answer, picture
from helpers.downloads import fetch_all
from helpers.name_server import NameServer


def fetch(web: Web, *paths: str, **settings: object) -> list[Outcome]:
    """The outcomes of all `paths` of the server, asked for together."""
    return fetch_urls(web, *(f"http://{HOST}{path}" for path in paths), **settings)


def fetch_urls(web: Web, *urls: str, **settings: object) -> list[Outcome]:
    settings = {"timeout": 20.0, "backoff": 0.01, "per_host_rate": 0.0, "connect_to": web.connect_to, **settings}
    return fetch_all(*urls, **settings)


def test_an_image_comes_over_the_mapped_address_under_its_own_name(web: Web) -> None:
    urls = (f"http://{HOST}/image?seed=3", f"http://a.b.{HOST}/image", f"http://{HOST}:81/image")
    outcomes = fetch_urls(web, *urls, user_agent="probe/1")
    assert [outcome.status for outcome in outcomes] == ["success"] * 3
    assert outcomes[0].body == picture(3)
    assert (outcomes[0].http_status, outcomes[0].attempts, outcomes[0].retryable) == (200, 1, False)
    assert web.hosts == {HOST, f"a.b.{HOST}", f"{HOST}:81"}
    assert web.user_agents == {"probe/1"}


def test_urls_are_written_as_people_write_them(web: Web) -> None:
    urls = (f" HTTP://{HOST}/image/ein Bild.jpg?wo=Köln&x=a%20b#top", f"http://Bücher.{HOST}/image")
    assert [outcome.status for outcome in fetch_urls(web, *urls)] == ["success"] * 2
    assert set(web.requests) == {"/image/ein%20Bild.jpg?wo=K%C3%B6ln&x=a%20b", "/image"}
    assert web.hosts == {HOST, f"xn--bcher-kva.{HOST}"}


@pytest.mark.parametrize("code", [204, 304, 400, 401, 403, 404, 410, 451])
def test_a_final_no_is_asked_once(web: Web, code: int) -> None:
    (outcome,) = fetch(web, f"/status/{code}")
    assert (outcome.status, outcome.http_status, outcome.retryable, outcome.attempts) == (f"http_{code}", code, False, 1)
    assert web.requests.total() == 1


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503])
def test_a_passing_no_is_asked_as_often_as_configured(web: Web, code: int) -> None:
    (outcome,) = fetch(web, f"/status/{code}", attempts=3)
    assert (outcome.status, outcome.http_status, outcome.retryable, outcome.attempts) == (f"http_{code}", code, True, 3)
    assert web.requests.total() == 3


def test_a_server_that_heals_gives_its_image(web: Web) -> None:
    (outcome,) = fetch(web, "/heal?times=2", attempts=3)
    assert (outcome.status, outcome.attempts, outcome.body) == ("success", 3, picture())
    assert web.requests.total() == 3


def test_attempts_back_off(web: Web) -> None:
    fetch(web, "/status/500", attempts=3, backoff=0.2)
    first, second, third = web.times["/status/500"]
    assert second - first >= 0.1  # half of 0.2: the most that jitter takes off
    assert third - second >= 0.2


def test_retry_after_is_obeyed(web: Web) -> None:
    (outcome,) = fetch(web, "/later?after=1")
    assert (outcome.status, outcome.attempts) == ("success", 2)
    first, second = web.times["/later?after=1"]
    assert second - first >= 1


def test_retry_after_may_be_a_date(web: Web) -> None:
    (outcome,) = fetch(web, f"/later?after={quote(formatdate(time() - 5, usegmt=True))}")
    assert outcome.status == "success"


@pytest.mark.parametrize("after", ["3600", quote(formatdate(time() + 3600, usegmt=True))], ids=["seconds", "date"])
def test_a_server_that_wants_to_be_left_alone_is(web: Web, after: str) -> None:
    (outcome,) = fetch(web, f"/later?after={after}")
    assert (outcome.status, outcome.retryable, outcome.attempts) == ("http_429", True, 1)


@pytest.mark.timeout(60)  # without a total deadline it would never end
@pytest.mark.parametrize("path", ["/drip", "/silent", f"/redirect?to=http://{HOST}/drip"])
def test_the_deadline_is_total(web: Web, path: str) -> None:
    (outcome,) = fetch(web, path, timeout=0.5)
    assert (outcome.status, outcome.retryable, outcome.attempts) == ("timeout", True, 1)


def test_the_deadline_covers_all_attempts(web: Web) -> None:
    (outcome,) = fetch(web, "/slow_500", attempts=100, backoff=0.0, timeout=1.0)
    assert 1 <= outcome.attempts <= 4
    assert outcome.status in ("http_500", "timeout")


def test_waiting_for_a_turn_does_not_count_against_the_deadline(web: Web) -> None:
    paths = [f"/image?wait=0.15&seed={i}" for i in range(8)]
    assert {outcome.status for outcome in fetch(web, *paths, timeout=1.0, per_host=1)} == {"success"}
    assert web.most_at_once == 1


def test_concurrency_is_bounded(web: Web) -> None:
    hosts = [f"http://host{i}.{HOST}/image?wait=0.05" for i in range(12)]
    fetch_urls(web, *hosts, concurrency=3)
    assert web.requests.total() == 12
    assert 1 < web.most_at_once <= 3


def test_links_to_a_slow_host_take_no_place_of_others(web: Web) -> None:
    slow = [f"http://slow.{HOST}/image?wait=0.2&seed={i}" for i in range(8)]
    fast = [f"http://fast{i}.{HOST}/image" for i in range(8)]
    finished: list[str] = []

    async def one(fetcher: Fetcher, url: str) -> None:
        async with fetcher.fetch(url) as outcome:
            assert outcome.status == "success"
        finished.append(url)

    async def all_of_them() -> None:
        config = FetchConfig(connect_to=web.connect_to, per_host=1, concurrency=2)
        async with Fetcher(config) as fetcher, asyncio.TaskGroup() as tasks:
            for url in [*slow, *fast]:
                tasks.create_task(one(fetcher, url))

    asyncio.run(all_of_them())
    assert sum(url in slow for url in finished[: finished.index(fast[-1])]) < len(slow) / 2


def test_a_body_keeps_its_turn_until_the_block_is_left(web: Web) -> None:
    async def two() -> None:
        async with Fetcher(FetchConfig(connect_to=web.connect_to, per_host=1)) as fetcher:

            async def another() -> None:
                async with fetcher.fetch(f"http://{HOST}/image?seed=2"):
                    pass

            async with fetcher.fetch(f"http://{HOST}/image?seed=1"):
                task = asyncio.create_task(another())
                await asyncio.wait([task], timeout=0.2)
                assert web.requests.total() == 1
            await task

    asyncio.run(two())
    assert web.requests.total() == 2


@pytest.mark.parametrize("slow", [True, False])
def test_fewer_links_are_asked_for_while_bodies_wait(web: Web, slow: bool) -> None:
    """Or they would fill the memory; otherwise as many as may be."""

    async def most_held() -> tuple[int, int]:
        held = [0]
        working = asyncio.Lock()

        async def one(fetcher: Fetcher, url: str) -> None:
            async with fetcher.fetch(url):
                held.append(held[-1] + 1)
                if slow:
                    async with working:
                        await asyncio.sleep(0.001)
                held.append(held[-1] - 1)

        async with Fetcher(FetchConfig(connect_to=web.connect_to, concurrency=300, per_host_rate=0.0)) as fetcher:
            async with asyncio.TaskGroup() as tasks:
                for number in range(400):
                    tasks.create_task(one(fetcher, f"http://host{number % 40}.{HOST}/image?seed={number % 4}"))
            return max(held), fetcher._at_once

    most, at_last = asyncio.run(most_held())
    assert most < 120 if slow else at_last == 300


@pytest.mark.parametrize(("workers", "at_once"), [(1, 4), (2, 2), (100, 1)])
def test_workers_share_the_limit_of_a_host(web: Web, workers: int, at_once: int) -> None:
    async def all_of_them() -> None:
        config = FetchConfig(connect_to=web.connect_to, per_host=4, per_host_rate=0)
        async with Fetcher(config, workers) as fetcher, asyncio.TaskGroup() as tasks:

            async def one(i: int) -> None:
                async with fetcher.fetch(f"http://{HOST}/image?wait=0.05&seed={i}") as outcome:
                    assert outcome.status == "success"

            for i in range(8):
                tasks.create_task(one(i))

    asyncio.run(all_of_them())
    assert web.most_at_once == at_once


def test_redirects_wait_for_the_turn_of_their_host(web: Web) -> None:
    """Five hosts send their visitors to the same sixth one."""
    with Raw(answer(b"", f"Location: http://{HOST}/image?wait=0.05", status="302 Found")) as server:
        connect_to = {**web.connect_to, f"*.{HOST}": f"127.0.0.1:{server.port}"}
        outcomes = fetch_urls(web, *(f"http://{i}.{HOST}/" for i in range(5)), connect_to=connect_to, per_host=1)
    assert [(outcome.status, outcome.attempts) for outcome in outcomes] == [("success", 1)] * 5
    assert (server.connections, web.requests.total(), web.most_at_once) == (5, 5, 1)


def test_a_host_that_goes_on_failing_is_left_alone(web: Web) -> None:
    paths = [f"/status/503?{i}" for i in range(10)]
    outcomes = fetch(web, *paths, attempts=1, per_host=1, host_failures=3, host_pause=60.0, max_wait=0.1)
    assert [outcome.status for outcome in outcomes] == ["http_503"] * 3 + ["host_down"] * 7
    assert {(outcome.attempts, outcome.retryable) for outcome in outcomes[3:]} == {(0, True)}
    assert web.requests.total() == 3


def test_what_an_outage_spoils_is_asked_again(web: Web) -> None:
    """The name server fails for everybody, then recovers: no link is lost, and none uses an attempt up."""
    hosts = [f"host{i}.test" for i in range(30)]
    passing = ["SERVFAIL", "SERVFAIL", ["127.0.0.1"]]  # a look-up asks twice
    with NameServer(dict.fromkeys(hosts, passing)) as names:
        urls = [f"http://{host}:{web.port}/image" for host in hosts]
        settings = {"nameservers": (names.address,), "allow": ("127.0.0.1",), "outage_patience": 20.0}
        outcomes = fetch_urls(web, *urls, attempts=1, **settings)
    assert {(outcome.status, outcome.attempts) for outcome in outcomes} == {("success", 1)}


def test_a_dead_network_stops_the_run(web: Web, free_port: Callable[[], int]) -> None:
    urls = [f"http://host{i}.{HOST}/image" for i in range(30)]
    with pytest.raises(NetworkDown, match="no link was marked as failed"):
        fetch_urls(web, *urls, attempts=1, outage_patience=0.5, connect_to={f"*.{HOST}": f"127.0.0.1:{free_port()}"})


@pytest.mark.parametrize("path", ["/endless", "/sized", "/bomb"])
def test_the_byte_cap_caps(web: Web, path: str) -> None:
    (outcome,) = fetch(web, path, max_bytes=10**6)
    assert (outcome.status, outcome.retryable, outcome.attempts, outcome.body) == ("too_large", False, 1, b"")


def test_the_byte_cap_is_exact(web: Web) -> None:
    size = len(picture())
    assert fetch(web, "/image", max_bytes=size)[0].status == "success"
    assert fetch(web, "/image", "/zipped", max_bytes=size - 1)[1].status == "too_large"
    assert fetch(web, "/zipped", max_bytes=size)[0].body == picture()


def test_a_cut_connection_is_asked_again(web: Web) -> None:
    (outcome,) = fetch(web, "/short", attempts=2)
    assert (outcome.status, outcome.retryable, outcome.attempts) == ("incomplete", True, 2)
    assert web.requests.total() == 2


def test_redirects(web: Web) -> None:
    assert fetch(web, "/loop/5", max_redirects=5)[0].body == picture()
    assert fetch(web, "/loop/6", max_redirects=5)[0].status == "too_many_redirects"
    assert fetch(web, "/loop/1", max_redirects=0)[0].status == "too_many_redirects"
    assert fetch(web, f"/redirect?to=http://other.{HOST}/image")[0].status == "success"
    for target in ("file:///etc/hostname", "ftp://x/y", "data:text/plain,hello"):
        assert fetch(web, f"/redirect?to={target}")[0].status == "bad_scheme"


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://x/y.jpg", "data:image/png;base64,AAAA", "javascript:void(0)"])
def test_other_schemes_are_not_opened(web: Web, url: str) -> None:
    assert fetch_urls(web, url) == [Outcome(status="bad_scheme")]


BAD_URLS = ["", "//h/x", "http://", "http:///x", "http://[::1/x", "http://h:99999/x", f"http://{'a' * 70}.test/"]


@pytest.mark.parametrize("url", BAD_URLS)
def test_bad_urls(web: Web, url: str) -> None:
    (outcome,) = fetch_urls(web, url)
    assert (outcome.status, outcome.retryable) == ("bad_url", False)
    assert web.requests.total() == 0


def test_a_dead_name_is_final_and_a_dead_server_is_not(web: Web, free_port: Callable[[], int]) -> None:
    with NameServer({}) as names:
        urls = ("http://nobody.test/x.jpg", f"http://127.0.0.1:{free_port()}/x.jpg")
        dead_name, dead_server = fetch_urls(web, *urls, attempts=2, nameservers=(names.address,), allow=("127.0.0.1",))
    assert (dead_name.status, dead_name.retryable, dead_name.attempts) == ("dns_unknown", False, 1)
    assert dead_name.message == "nobody.test does not exist"
    assert (dead_server.status, dead_server.retryable, dead_server.attempts) == ("connect", True, 2)
    assert dead_server.message == "Connection refused"


def test_plain_http_on_a_tls_address_is_a_tls_failure(web: Web) -> None:
    (outcome,) = fetch_urls(web, f"https://{HOST}/image")
    assert (outcome.status, outcome.retryable, outcome.attempts) == ("tls", True, 1)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", "connect"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "bad_http"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 2**17 + b"\r\n\r\n", "bad_http"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "bad_http"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "bad_http"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello", "incomplete"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 5\r\n\r\nhello", "incomplete"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://[::1/x\r\nContent-Length: 0\r\n\r\n", "bad_url"),
        (b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", "http_302"),
        (b"HTTP/1.0 200 OK\r\n\r\nup to the end", "success"),
    ],
)
def test_broken_servers(web: Web, sent: bytes, status: str) -> None:
    with Raw(sent) as server:
        (outcome,) = fetch_urls(web, f"http://{HOST}/x.jpg", attempts=1, connect_to=server.connect_to)
    assert outcome.status == status


def test_opt_out_is_respected_unless_told_otherwise(web: Web) -> None:
    assert fetch(web, "/robots?tag=noai")[0] == Outcome(status="opt_out", http_status=200, attempts=1)
    assert fetch(web, "/robots?tag=all&tag=NoIndex")[0].status == "opt_out"
    assert fetch(web, "/robots?tag=otherbot:%20noai")[0].status == "success"
    assert fetch(web, "/robots?tag=noai", respect_opt_out=False)[0].status == "success"


def test_the_contact_is_part_of_the_user_agent() -> None:
    assert FetchConfig(contact="https://us.test").agent == (
        "Mozilla/5.0 (compatible; open-world-segmentation/0.1; +https://us.test)"
    )
    assert FetchConfig(user_agent="probe/1", contact="a@b.test").agent == "probe/1 (+a@b.test)"
