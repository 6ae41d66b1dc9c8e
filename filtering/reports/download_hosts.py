"""The hosts with most links, and with most lost ones, of any number of hosts in little memory: exact, in two passes.

The first pass counts links in a table of fixed size, in which hosts share places by their hash. No host has more links than its
place, so the hosts with most of them lie in the heaviest places, unless those are crowded: the second pass counts the hosts of
these places one by one, and `Top.exact` tells whether any other could have belonged among the first.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from filtering.images.reasons import FAILURES, failure_of
from filtering.url import NO_HOST

PLACES = 2**20
HEAVIEST = 4096
SHOWN = 50


@dataclass(frozen=True, kw_only=True)
class Top:
    """The first hosts by one measure. `exact`: none that is left out has more than the last of them."""

    hosts: list[dict[str, Any]]
    exact: bool


class HostTally:
    """Feed it every batch with `add`, then `choose`, then every batch again with `count`, then read it."""

    def __init__(self, places: int = PLACES, heaviest: int = HEAVIEST) -> None:
        self._links = np.zeros(places, np.int64)
        self._lost = np.zeros(places, np.int64)
        self._heaviest = heaviest
        self._chosen = np.zeros(places, bool)
        self._counts: dict[str, Counter[str]] = {}

    def add(self, hosts: pa.Array, lost: pa.Array) -> None:
        """Pass one: a batch's hosts, and whether each link is lost."""
        encoded = hosts.dictionary_encode()
        codes = encoded.indices.to_numpy()
        names = encoded.dictionary.to_pylist()
        places = self._places(names)
        np.add.at(self._links, places, np.bincount(codes, minlength=len(names)))
        gone = codes[lost.to_numpy(zero_copy_only=False)]
        np.add.at(self._lost, places, np.bincount(gone, minlength=len(names)))

    def choose(self) -> None:
        """End of pass one: the heaviest places, by links and by lost links, are those whose hosts are counted."""
        for table in (self._links, self._lost):
            order = np.argsort(-table, kind="stable")[: self._heaviest]
            self._chosen[order[table[order] > 0]] = True

    def count(self, hosts: pa.Array, statuses: pa.Array) -> None:
        """Pass two: the same batch's hosts again, and their statuses."""
        pairs = pa.table({"host": hosts, "status": statuses}).group_by(["host", "status"]).aggregate([([], "count_all")])
        names = pairs["host"].to_pylist()
        for chosen, name, status, number in zip(
            self._chosen[self._places(names)], names, pairs["status"].to_pylist(), pairs["count_all"].to_pylist(), strict=True
        ):
            if chosen:
                self._counts.setdefault(name, Counter())[status] += number

    @property
    def distinct(self) -> tuple[int, bool]:
        """How many hosts there are, and whether that is counted: else estimated from how full the table is (Whang 1990)."""
        if not (self._links[~self._chosen] > 0).any():
            return len(self._counts.keys() - {NO_HOST}), True
        empty = max(1, int((self._links == 0).sum()))
        return round(len(self._links) * float(np.log(len(self._links) / empty))), False

    def most(self, shown: int = SHOWN) -> Top:
        """The hosts with most links."""
        return self._top("links", self._links, shown)

    def worst(self, shown: int = SHOWN) -> Top:
        """The hosts with most lost links."""
        return self._top("lost", self._lost, shown)

    def _top(self, measure: str, table: np.ndarray, shown: int) -> Top:
        rows = [row for row in map(describe, self._counts, self._counts.values()) if row[measure]]
        rows.sort(key=lambda row: (-row[measure], row["host"]))
        unseen = int(table[~self._chosen].max(initial=0))
        least = rows[shown - 1][measure] if len(rows) >= shown else 0
        return Top(hosts=rows[:shown], exact=least >= unseen)

    def _places(self, names: list[str]) -> np.ndarray:
        digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
        return (np.frombuffer(digests, "<u8") % len(self._links)).astype(np.int64)


def describe(host: str, statuses: Mapping[str, int]) -> dict[str, Any]:
    """One host: its links, how many were obtained, lost by class, and the most common reason for which they were lost."""
    reasons = Counter({status: number for status, number in statuses.items() if failure_of(status)})
    lost: dict[str, int] = {
        failure: sum(number for status, number in reasons.items() if failure_of(status) == failure) for failure in FAILURES
    }
    reason = min(reasons, key=lambda status: (-reasons[status], status), default=None)
    return {
        "host": host,
        "links": sum(statuses.values()),
        "obtained": sum(statuses.values()) - reasons.total(),
        "lost": reasons.total(),
        **lost,
        "reason": reason,
    }
