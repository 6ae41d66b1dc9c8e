"""Hosts in the download's report: counted right, uncertain where it says so, inert."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from filtering.reports.download_hosts import HostTally
from filtering.url import hosts_of
from helpers.download_reports import crawl, report


def test_hosts_as_counted_by_hand(tmp_path: Path) -> None:
    rows = crawl(1, 4000, 900)
    content = report(tmp_path, rows)["hosts"]
    by_host: dict[str, Counter[str]] = {}
    for row in rows:
        by_host.setdefault(row["url"].split("/")[2], Counter())[row["status"]] += 1
    assert (content["distinct"], content["distinct_counted"]) == (len(by_host), True)
    most = sorted(by_host, key=lambda host: (-by_host[host].total(), host))[:50]
    assert [row["host"] for row in content["most"]["hosts"]] == most
    worst = sorted(by_host, key=lambda host: (by_host[host]["success"] - by_host[host].total(), host))[:50]
    assert [row["host"] for row in content["worst"]["hosts"]] == worst
    assert content["most"]["exact"]
    assert content["worst"]["exact"]
    for row in content["most"]["hosts"]:
        statuses = by_host[row["host"]]
        obtained = statuses.pop("success", 0)
        assert (row["links"], row["obtained"], row["lost"]) == (obtained + statuses.total(), obtained, statuses.total())
        assert row["transient"] == statuses["timeout"] + statuses["http_503"] + statuses["http_599"]
        assert row["reason"] is None or statuses[row["reason"]] == max(statuses.values())


@pytest.mark.parametrize("seed", range(20))
def test_first_hosts_are_right_whenever_they_are_said_to_be(seed: int) -> None:
    """With few places, hosts crowd: the table may be unsure, and is never wrong about being sure."""
    random = np.random.default_rng(seed)
    names = [f"h{at}" for at in np.minimum((random.pareto(0.7, 3000) * 2).astype(int), 500)]
    statuses = random.choice(["success", "http_404"], 3000).tolist()
    tally = tallied(names, statuses, places=2 ** int(random.integers(5, 12)), heaviest=int(random.integers(10, 60)))
    lost = Counter(name for name, status in zip(names, statuses, strict=True) if status != "success")
    for measure, top, counts in (("links", tally.most(10), Counter(names)), ("lost", tally.worst(10), lost)):
        assert all(row[measure] == counts[row["host"]] for row in top.hosts)  # what is shown is always exactly counted
        if top.exact:
            assert [row[measure] for row in top.hosts] == sorted(counts.values(), reverse=True)[:10]


def tallied(names: list[str], statuses: list[str], **size: int) -> HostTally:
    tally = HostTally(**size)
    hosts, all_statuses = pa.array(names), pa.array(statuses)
    for start in range(0, len(names), 100):
        tally.add(hosts[start : start + 100], pa.array([status != "success" for status in statuses[start : start + 100]]))
    tally.choose()
    for start in range(0, len(names), 100):
        tally.count(hosts[start : start + 100], all_statuses[start : start + 100])
    return tally


def test_links_without_an_address_are_of_no_host() -> None:
    tally = tallied(["a", "b", ""], ["success", "http_404", "bad_url"])
    assert tally.distinct == (2, True)
    assert [row["host"] for row in tally.most().hosts] == ["", "a", "b"]


def test_a_crowd_of_hosts_is_said_to_be_uncertain() -> None:
    crowd = [f"h{at}" for at in range(4000)]
    unsure = tallied(crowd, ["http_404"] * 4000, places=256, heaviest=4).most(10)
    assert not unsure.exact
    sure = tallied(crowd + ["big"] * 50, ["http_404"] * 4050, places=2**16, heaviest=64)
    assert sure.most(1).exact
    assert sure.most(1).hosts[0]["host"] == "big"
    distinct, counted = sure.distinct
    assert not counted
    assert distinct == pytest.approx(4001, rel=0.02)


def test_hosts_of_odd_addresses() -> None:
    urls = {
        "http://A.Example.COM.:80/x?y=1": "a.example.com",
        "https://user:word@b.example": "b.example",
        "http://me@mail.example@c.example/": "c.example",
        "http://[::1]:8080/x": "[::1]",
        "HTTPS://d.example#x": "d.example",
        " http://e.example/?q=http://f.example": "e.example",
        "http://bücher.example/a": "bücher.example",
        "http:///nothing": "",
        "file:///etc/passwd": "",
        "me@mail.example": "",
        "": "",
        None: "",
    }
    assert hosts_of(pa.array(list(urls), pa.string())).to_pylist() == list(urls.values())
