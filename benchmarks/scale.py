"""What large sources take, before starting: the tables of docs/scale.md, computed from rates measured on small ones.

    python benchmarks/scale.py [--write docs/scale.md]

Every measured figure stands in `MEASURED` with where it was measured; everything else is arithmetic on it, or a setting of the
software. `--write` puts the tables into the page, between its "<!-- NAME -->" and "<!-- end -->".
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scale_simulation import POLITE, WEBS, Answers, bound, limits_of

from filtering.captions.index import MERGED_AT_ONCE
from filtering.captions.read_pass import ROWS_PER_SHARD
from filtering.partition import BLOCK_ROWS, FAN_OUT

CORES = 16
"""Cores of a node."""
NODES = (1, 4, 16, 64)
SOURCES = {"12.4 M": 12_400_000, "400 M": 400_000_000, "5 B": 5_000_000_000}
IMAGES_PER_SHARD = 10_000
"""`download.shard_size`; the number of shards is the next power of two."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Rates and sizes of one core or one row. Seconds are those of a core of the machine of docs/filter_measured.md."""

    filter_rows_per_core: float = 6_750
    """12.4 M rows in 15.3 minutes on two cores (docs/filter_measured.md)."""
    kept: float = 0.65
    """Share of 3.1 M links of that table that the filter keeps."""
    mentions: float = 2.07
    """Kept entities of a kept caption."""
    driver_per_shard: float = 0.0132
    """Seconds in the driver: tallies 8.9 ms, statistics 3.5 ms, pointers 0.8 ms (3.1 M rows in 62 shards, a loaded machine)."""
    driver_per_mention: float = 4.5e-7
    """Seconds in the driver: the last merge of the index (the same corpus)."""
    driver_per_kept: float = 2.1e-7
    """Seconds in the driver: leakage of two benchmarks (the same corpus); it is counted twice."""
    driver_bytes_per_shard: float = 7_100
    """Markers of two passes, as Python holds them."""
    input_bytes: float = 213
    """Of a row, as TSV."""
    build_bytes: float = 169
    """What the passes leave in `_build`, per row of 3.1 M."""
    spread_bytes: float = 114
    """What the second step of the shuffle adds: as much as the first."""
    corpus_bytes: float = 136
    """Kept and dropped rows and the index, per row."""
    files_per_shard: float = 9
    """Pointer; marked, tally, marker; kept, dropped, index, statistics, marker."""
    cut_per_link: float = 1.17e-5
    """Seconds in the driver: kept links are dealt out to the download's shards (2 M links, a loaded machine)."""
    alive: float = 0.62
    """Share of CC12M's links that still give an image, as others reported in 2025."""
    image_bytes: float = 127_000
    """80 COCO photos at `image_size` 512, q95."""
    small_image_bytes: float = 44_000
    """The same at 256."""
    start_samples: float = 580_000
    """Samples a second that the first training on a machine reads in indexes: 4 M in 6.9 s (docs/performance.md)."""
    sample_bytes: float = 115
    """Of a sample in a machine's memory, for all of its processes (docs/performance.md)."""


MEASURED = Measured()


@dataclass(frozen=True)
class Filter:
    """The filter on so many rows."""

    rows: int
    measured: Measured = MEASURED

    @property
    def shards(self) -> int:
        return -(-self.rows // ROWS_PER_SHARD)

    @property
    def blocks(self) -> int:
        """Blocks of the reading pass, and as many of the second step of the shuffle where there is one."""
        return -(-self.rows // BLOCK_ROWS) * (2 if self.shards > FAN_OUT else 1)

    @property
    def files(self) -> int:
        """Pointer, block and marker of each block; what a shard leaves; merged parts of the index."""
        merged, parts = 0, self.shards
        while parts > MERGED_AT_ONCE:
            parts = -(-parts // MERGED_AT_ONCE)
            merged += parts
        return round(3 * self.blocks + self.measured.files_per_shard * self.shards + 3 * merged)

    @property
    def driver_seconds(self) -> float:
        """What no further node makes faster."""
        told = self.measured
        kept = self.rows * told.kept
        per_kept = told.mentions * told.driver_per_mention + 2 * told.driver_per_kept
        return self.shards * told.driver_per_shard + kept * per_kept

    def seconds(self, nodes: int) -> float:
        return self.rows / (nodes * CORES * self.measured.filter_rows_per_core) + self.driver_seconds


@dataclass(frozen=True)
class Download:
    """The download of the kept links of so many rows."""

    rows: int
    measured: Measured = MEASURED

    @property
    def links(self) -> int:
        return round(self.rows * self.measured.kept)

    @property
    def images(self) -> int:
        return round(self.links * self.measured.alive)

    @property
    def shards(self) -> int:
        return 1 << (-(-self.links // IMAGES_PER_SHARD) - 1).bit_length()

    @property
    def cut_seconds(self) -> float:
        """Before the first request, in the driver alone."""
        return self.links * self.measured.cut_per_link

    def seconds(self, web: str, nodes: int, rate: float, per_host: int) -> tuple[float, str]:
        """How long after the cut, and which limit says so."""
        allowed = bound(WEBS[web], limits_of(nodes * CORES, rate, per_host), Answers())
        least = min(allowed, key=lambda name: allowed[name])
        return self.links / allowed[least], least


# ---- tables


def filter_time() -> str:
    """Wall time of the filter by nodes."""
    head = ["rows", *(f"{nodes} nodes" if nodes > 1 else "1 node" for nodes in NODES), "of it the driver alone"]
    return _table(
        head,
        [
            [name, *(_duration(Filter(rows).seconds(nodes)) for nodes in NODES), _duration(Filter(rows).driver_seconds)]
            for name, rows in SOURCES.items()
        ],
    )


def filter_size() -> str:
    """What the filter leaves, and what its driver holds."""
    lines = []
    for name, rows in SOURCES.items():
        plan = Filter(rows)
        told = plan.measured
        build = told.build_bytes + (told.spread_bytes if plan.shards > FAN_OUT else 0)
        sizes = (told.input_bytes, build, told.corpus_bytes)
        driver = plan.shards * told.driver_bytes_per_shard
        lines.append([name, f"{plan.shards:,}", f"{plan.files:,}", *(_bytes(rows * size) for size in sizes), _bytes(driver)])
    return _table(["rows", "shards", "objects", "input", "`_build`", "corpus", "driver, above its start"], lines)


def download_time() -> str:
    """Wall time of the download by nodes, and what bounds it."""
    lines = []
    for name, rows in SOURCES.items():
        for web in WEBS:
            for rate, per_host in POLITE:
                found = [Download(rows).seconds(web, nodes, rate, per_host) for nodes in NODES]
                lines.append([name, web, f"{rate:g}, {per_host}", *(f"{_duration(took)} ({why})" for took, why in found)])
    nodes = [f"{nodes} nodes" if nodes > 1 else "1 node" for nodes in NODES]
    return _table(["rows", "links lie as in", "`per_host_rate`, `per_host`", *nodes], lines)


def download_size() -> str:
    """What the download asks for and leaves."""
    lines = []
    for name, rows in SOURCES.items():
        plan = Download(rows)
        sizes = (plan.measured.small_image_bytes, plan.measured.image_bytes)
        objects = 4 * plan.shards  # tar, statuses, stats, marker
        numbers = (plan.links, plan.images, plan.shards, objects)
        stored = (_bytes(plan.images * size) for size in sizes)
        lines.append([name, *(f"{number:,}" for number in numbers), *stored, _duration(plan.cut_seconds)])
    head = [
        "rows",
        "links asked for",
        "images",
        "shards",
        "objects",
        "256 px",
        "512 px",
        "cut into shards, by the driver alone",
    ]
    return _table(head, lines)


def training_start() -> str:
    """What a rank does and holds before its first step."""
    lines = []
    for name, rows in SOURCES.items():
        images = Download(rows).images
        told = MEASURED
        lines.append([name, f"{images:,}", _duration(images / told.start_samples), _bytes(images * told.sample_bytes)])
    return _table(["rows", "samples", "first start on a machine, from indexes", "memory of a machine"], lines)


TABLES: Mapping[str, Callable[[], str]] = {
    "filter time": filter_time,
    "filter size": filter_size,
    "download time": download_time,
    "download size": download_size,
    "training start": training_start,
}


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *lines)).replace("| --- ", "|---")


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:,.0f} {unit}" if seconds >= 10 * size else f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _bytes(number: float) -> str:
    for unit, size in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= size:
            return f"{number / size:,.0f} {unit}" if number >= 10 * size else f"{number / size:.1f} {unit}"
    return f"{number / 1e3:.0f} kB"


def written(page: str) -> str:
    """A page with its tables as they are computed now. ValueError where one has no place in it."""
    for name, table in TABLES.items():
        before, begin, rest = page.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("\n<!-- end -->")
        if not end:
            raise ValueError(f"the page has no place for the table {name!r}")
        page = f"{before}{begin}{table()}{end}{after}"
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="the page whose tables are to be written anew")
    args = parser.parse_args()
    if args.write:
        args.write.write_text(written(args.write.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(*(f"{name}:\n{table()}\n" for name, table in TABLES.items()), sep="\n")


if __name__ == "__main__":
    main()
