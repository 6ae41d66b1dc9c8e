"""Our downloader against img2dataset 1.47.0, and against the bad web, a long list of links, and kill -9.

    python benchmarks/download.py                 speed and badweb at full size
    python benchmarks/download.py speed           images per second over 10,000 good links
    python benchmarks/download.py badweb          10,000 links, 40 % of which fail in one way or another; then a rerun
    python benchmarks/download.py memory          peak memory with 10,000, 100,000 and 1,000,000 dead links
    python benchmarks/download.py kills           kill -9 at a random moment, ten times in a row

The web is image_server.py on loopback addresses, in a process of its own, whose processor time is separate. Each downloader
runs in fresh processes, whose whole tree is measured: Ray's daemons, workers and object store among them. `PART --help` tells
the options of a part. Drawn images, state and results (JSON) go into --work.
"""

import argparse
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from download_badweb import badweb
from download_kills import kills
from download_memory import memory
from download_speed import speed
from image_server import IMAGES

PARTS = {"speed": speed, "badweb": badweb, "memory": memory, "kills": kills}


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = main.add_subparsers(dest="part")
    options = {name: parts.add_parser(name, formatter_class=argparse.ArgumentDefaultsHelpFormatter) for name in PARTS}
    for name, part in options.items():
        part.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "download_benchmark")
        part.add_argument("--images", type=int, default=IMAGES, help="distinct JPEGs")
        part.add_argument("--hosts", type=int, default=64, help="loopback addresses that the links are spread over")
        part.add_argument("--cpus", type=int, default=2, help="processors for downloader and server together")
        if name in ("speed", "badweb", "kills"):
            part.add_argument("--links", type=int, default=3000 if name == "kills" else 10_000)
            part.add_argument("--shard-size", type=int, default=100 if name == "kills" else 1000)
        if name in ("speed", "badweb"):
            part.add_argument(
                "--peer-python",
                default=sys.executable,
                help="a Python with img2dataset 1.47.0; one without torch starts faster",
            )
    options["speed"].add_argument("--rounds", type=int, default=3)
    options["speed"].add_argument("--threads", type=int, default=0, help="of img2dataset, per process; 0: the best of a sweep")
    options["speed"].add_argument("--sweep-links", type=int, default=2000)
    options["badweb"].add_argument("--threads", type=int, default=256, help="of img2dataset, per process; its default is 256")
    options["badweb"].add_argument("--drip-seconds", type=float, default=60.0)
    options["badweb"].add_argument("--limit", type=float, default=3600.0, help="seconds after which a downloader hangs")
    options["memory"].add_argument("--links", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    options["memory"].add_argument("--refused", action="store_true", help="private addresses, refused unasked, instead of 404s")
    options["memory"].add_argument("--shard-size", type=int, default=1000)
    options["kills"].add_argument("--kills", type=int, default=10)
    options["kills"].add_argument("--concurrency", type=int, default=16, help="links in flight per worker")
    options["kills"].add_argument("--seed", type=int, default=0)
    options["kills"].add_argument("--local", action="store_true", help="the stage in one process without Ray, not the verb")
    return main


def main(argv: Sequence[str]) -> None:
    all_parts = [[name] for name in ("speed", "badweb")]
    for part in [list(argv)] if argv else all_parts:
        args = parser().parse_args(part)
        args.work = args.work.resolve()
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cpus])
        print(f"== python benchmarks/download.py {shlex.join(part)}", flush=True)
        PARTS[args.part](args)


if __name__ == "__main__":
    main(sys.argv[1:])
