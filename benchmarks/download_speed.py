"""Images per second over good links: ours against img2dataset, in alternating rounds, each in processes of its own."""

import argparse
import json
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Self

from download_run import (
    BORDER_256,
    UNLIMITED,
    digest_of_images,
    images_in_tars,
    last_written,
    met,
    obtained,
    ours,
    result_of,
    run_well,
    spread,
    table,
    theirs,
    theirs_on_ray,
    write_links,
    write_results,
)
from image_server import ImageServer, serve_images

TARGET = 1.5
SWEEP = (8, 16, 32, 64)
FAST, SAME_PIXELS, PEER, PEER_ON_RAY = "ours", "ours, img2dataset's pixels", "img2dataset", "img2dataset on Ray"

Command = Callable[[Path], list[str]]
"""The command of a downloader that writes into the folder given."""


@dataclass(frozen=True)
class Measured:
    """One downloader in one round."""

    name: str
    images: int
    content: str
    """Digest of the links obtained, their images' original hashes and sizes, and the sizes kept."""
    seconds: float
    """Of the whole command."""
    ray_seconds: float
    """Of these until Ray had started; told for ours alone."""
    steady_seconds: float
    """From the first request to the last file of a shard."""
    cpu_seconds: float
    server_cpu_seconds: float
    peak_pss: int

    def figures(self) -> dict[str, float]:
        """What is compared, by its title in the table."""
        return {
            "images/s": self.images / self.seconds,
            "less Ray's start": self.images / (self.seconds - self.ray_seconds),
            "steady": self.images / self.steady_seconds,
            "CPU ms/image": 1e3 * self.cpu_seconds / self.images,
            "peak MiB": self.peak_pss / 2**20,
            "server's ms": 1e3 * self.server_cpu_seconds / self.images,
        }


def measure(name: str, command: Command, server: ImageServer, out: Path) -> Measured:
    """Run one downloader; its output is deleted once it is measured."""
    shutil.rmtree(out, ignore_errors=True)
    server.reset()
    before = server.total()
    done = run_well(command(out))
    after = server.total()
    kept = obtained(out)
    images = sum(1 for _ in images_in_tars(out))
    assert images == len(kept), f"{name}: {images} images in the tars, {len(kept)} in the tables"
    measured = Measured(
        name=name,
        images=images,
        content=digest_of_images(kept),
        seconds=done.seconds,
        ray_seconds=result_of(done)["ray_seconds"] if name in (FAST, SAME_PIXELS) else 0.0,
        steady_seconds=last_written(out) - after.first,
        cpu_seconds=done.cpu_seconds,
        server_cpu_seconds=after.cpu_seconds - before.cpu_seconds,
        peak_pss=done.peak_pss,
    )
    shutil.rmtree(out)
    return measured


def best_threads(counts: Sequence[int], there: Callable[[int], Command], server: ImageServer, out: Path) -> int:
    """The thread count with which img2dataset is fastest, its start not counted."""
    speed = {}
    for threads in counts:
        speed[threads] = measure(PEER, there(threads), server, out).figures()["steady"]
        print(f"img2dataset with {threads} threads a process: {speed[threads]:.0f} images/s steady", flush=True)
    return max(speed, key=lambda threads: speed[threads])


def report(runs: Sequence[Measured]) -> Iterator[str]:
    """The medians of each downloader; then the ratios to img2dataset in the same round, with their spread."""
    by_name = {name: [run for run in runs if run.name == name] for name in dict.fromkeys(run.name for run in runs)}
    titles = list(runs[0].figures())
    yield from table(
        ["median of the rounds", "images", *titles],
        (
            [name, f"{mine[0].images:,}", *(f"{median(run.figures()[title] for run in mine):,.1f}" for title in titles)]
            for name, mine in by_name.items()
        ),
    )
    yield ""
    ratios = {
        (name, peer): {
            title: [
                mine.figures()[title] / his.figures()[title] for mine, his in zip(by_name[name], by_name[peer], strict=True)
            ]
            for title in titles[:-1]
        }
        for name in (FAST, SAME_PIXELS)
        for peer in (PEER, PEER_ON_RAY)
    }
    yield from table(
        ["ratio: median (range)", *titles[:-1]],
        ([f"{name} / {peer}", *map(spread, values.values())] for (name, peer), values in ratios.items()),
    )
    yield ""
    same = len({run.content for run in runs}) == 1
    yield f"{met(same)}: all obtained the same images, of the same original bytes and sizes, kept at the same sizes"
    for title, span in (("images/s", "over the whole command"), ("steady", "from the first request to the last shard")):
        reached = median(ratios[FAST, PEER][title])
        yield f"{met(reached >= TARGET)}: {reached:.2f}x the images/s of img2dataset {span} (at least {TARGET}x)"


def settings_of(pixels: str, shard_size: int) -> dict[str, Any]:
    """Our settings: img2dataset's image, and no limit per host."""
    return {"fetch": UNLIMITED, "image": {**BORDER_256, "pixels": pixels}, "shard_size": shard_size}


def there(links: Path, threads: int, args: argparse.Namespace, *, on_ray: bool = False) -> Command:
    """img2dataset's command."""
    options = {"processes_count": args.cpus, "thread_count": threads, "number_sample_per_shard": args.shard_size}
    if on_ray:
        return lambda out: theirs_on_ray(links, out, options, python=args.peer_python, cpus=args.cpus)
    return lambda out: theirs(links, out, options, python=args.peer_python)


def here(corpus: Path, pixels: str, args: argparse.Namespace) -> Command:
    """Our command."""
    return lambda out: ours(corpus, out, settings_of(pixels, args.shard_size), cpus=args.cpus)


@dataclass
class State:
    """What a benchmark has behind it: an interrupted one of the same settings resumes from there."""

    path: Path
    settings: Mapping[str, Any]
    threads: int
    runs: list[Measured]

    @classmethod
    def read(cls, path: Path, settings: Mapping[str, Any], threads: int, *, turns: int) -> Self:
        """The state of an interrupted benchmark; a new one where there is none, or where all `turns` are done."""
        with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            state = json.loads(path.read_text(encoding="utf-8"))
            if state["settings"] == settings and len(state["runs"]) < turns:
                return cls(path, settings, state["threads"], [Measured(**run) for run in state["runs"]])
        return cls(path, settings, threads, [])

    def write(self) -> None:
        write_results(self.path, settings=self.settings, threads=self.threads, runs=self.runs)


def speed(args: argparse.Namespace) -> None:
    """Measure and report; the results so far lie in `speed.json`."""
    work = args.work / "speed"
    out = work / "out"
    asked = {name: getattr(args, name) for name in ("links", "images", "hosts", "cpus", "shard_size", "threads", "peer_python")}
    work.mkdir(parents=True, exist_ok=True)
    names = (PEER, FAST, PEER_ON_RAY, SAME_PIXELS)
    starts = [round_ % len(names) for round_ in range(args.rounds)]
    turns = [name for start in starts for name in names[start:] + names[:start]]
    state = State.read(work / "speed.json", asked, args.threads, turns=len(turns))
    with serve_images(args.work / "images", hosts=args.hosts, images=args.images) as server:
        urls = [server.image(number) for number in range(args.links)]
        corpus, links = write_links(work, urls)
        if not state.threads:
            _, few = write_links(work / "sweep", urls[: args.sweep_links])
            state.threads = best_threads(SWEEP, lambda threads: there(few, threads, args), server, out)
            state.write()
        commands = {
            PEER: there(links, state.threads, args),
            FAST: here(corpus, "fast", args),
            PEER_ON_RAY: there(links, state.threads, args, on_ray=True),
            SAME_PIXELS: here(corpus, "img2dataset", args),
        }
        print(f"img2dataset: {shlex.join(commands[PEER](out))}\nours: {json.dumps(settings_of('fast', args.shard_size))}")
        print(
            f"{args.links:,} links over {args.images} JPEGs at {args.hosts} loopback addresses, {args.cpus} CPUs for all",
            flush=True,
        )
        for turn, name in list(enumerate(turns))[len(state.runs) :]:
            state.runs.append(measure(name, commands[name], server, out))
            state.write()
            figures = ", ".join(f"{title} {value:.1f}" for title, value in state.runs[-1].figures().items())
            print(f"round {1 + turn // len(names)}: {name}: {figures}", flush=True)
    print("", *report(state.runs), sep="\n")
