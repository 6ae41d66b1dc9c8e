"""The simulation of a download against closed forms, and the page against what computes its tables."""

from dataclasses import replace

import numpy as np
import pytest
from scale import NODES, SOURCES, Download, Filter, written
from scale_simulation import WEBS, Answers, Limits, bound, links_on, shares_of, simulate, thinned

from helpers.paths import REPO

AT_ONCE = Answers(seconds=1e-6, refused=0.0, silent=0.0)
SLOW = Answers(seconds=2.0, refused=0.0, silent=0.0)
FREE = Limits(workers=1, concurrency=10_000, per_host=10_000, rate=0.0, images_per_core=1e9)


def seconds(hosts: list[int], limits: Limits, answers: Answers = AT_ONCE, shard: int = 10**6) -> float:
    """How long links on such hosts take."""
    return simulate(np.array(hosts), shard, limits, answers, np.zeros(max(hosts) + 1, bool)).seconds


def test_each_limit_alone() -> None:
    apart = list(range(3000))
    assert seconds([0] * 500, replace(FREE, rate=20.0)) == pytest.approx(499 / 20, abs=0.01)
    assert seconds([0, 1] * 500, replace(FREE, rate=20.0)) == pytest.approx(499 / 20, abs=0.01)
    assert seconds([0] * 3000, replace(FREE, per_host=8), SLOW) == pytest.approx(3000 * 2 / 8, rel=0.1)
    assert seconds(apart, replace(FREE, concurrency=40), SLOW) == pytest.approx(3000 * 2 / 40, rel=0.1)
    assert seconds(apart, replace(FREE, images_per_core=50.0)) == pytest.approx(3000 / 50, abs=0.1)
    assert seconds(apart, replace(FREE, images_per_core=50.0, workers=2)) == pytest.approx(3000 / 100, abs=0.1)
    assert seconds(apart, replace(FREE, images_per_core=50.0), replace(AT_ONCE, refused=1.0)) < 0.1


def test_a_shard_waits_for_one_before_it() -> None:
    """Two shards are in work: the third begins when the first is done, whose slow host asks for 10 s."""
    slow, fast = [0] * 101, list(range(1, 102))
    limits = replace(FREE, rate=10.0)
    assert seconds([*slow, *fast, *fast], limits, shard=101) == pytest.approx(10, abs=0.2)
    assert seconds([*slow, *slow, *fast, *slow], limits, shard=101) == pytest.approx(30.2, abs=0.2)


def test_a_silent_host_is_left_alone() -> None:
    answers = replace(AT_ONCE, patience=15.0)
    found = simulate(np.array([0] * 1000 + [1]), 10**6, replace(FREE, per_host=8), answers, np.array([True, False]))
    assert found.asked_in_vain == 8 + 8 + 1  # the ninth failure lets one more in, the tenth none
    assert found.seconds == pytest.approx(45)


@pytest.mark.parametrize("web", WEBS)
def test_the_largest_host_bounds_a_web(web: str) -> None:
    shares = shares_of(WEBS[web], 100_000)
    assert shares.sum() == pytest.approx(1)
    assert (shares[:10].sum(), shares[0]) == pytest.approx((WEBS[web][10], WEBS[web][1]))
    limits, answers = Limits(workers=4, rate=40.0, per_host=400), Answers(seconds=0.1, patience=0.5)
    host_of, silent = links_on(web, 80, 250, answers.silent, seed=3)
    found = simulate(host_of, 250, limits, answers, silent)
    allowed = bound(WEBS[web], limits, answers)
    assert min(allowed, key=lambda name: allowed[name]) == "host"
    assert found.rate == pytest.approx(allowed["host"], rel=0.2)
    assert simulate(host_of, 250, limits, answers, silent) == found
    of_many = thinned(replace(limits, workers=64))
    assert (of_many.workers, of_many.rate, of_many.per_host) == (16, 10.0, 100)


def test_more_nodes_help_where_they_can() -> None:
    for rows in SOURCES.values():
        times = [Filter(rows).seconds(nodes) for nodes in NODES]
        assert times == sorted(times, reverse=True)
        assert min(times) > Filter(rows).driver_seconds > 0
        assert Download(rows).images < Download(rows).links < rows
    few, many = (Download(10**9).seconds("CC3M", nodes, 1e6, 10**6) for nodes in (1, 4))
    assert few[0] == pytest.approx(4 * many[0])
    assert few[1] == many[1] != "host"


def test_the_page_has_the_tables_as_they_are_computed() -> None:
    page = (REPO / "docs" / "scale.md").read_text(encoding="utf-8")
    assert written(page) == page
    with pytest.raises(ValueError, match="filter time"):
        written(page.replace("<!-- filter time -->", ""))
