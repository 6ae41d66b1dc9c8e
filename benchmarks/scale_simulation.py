"""A download from a simulated web: how many links a second get done, and what bounds them.

    python benchmarks/scale_simulation.py [--workers 16 64] [--shards 200] [--shard-size 10000] [--seed 0]

Links lie on hosts as in two real lists (`WEBS`). Shards of links come into work in their order, `SHARDS_AT_ONCE` for each
worker; a shard makes room for the next when all of its links are done. All workers together ask one host at most so many times
a second, over so many connections, and a link holds one of the workers' slots until its answer is there and, of an image, until
a core has resized it. As in `filtering.images.politeness`, links of a busy host wait without a slot, and a host that never
answers is left alone after some failures in a row (here: for good). Every draw comes from the seed.

More than `MOST_WORKERS` are simulated as so many of them, with a host's limits divided alike: the same hours, fewer events.

Printed beside it: `bound`, the closed forms that `scale.py` computes with. How real hosts wait and fail is not known: the waits
below are assumed or the settings' limits, the failures are shares that others reported of CC12M's links.
"""

import argparse
import heapq
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

MOST_WORKERS = 16
SHARDS_AT_ONCE = 2
"""As in `filtering.images.download`."""

POLITE = ((20.0, 8), (200.0, 200), (2000.0, 2000))
"""`fetch.per_host_rate` and `fetch.per_host`: the defaults, ten and a hundred times as much."""

Ints = npt.NDArray[np.int64]

WEBS: Mapping[str, Mapping[int, float]] = {
    "web alt-texts": {1: 0.0641, 2: 0.0837, 5: 0.1261, 10: 0.1672, 20: 0.2263, 50: 0.319, 100: 0.3962, 200: 0.4733},
    "CC3M": {1: 0.1376, 2: 0.2624, 5: 0.4033, 10: 0.4851, 20: 0.5733, 50: 0.6822, 100: 0.7276, 200: 0.7649},
}
"""Share of the links that lie on the so many largest hosts, by their names in the URLs: of img2dataset's 10,000 alt-texts of
the open web, and of CC3M's 15,833 validation links."""
TAIL_LINKS = 3
"""Links of each of the other hosts: four fifths of all hosts have one."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the client may do: `limits_of` the settings, and the measured rate of a core."""

    workers: int = 16
    concurrency: int = 256
    """Links in flight per worker."""
    per_host: float = 16
    """Connections to one host, over all workers."""
    rate: float = 20.0
    """Requests a second to one host, over all workers."""
    images_per_core: float = 308.0
    """Images a second that a worker's core fetches, resizes and writes: 616 on two cores (docs/download_measured.md)."""
    host_failures: int = 10


def limits_of(workers: int, rate: float = 20.0, per_host: int = 8) -> Limits:
    """What workers may do together by `fetch.per_host_rate` and `fetch.per_host`; each has a connection at least."""
    return Limits(workers=workers, rate=rate, per_host=workers * max(1, per_host // workers))


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What becomes of links."""

    seconds: float = 0.5
    """Mean time to a whole answer, exponentially distributed; an assumption."""
    refused: float = 0.30
    """Share of links that a live host refuses at once (404, 403, no image, no such name): of CC12M's in 2026."""
    silent: float = 0.06
    """Share of hosts that never answer: CC12M's time-outs and broken TLS."""
    patience: float = 15.0
    """Seconds that a link of a silent host holds a slot: `fetch.attempts` times `fetch.connect_timeout`."""


@dataclass(frozen=True)
class Outcome:
    """What a simulation gave."""

    seconds: float
    links: int
    rate: float
    """Links a second between the first third of the links and nine tenths of them."""
    asked_in_vain: int
    """Requests to hosts that never answer."""
    slots_used: float
    """Mean share of slots in use."""


def shares_of(web: Mapping[int, float], links: int) -> npt.NDArray[np.float64]:
    """Share of the links on each host, largest first: the listed ones, shared alike between two listed ranks, then the tail."""
    ranks = [0, *web]
    heads = [0.0, *web.values()]
    shares = [
        (heads[at] - heads[at - 1]) / (ranks[at] - ranks[at - 1])
        for at in range(1, len(ranks))
        for _ in range(ranks[at] - ranks[at - 1])
    ]
    tail = max(1, round(links * (1 - heads[-1]) / TAIL_LINKS))
    return np.array([*shares, *[(1 - heads[-1]) / tail] * tail])


def bound(web: Mapping[int, float], limits: Limits, answers: Answers) -> dict[str, float]:
    """Links a second that each limit allows by itself.

    A host's connections allow per_host / seconds; the largest host allows the less of that and `rate`, and all other links come
    with its share. Slots allow their number by the mean time that a link holds one. Large silent hosts are left alone after a
    few failures; what lies on small ones holds a slot until the time is up.
    """
    in_vain = answers.silent * (1 - max(web.values()))
    held = (1 - in_vain) * answers.seconds + in_vain * answers.patience
    return {
        "host": min(limits.rate, limits.per_host / answers.seconds) / web[1],
        "cores": limits.workers * limits.images_per_core / (1 - answers.refused),
        "slots": limits.workers * limits.concurrency / held,
    }


def simulate(
    host_of: Ints, shard_size: int, limits: Limits, answers: Answers, silent: npt.NDArray[np.bool_], seed: int = 0
) -> Outcome:
    """Work off links in order.

    Args:
        host_of: the host of every link.
        shard_size: so many links in a row are a shard.
        silent: for each host whether it never answers.
    """
    return _Simulation(host_of, shard_size, limits, answers, silent, seed).run()


_TURN, _ANSWER, _DONE = range(3)


class _Simulation:
    """Events in the order of their times: a host's rate allows the next request, an answer is there, an image is written.

    Links are numbered as they are asked for.
    """

    def __init__(
        self, host_of: Ints, shard_size: int, limits: Limits, answers: Answers, silent: npt.NDArray[np.bool_], seed: int
    ) -> None:
        hosts = len(silent)
        draw = np.random.default_rng(seed)
        self._limits, self._answers = limits, answers
        self._silent = silent.tolist()
        self._shards = [host_of[start : start + shard_size].tolist() for start in range(0, len(host_of), shard_size)]
        self._left = [len(shard) for shard in self._shards]
        self._waits = draw.exponential(answers.seconds, len(host_of)).tolist()
        self._is_image = (draw.random(len(host_of)) >= answers.refused).tolist()
        self._waiting: list[deque[int]] = [deque() for _ in range(hosts)]
        self._running = [0] * hosts
        self._failed = [0] * hosts
        self._free_at = [0.0] * hosts
        self._timed = [False] * hosts
        self._slots = limits.workers * limits.concurrency
        self._free = self._slots
        self._ready: dict[int, None] = {}
        self._core_at = 0.0
        self._seconds_per_image = 1 / (limits.workers * limits.images_per_core)
        self._events: list[tuple[float, int, int, int]] = []
        self._next = 0
        self._since: list[float] = []
        self._shard_of: list[int] = []
        self._done: list[float] = []
        self._in_vain, self._busy = 0, 0.0

    def run(self) -> Outcome:
        for _ in range(self._limits.workers * SHARDS_AT_ONCE):
            self._take_shard(0.0)
        while self._events:
            now, what, host, link = heapq.heappop(self._events)
            if what == _ANSWER and self._is_image[link] and not self._silent[host]:
                self._core_at = max(now, self._core_at) + self._seconds_per_image
                heapq.heappush(self._events, (self._core_at, _DONE, host, link))
                continue
            if what == _TURN:
                self._timed[host] = False
            else:
                self._leave(now, host, link)
            self._serve(now, host)
        done = np.array(self._done)
        first, last = len(done) // 3, len(done) * 9 // 10
        seconds = float(done[-1])
        rate = (last - first) / max(done[last] - done[first], 1e-9)
        return Outcome(seconds, len(done), float(rate), self._in_vain, self._busy / (seconds * self._slots))

    def _leave(self, now: float, host: int, link: int) -> None:
        """A link is done with, and its slot free."""
        self._running[host] -= 1
        self._free += 1
        self._busy += now - self._since[link]
        self._failed[host] += self._silent[host]
        self._finish(now, self._shard_of[link])
        while self._free and self._ready:
            ready = next(iter(self._ready))
            del self._ready[ready]
            self._serve(now, ready)

    def _take_shard(self, now: float) -> None:
        if self._next == len(self._shards):
            return
        shard = self._next
        self._next += 1
        for host in self._shards[shard]:
            self._waiting[host].append(shard)
        for host in dict.fromkeys(self._shards[shard]):
            self._serve(now, host)

    def _finish(self, now: float, shard: int) -> None:
        self._done.append(now)
        self._left[shard] -= 1
        if not self._left[shard]:
            self._take_shard(now)

    def _serve(self, now: float, host: int) -> None:
        """Let in what the host's limits and the free slots allow."""
        waiting, limits = self._waiting[host], self._limits
        while waiting:
            if self._failed[host] >= limits.host_failures:
                self._finish(now, waiting.popleft())
            elif self._running[host] >= limits.per_host:
                return
            elif self._free_at[host] > now:
                if not self._timed[host]:
                    self._timed[host] = True
                    heapq.heappush(self._events, (self._free_at[host], _TURN, host, 0))
                return
            elif not self._free:
                self._ready[host] = None
                return
            else:
                self._start(now, host, waiting.popleft())

    def _start(self, now: float, host: int, shard: int) -> None:
        self._free -= 1
        self._running[host] += 1
        self._free_at[host] = now + (1 / self._limits.rate if self._limits.rate else 0.0)
        link = len(self._since)
        self._since.append(now)
        self._shard_of.append(shard)
        self._in_vain += self._silent[host]
        wait = self._answers.patience if self._silent[host] else self._waits[link]
        heapq.heappush(self._events, (now + wait, _ANSWER, host, link))


def links_on(web: str, shards: int, shard_size: int, silent_share: float, seed: int) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """The hosts of so many links in random order, and which hosts never answer; the largest ten always do."""
    draw = np.random.default_rng([seed, 1])
    shares = shares_of(WEBS[web], shards * shard_size)
    silent = draw.random(len(shares)) < silent_share
    silent[:10] = False
    return draw.choice(len(shares), shards * shard_size, p=shares / shares.sum()), silent


def thinned(limits: Limits) -> Limits:
    """The same with at most `MOST_WORKERS`: what they share of a host shrinks with them."""
    factor = min(1.0, MOST_WORKERS / limits.workers)
    return replace(limits, workers=round(limits.workers * factor), rate=limits.rate * factor, per_host=limits.per_host * factor)


def rows(workers: Sequence[int], polite: Sequence[tuple[float, int]], shards: int, size: int, seed: int) -> list[str]:
    """A line of the table for each web, limits of a host (rate, connections) and number of workers."""
    answers = Answers()
    lines = [
        "| links lie as in | `per_host_rate`, `per_host` | workers | simulated links/s | closed form | which limit | slots |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, web in WEBS.items():
        host_of, silent = links_on(name, shards, size, answers.silent, seed)
        for rate, connections in polite:
            for number in workers:
                limits = limits_of(number, rate, connections)
                thin = thinned(limits)
                found = simulate(host_of, size, thin, answers, silent, seed)
                allowed = bound(web, limits, answers)
                least = min(allowed, key=lambda one: allowed[one])
                lines.append(
                    f"| {name} | {rate:g}, {connections} | {number} | {found.rate * number / thin.workers:,.0f} "
                    f"| {allowed[least]:,.0f} | {least} | {found.slots_used:.0%} |"
                )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--shards", type=int, default=200)
    parser.add_argument("--shard-size", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began = time.process_time()
    print(*rows(args.workers, POLITE, args.shards, args.shard_size, args.seed), sep="\n")
    print(f"{time.process_time() - began:.0f} s of processor time")


if __name__ == "__main__":
    main()
