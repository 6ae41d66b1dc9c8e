"""Peak memory of driver, workers and Ray's daemons with ever longer lists of links, nearly all of them dead."""

import argparse
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from download_run import BORDER_256, UNLIMITED, Run, met, ours, run_well, table, write_links, write_results
from image_server import ImageServer, serve_images

TARGET = 1.2
"""Largest growth that counts as flat, from the shortest list to the longest."""
LINKS_PER_IMAGE = 1000
"""One link in so many is good: a list on which not one is good counts as a mistake."""


@dataclass(frozen=True)
class Measured:
    links: int
    run: Run

    def peaks(self) -> dict[str, float]:
        """MiB by part of the tree; the parts' peaks need not fall into the same moment."""
        peaks = dict.fromkeys(("driver", "workers", "Ray"), 0.0)
        for name, size in self.run.peak_by_name.items():
            part = "driver" if name.startswith("python") else "workers" if name.startswith("ray::Map") else "Ray"
            peaks[part] += size / 2**20
        return peaks | {"whole tree": self.run.peak_pss / 2**20}


def url_of(number: int, server: ImageServer, *, refused: bool) -> str:
    """A link that gives nothing, but for one in `LINKS_PER_IMAGE`."""
    if number % LINKS_PER_IMAGE == 0:
        return server.image(number)
    if refused:
        return f"http://10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}/{number}.jpg"
    return server.url(f"/404/{number}.jpg", number)


def report(runs: Sequence[Measured]) -> Iterator[str]:
    """Peaks by size, and their growth since the smallest."""
    first, last = runs[0].peaks(), runs[-1].peaks()
    yield from table(
        ["links", "wall s", "links/s", "CPU s", *(f"{part} MiB" for part in first)],
        (
            [
                f"{one.links:,}",
                f"{one.run.seconds:.0f}",
                f"{one.links / one.run.seconds:,.0f}",
                f"{one.run.cpu_seconds:.0f}",
                *(f"{size:,.0f} ({size / max(first[part], 1):.2f}x)" for part, size in one.peaks().items()),
            ]
            for one in runs
        ),
    )
    yield ""
    for part in first:
        growth = last[part] / max(first[part], 1)
        sizes = f"{runs[0].links:,} to {runs[-1].links:,} links"
        yield f"{met(growth <= TARGET)}: {part} {growth:.2f}x from {sizes} (at most {TARGET}x)"


def memory(args: argparse.Namespace) -> None:
    """Measure and report; the results lie in `memory.json`."""
    work = args.work / "memory"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    settings = {"fetch": UNLIMITED, "image": BORDER_256, "shard_size": args.shard_size}
    runs = []
    for links in sorted(args.links):
        with serve_images(args.work / "images", hosts=args.hosts, images=args.images) as server:
            corpus, table_of_links = write_links(work, (url_of(n, server, refused=args.refused) for n in range(links)))
            table_of_links.unlink()
            runs.append(Measured(links, run_well(ours(corpus, work / "out", settings, cpus=args.cpus), limit=7200.0)))
        shutil.rmtree(work / "out")
        peaks = ", ".join(f"{part} {size:,.0f} MiB" for part, size in runs[-1].peaks().items())
        print(f"{links:,} links: {runs[-1].run.seconds:.0f} s, peaks: {peaks}", flush=True)
        write_results(work / "memory.json", settings=settings, runs=runs)
    print("", *report(runs), sep="\n")
