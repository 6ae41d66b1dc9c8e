"""The table of links: which URL shows which scene, what its caption is, and how the server answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Literal, Protocol, TypeVar

from miniature.junk import SHARES, Kind, junk_caption

K = TypeVar("K", bound=str)

HOSTS = 5
FAULTS: dict[str, int] = {
    "404": 26,
    "410": 10,
    "heal": 16,
    "drip": 2,
    "html": 12,
    "truncated": 10,
    "noai": 10,
    "redirect": 14,
}
"""Weights of the faults; `miniature.server` says what each does. Slow drips are few because each costs a whole timeout."""
_NO_PICTURE = ("404", "410", "html")


class Shares(Protocol):
    """The part of a world's configuration that decides the links."""

    @property
    def links(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def junk(self) -> float: ...
    @property
    def faults(self) -> float: ...


@dataclass(frozen=True)
class Link:
    """One row of the table."""

    number: int
    """Names the picture on its host."""
    scene: int
    """The scene behind the URL; junk shows the scene of some true link."""
    kind: Kind | Literal["true"]
    caption: str | None
    """None: the scene's own caption."""
    fault: dict[str, str | int] | None = None
    """How the server misbehaves, as in `faults.json`."""

    @property
    def path(self) -> str:
        return f"/{self.number:06d}.jpg"

    @property
    def url(self) -> str:
        return f"http://photos-{self.number % HOSTS + 1}.miniature.test{self.path}"

    @property
    def file(self) -> str | None:
        """The picture's path in the world's folder; None if the server has none to give."""
        if self.fault is None:
            return f"web{self.path}"
        if self.fault["fault"] in _NO_PICTURE:
            return None
        return f"web{self.fault.get('to', self.path)}"


def plan_links(config: Shares) -> list[Link]:
    """All rows in their order. Nothing is drawn for it."""
    rng = Random(f"{config.seed}/links")
    kinds = _allot(round(config.links * config.junk), SHARES)
    true = config.links - sum(kinds.values())
    rows: list[tuple[int, Kind | Literal["true"], str | None]] = [(scene, "true", None) for scene in range(true)]
    for kind, count in kinds.items():
        if kind != "duplicate":
            rows.extend(
                (rng.randrange(true), kind, None if kind == "mirror" else junk_caption(rng, kind)) for _ in range(count)
            )
    numbers = list(range(len(rows)))
    rng.shuffle(numbers)
    faults = _plan_faults(rng, numbers, config.faults)
    links = [Link(number, *row, fault=faults.get(number)) for number, row in zip(numbers, rows, strict=True)]
    doubled = rng.choices(links[:true], k=kinds.get("duplicate", 0))
    links.extend(Link(link.number, link.scene, "duplicate", link.caption, link.fault) for link in doubled)
    rng.shuffle(links)
    return links


def _plan_faults(rng: Random, numbers: list[int], share: float) -> dict[int, dict[str, str | int]]:
    counts = _allot(round(len(numbers) * share), FAULTS)
    unlucky = rng.sample(numbers, sum(counts.values()))
    faults: dict[int, dict[str, str | int]] = {}
    for name, count in counts.items():
        for _ in range(count):
            number = unlucky.pop()
            faults[number] = {"fault": name}
            if name == "heal":
                faults[number]["after"] = rng.randint(1, 2)
            elif name == "redirect":
                faults[number]["to"] = f"/moved/{number:06d}.jpg"
    return faults


def _allot(total: int, weights: Mapping[K, int]) -> dict[K, int]:
    """`total` dealt out by weight, whole numbers that add up (the largest remainders are rounded up)."""
    exact = {key: total * weight / sum(weights.values()) for key, weight in weights.items()}
    counts = {key: int(value) for key, value in exact.items()}
    for key in sorted(exact, key=lambda key: counts[key] - exact[key])[: total - sum(counts.values())]:
        counts[key] += 1
    return counts
