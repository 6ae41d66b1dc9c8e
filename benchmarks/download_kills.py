"""kill -9 at random moments of a download, then the end: every image once, no tar cut short, few requests sent twice."""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import killpg
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow.parquet as pq
from download_run import BORDER_256, ROOT, UNLIMITED, images_in_tars, met, ours, plain_environment, write_links, write_results
from image_server import ImageServer, kind_of, serve_images

LINKS_PER_404 = 10
WORKERS = 2
SECONDS_BETWEEN_LOOKS = 0.01
END_OF_TAR = bytes(1024)


@dataclass(frozen=True)
class Kill:
    """One kill: so many seconds and requests after the start of the process."""

    seconds: float
    requests: int


@dataclass(frozen=True)
class Toll:
    """What the kills came to."""

    kills: list[Kill]
    problems: list[str]
    expected: int
    """Images that can be had."""
    missing: int
    twice: int
    strangers: int
    """Images that nobody asked for."""
    requests: int
    repeated: int
    """Requests beyond the first of a link."""
    in_flight: int
    """Links that can have been in flight at the kills, all together."""

    def report(self) -> Iterator[str]:
        yield "requests between start and kill: " + ", ".join(f"{kill.requests}" for kill in self.kills)
        yield (
            f"{met(not self.missing + self.twice + self.strangers)}: of {self.expected:,} obtainable images {self.missing} are "
            f"missing, {self.twice} there more than once; {self.strangers} that nobody asked for"
        )
        yield f"{met(not self.problems)}: after each kill and in the end every tar was whole and had its table"
        yield from self.problems
        yield (
            f"{met(self.repeated <= self.in_flight)}: {self.repeated} of {self.requests:,} requests repeated; "
            f"at most {self.in_flight} links were in flight at the {len(self.kills)} kills"
        )


@dataclass(frozen=True)
class Victim:
    """The downloader that is killed."""

    command: Sequence[str]
    environment: Mapping[str, str]
    corpus: Path
    """The links that it is to download, in `kept/*.parquet`."""
    out: Path
    """Its shards."""
    in_flight: int
    """Links that it may have in flight at once."""


def problems_of(out: Path) -> Iterator[str]:
    """What is wrong with the shards in a folder as it is now: nothing may be, at any time."""
    for path in sorted(out.glob("[0-9]*.tar")):
        try:
            with tarfile.open(path) as tar:
                files = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        except tarfile.ReadError as error:
            yield f"{path.name}: {error}"
            continue
        if not path.read_bytes().endswith(END_OF_TAR):
            yield f"{path.name}: the end is missing"
        images = sum(name.endswith(".jpg") for name in files)
        statuses = path.with_suffix(".parquet")
        if not statuses.exists():
            yield f"{path.name}: {statuses.name} is missing"
        elif images != (told := pq.read_table(statuses, columns=["status"])["status"].to_pylist().count("success")):
            yield f"{path.name}: holds {images} images, {statuses.name} tells {told}"


def kill_in_the_middle(victim: Victim, server: ImageServer, requests: int, pause: float) -> Kill | None:
    """Start the victim, and kill its process group `pause` seconds after its request number `requests`.

    None if it ended before, as it should.
    """
    began, before = time.monotonic(), server.total().requests
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            victim.command, cwd=ROOT, env=victim.environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while process.poll() is None and server.total().requests < before + requests:
                time.sleep(SECONDS_BETWEEN_LOOKS)
            time.sleep(pause)
            if process.poll() is None:
                return Kill(time.monotonic() - began, server.total().requests - before)
        finally:
            if process.poll() is None:
                killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.returncode:
            log.seek(0)
            sys.exit(f"ended with code {process.returncode} before it was killed:\n{log.read()[-4000:]}")
    return None


def take_toll(victim: Victim, server: ImageServer, *, links: int, times: int, seed: int) -> Toll:
    """Kill the victim so many times, let it end, and count."""
    dice = random.Random(seed)
    kills, problems = list[Kill](), list[str]()
    for number in range(times):
        left = links - len(server.counts())
        requests = dice.randint(1, max(1, 2 * left // (times - number + 1)))
        kill = kill_in_the_middle(victim, server, requests, dice.uniform(0.0, 0.1))
        if kill is None:
            print(f"the downloader ended before kill {number + 1}", flush=True)
            break
        kills.append(kill)
        found = [f"after kill {number + 1}: {problem}" for problem in problems_of(victim.out)]
        problems += found
        tars = len(list(victim.out.glob("[0-9]*.tar")))
        when = f"kill {number + 1} after {kill.seconds:.1f} s, {kill.requests} requests"
        print(f"{when}: {tars} tars, {len(found)} problems", flush=True)
    done = subprocess.run(victim.command, cwd=ROOT, env=victim.environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"ended with code {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return count_up(victim, server, kills, [*problems, *(f"in the end: {problem}" for problem in problems_of(victim.out))])


def count_up(victim: Victim, server: ImageServer, kills: list[Kill], problems: list[str]) -> Toll:
    """Compare what is there with what was to be had."""
    rows = [row for path in sorted((victim.corpus / "kept").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    expected = {row["key"] for row in rows if kind_of(urlsplit(row["url"]).path) == "image"}
    images = Counter(name.removesuffix(".jpg") for _, name in images_in_tars(victim.out))
    counts = server.counts()
    return Toll(
        kills=kills,
        problems=problems,
        expected=len(expected),
        missing=len(expected - images.keys()),
        twice=sum(count > 1 for count in images.values()),
        strangers=len(images.keys() - expected),
        requests=counts.total(),
        repeated=counts.total() - len(counts),
        in_flight=victim.in_flight * len(kills),
    )


def links_of(links: int, server: ImageServer) -> list[str]:
    """Images, and one 404 in so many."""
    return [server.image(n) if n % LINKS_PER_404 else server.url(f"/404/{n}.jpg", n) for n in range(links)]


def kills(args: argparse.Namespace) -> None:
    """Kill, count and report; the results lie in `kills.json`."""
    work = args.work / "kills"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    fetch = UNLIMITED | {"concurrency": args.concurrency}
    with (
        tempfile.TemporaryDirectory(prefix="ray-") as ray_dir,
        serve_images(args.work / "images", hosts=args.hosts, images=args.images) as server,
    ):
        environment = plain_environment() | {"RAY_TMPDIR": ray_dir}
        corpus, links = write_links(work, links_of(args.links, server))
        if args.local:
            out = work / "out"
            command = ours(corpus, out, {"fetch": fetch, "image": BORDER_256, "shard_size": args.shard_size}, cpus=0)
            victim = Victim(command, environment, corpus, out, args.concurrency)
        else:
            run_dir = work / "run"
            command = verb("download", links, run_dir, fetch, args)
            victim = Victim(command, environment, run_dir / "corpus", run_dir / "shards", args.concurrency * WORKERS)
            subprocess.run(verb("filter", links, run_dir, fetch, args), cwd=ROOT, env=environment, check=True)
        toll = take_toll(victim, server, links=args.links, times=args.kills, seed=args.seed)
    write_results(work / "kills.json", links=args.links, fetch=fetch, toll=toll)
    print("", *toll.report(), sep="\n")


def verb(name: str, links: Path, run_dir: Path, fetch: Mapping[str, object], args: argparse.Namespace) -> list[str]:
    """A verb with settings that keep every link and download it with `fetch`."""
    settings = {
        "run_dir": run_dir,
        "tracking.enabled": "false",
        "session.num_cpus": args.cpus,
        "session.data_workers": WORKERS,
        "filter.source.path": links,
        "filter.rules": "[]",
        "download.shard_size": args.shard_size,
        **{f"download.fetch.{key}": json.dumps(value) for key, value in fetch.items()},
        **{f"download.image.{key}": json.dumps(value) for key, value in BORDER_256.items()},
    }
    return [sys.executable, f"pipelines/{name}.py", *(f"{key}={value}" for key, value in settings.items())]
