"""What Ray costs a run on one machine while it does nothing: its start, and its daemons' processor time and memory.

    python benchmarks/idle_ray.py [--seconds 60]

Starts Ray as the verbs do, once for all stages of a run, waits until it is quiet, and reads /proc for so many seconds.
"""

import argparse
import os
import time
from pathlib import Path
from typing import NamedTuple

from cluster.session import SessionConfig, close_session, ensure_session

QUIET_SECONDS = 15.0
TICKS = os.sysconf("SC_CLK_TCK")


class Process(NamedTuple):
    name: str
    seconds: float
    """Of a processor, user and system."""
    bytes: int
    """Proportional set size."""


def daemons() -> dict[int, Process]:
    """The processes below this one, by id."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            parents[int(folder.name)] = (int(fields[1]), (int(fields[11]) + int(fields[12])) / TICKS)
        except (FileNotFoundError, ProcessLookupError):
            continue
    below, found = {os.getpid()}, {}
    for pid in sorted(parents):  # children have higher numbers, but for a wrap: then they are missed
        parent, seconds = parents[pid]
        if parent in below:
            below.add(pid)
            found[pid] = Process(name_of(pid), seconds, memory_of(pid))
    return found


def name_of(pid: int) -> str:
    """What a process is, in a word or two."""
    words = (Path("/proc") / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    script = next((Path(word).stem for word in words if word.endswith(".py")), Path(words[0]).name)
    return script.removeprefix("ray::")


def memory_of(pid: int) -> int:
    """Its proportional set size in bytes; 0 where it has ended."""
    try:
        lines = (Path("/proc") / str(pid) / "smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    began = time.perf_counter()
    ensure_session(SessionConfig(num_cpus=2))
    print(f"start: {time.perf_counter() - began:.1f} s")
    time.sleep(QUIET_SECONDS)
    before = daemons()
    time.sleep(options.seconds)
    after = daemons()
    print("| process | share of a core | memory |\n|---|---|---|")
    shares = {pid: (one.seconds - before[pid].seconds) / options.seconds for pid, one in after.items() if pid in before}
    for pid, share in sorted(shares.items(), key=lambda item: -item[1]):
        print(f"| {after[pid].name} | {100 * share:.2f} % | {after[pid].bytes / 2**20:.0f} MiB |")
    print(f"| all | {100 * sum(shares.values()):.2f} % | {sum(after[pid].bytes for pid in shares) / 2**20:.0f} MiB |")
    close_session()


if __name__ == "__main__":
    main()
