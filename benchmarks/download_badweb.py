"""The web as it is: dead links, slow servers and bombs among the images, for us and for img2dataset; then a rerun of each."""

import argparse
import json
import random
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from download_run import (
    BORDER_256,
    UNLIMITED,
    Run,
    met,
    obtained,
    ours,
    run,
    table,
    theirs,
    write_links,
    write_results,
)
from image_server import ImageServer, kind_of, serve_images

MIX = {"image": 60, "404": 12, "403": 8, "dead": 6, "html": 4, "drip": 5, "heal": 3, "huge": 2}
"""Links in a hundred: good, 404, 403, dead names, no images, slow drips, a 503 that heals, 16000x16000 pixels."""
OBTAINABLE = ("image", "heal")
MAY_BE_ASKED_AGAIN = {"drip"}
TARGET = 0.99

THERE = {"timeout": 5, "retries": 2}
"""img2dataset's timeout is for each operation on a socket; it asks three times in all."""
HERE = {"timeout": 15.0, "connect_timeout": 5.0, "first_byte_timeout": 5.0, "attempts": 3}
"""Ours are for the whole image: three times five seconds, too."""


def mix(links: int, server: ImageServer, seed: int = 0) -> dict[str, str]:
    """So many URLs in the proportions of MIX, shuffled, and the kind of each."""
    counts = {kind: share * links // 100 for kind, share in MIX.items()}
    counts["image"] += links - sum(counts.values())
    kinds = [kind for kind, count in counts.items() for _ in range(count)]
    random.Random(seed).shuffle(kinds)
    return {_url(kind, number, server): kind for number, kind in enumerate(kinds)}


def _url(kind: str, number: int, server: ImageServer) -> str:
    if kind == "dead":
        return f"http://dead-{number}.invalid/{number}.jpg"
    return server.image(number, kind) if kind in OBTAINABLE else server.url(f"/{kind}/{number}.jpg", number)


@dataclass(frozen=True)
class Pass:
    """One run over the mix."""

    name: str
    run: Run
    images: int
    """Obtained so far, of those that can be."""
    strangers: int
    """Images that no link should have given."""
    requests: dict[str, int]
    """Sent in this pass, by kind of link, as the server counts them."""


def measure(name: str, command: Sequence[str], out: Path, server: ImageServer, good: set[str], limit: float) -> Pass:
    """One pass of a downloader over the mix, beside what its earlier pass left in `out`."""
    before = server.counts()
    done = run(command, limit=limit)
    kept = obtained(out).keys()
    asked = Counter[str]()
    for path, count in (server.counts() - before).items():
        asked[kind_of(path)] += count
    return Pass(name, done, len(kept & good), len(kept - good), dict(asked))


def report(passes: Sequence[Pass], good: int) -> Iterator[str]:
    """The passes in a table, and whether ours meets its targets. The first two are ours."""
    kinds = [kind for kind in MIX if kind != "dead"]
    yield from table(
        ["", "wall s", "CPU s", "peak MiB", "obtainable images", "requests", *kinds],
        (
            [
                one.name,
                f"{one.run.seconds:.1f}" + (" (hung)" if one.run.code is None else ""),
                f"{one.run.cpu_seconds:.0f}",
                f"{one.run.peak_pss / 2**20:,.0f}",
                f"{one.images:,} ({one.images / good:.2%})",
                f"{sum(one.requests.values()):,}",
                *(f"{one.requests.get(kind, 0):,}" for kind in kinds),
            ]
            for one in passes
        ),
    )
    first, again, *others = passes
    yield ""
    yield f"{met(first.images >= TARGET * good)}: {first.images / good:.2%} of what can be had obtained (at least {TARGET:.0%})"
    yield f"{met(first.run.code == 0 and again.run.code == 0)}: both runs of ours ended by themselves, without an error"
    yield f"{met(not first.strangers)}: {first.strangers} images from links that give none"
    asked = {kind for kind, count in again.requests.items() if count}
    yield f"{met(asked <= MAY_BE_ASKED_AGAIN)}: the rerun asked for {', '.join(sorted(asked)) or 'nothing'} alone"
    if others:
        yield f"wall time of ours / img2dataset: {first.run.seconds / others[0].run.seconds:.3f}"


def badweb(args: argparse.Namespace) -> None:
    """Measure and report; the results lie in `badweb.json`."""
    work = args.work / "badweb"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    options = {"processes_count": args.cpus, "thread_count": args.threads, "number_sample_per_shard": args.shard_size, **THERE}
    with serve_images(args.work / "images", hosts=args.hosts, images=args.images, drip_seconds=args.drip_seconds) as server:
        urls = mix(args.links, server)
        good = {url for url, kind in urls.items() if kind in OBTAINABLE}
        corpus, links = write_links(work, urls)
        # img2dataset asks the system's name server: it cannot be told otherwise, and a dead name is dead there too.
        fetch = UNLIMITED | HERE | {"nameservers": [server.nameserver]}
        settings = {"fetch": fetch, "image": BORDER_256, "shard_size": args.shard_size}
        commands: dict[str, Callable[[Path], list[str]]] = {
            "ours": lambda out: ours(corpus, out, settings, cpus=args.cpus),
            "img2dataset": lambda out: theirs(links, out, options, python=args.peer_python),
        }
        print(
            f"ours: {json.dumps(settings)}\nimg2dataset: {shlex.join(commands['img2dataset'](work / 'img2dataset'))}",
            flush=True,
        )
        passes = []
        for name, command in commands.items():
            server.reset()
            out = work / name
            for title in (name, f"{name}, rerun"):
                passes.append(measure(title, command(out), out, server, good, args.limit))
                last = passes[-1]
                print(f"{title}: {last.run.seconds:.1f} s, {last.images:,} images, requests {last.requests}", flush=True)
                if last.run.code:
                    print(last.run.output)
                write_results(
                    work / "badweb.json", mix=MIX, links=args.links, settings=settings, options=options, passes=passes
                )
    print("", *report(passes, len(good)), sep="\n")
