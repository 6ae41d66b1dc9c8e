"""Time, memory and disk of the filter verb on tables of links of growing size.

    python benchmarks/curation_scale.py LINKS.tsv --rows 1000000 8000000 12400000 --work DIR
        [--config configs/cc4m.yaml] [--cpus 2] [--set filter.min_count=10 ...]

For each size the first rows of LINKS.tsv (see captions.py) go through `pipelines/filter.py`, a process of its own that may use
`--cpus` processors. Every two seconds the whole tree of processes is looked at, Ray's daemons and workers among them: the sum
of their proportional set sizes (PSS), in which the object store counts once; the processor time they used; and the disk that
the run's folder and Ray's temporary folder take. Stages and their times are in the verb's progress lines. Prints a table
and whether the targets are met, and writes DIR/curation_scale.json and .png. A run's folder is deleted once it is measured.
"""

import argparse
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from memory import ProcessTree, Usage

ROOT = Path(__file__).resolve().parents[1]
MARK = "CURATION_SCALE"
SECONDS_BETWEEN_SAMPLES = 2.0

CC12M_ROWS, MINUTES = 12_400_000, 20.0
MEMORY_RATIO, DISK_RATIO = 1.2, 2.5

_PROGRESS = re.compile(r"(?P<label>[^:]+): (?P<done>\d+)/(?P<total>\d+) \w+, .*?(?P<elapsed>[\d:]+) so far")


@dataclass
class Stage:
    """A stage as the verb's progress lines tell it; seconds since the start of the run."""

    name: str
    began: float
    ended: float


@dataclass(frozen=True)
class Sample:
    """One look at the run."""

    second: float
    usage: Usage
    run_disk: int
    ray_disk: int


@dataclass(frozen=True)
class Measured:
    """One size."""

    rows: int
    input_bytes: int
    seconds: float
    final_disk: int
    result: Mapping[str, Any]
    stages: list[Stage]
    samples: list[Sample]

    @property
    def peak(self) -> Sample:
        """The sample with the largest PSS."""
        return max(self.samples, key=lambda sample: sample.usage.pss)

    @property
    def peak_disk(self) -> int:
        return max(sample.run_disk + sample.ray_disk for sample in self.samples)

    @property
    def cpu_seconds(self) -> float:
        return self.samples[-1].usage.cpu_seconds


def measure(links: Path, rows: int, work: Path, command: Sequence[str]) -> Measured:
    """Run the verb on `links`, which holds `rows` rows. Exits with the verb's words where it fails."""
    run_dir = work / f"{rows}"
    shutil.rmtree(run_dir, ignore_errors=True)
    mark = secrets.token_hex(8)
    with tempfile.TemporaryDirectory(prefix="ray-") as ray_dir, (work / f"{rows}.log").open("w", encoding="utf-8") as log:
        environment = os.environ | {MARK: mark, "RAY_TMPDIR": ray_dir, "PYTHONUNBUFFERED": "1"}
        began = time.monotonic()
        verb = subprocess.Popen(
            [*command, f"filter.source.path={links}", f"run_dir={run_dir}"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        stages: list[Stage] = []
        reader = threading.Thread(target=follow, args=(verb.stdout, log, stages, began))
        reader.start()
        tree = ProcessTree(verb.pid, f"{MARK}={mark}")
        samples = []
        try:
            while verb.poll() is None:
                samples.append(Sample(time.monotonic() - began, tree.usage(), disk(run_dir), disk(Path(ray_dir))))
                with suppress(subprocess.TimeoutExpired):
                    verb.wait(SECONDS_BETWEEN_SAMPLES)
        finally:
            verb.kill()  # where it has not ended by itself
        seconds = time.monotonic() - began
        reader.join()
    if verb.returncode:
        said = Path(log.name).read_text(encoding="utf-8")[-2000:]
        sys.exit(f"the filter ended with code {verb.returncode} on {rows} rows:\n{said}")
    result = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))["stages"]["filter"]
    measured = Measured(rows, links.stat().st_size, seconds, disk(run_dir), result, stages, samples)
    shutil.rmtree(run_dir)
    return measured


def follow(lines: Iterator[str], log: Any, stages: list[Stage], began: float) -> None:
    """Copy what the verb says into the log, and note its stages."""
    for line in lines:
        log.write(line)
        log.flush()
        if match := _PROGRESS.match(line):
            now = time.monotonic() - began
            elapsed = 0
            for part in match["elapsed"].split(":"):
                elapsed = 60 * elapsed + int(part)
            if not stages or stages[-1].name != match["label"]:
                stages.append(Stage(match["label"], max(now - elapsed, 0.0), now))
            stages[-1].ended = now


def disk(folder: Path) -> int:
    """Bytes that the folder takes on disk."""
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            with suppress(OSError):  # files come and go
                total += 512 * os.lstat(os.path.join(place, name)).st_blocks
    return total


@contextmanager
def first_rows(links: Path, rows: int, work: Path) -> Iterator[Path]:
    """A file with the first `rows` lines; `links` itself where it has no more."""
    with links.open("rb") as file:
        end = sum(map(len, islice(file, rows)))
        if end == links.stat().st_size:
            yield links
            return
        part = work / f"{rows}.tsv"
        file.seek(0)
        with part.open("wb") as out:
            out.writelines(islice(file, rows))
    try:
        yield part
    finally:
        part.unlink()


def table(runs: Sequence[Measured]) -> Iterator[str]:
    """The figures, a line per size; then its stages."""
    least = min(runs, key=lambda run: run.rows).peak.usage.pss
    yield "      rows     wall  rows/s   CPU s  peak PSS        input  peak disk        final disk    kept"
    for run in runs:
        usage = run.peak.usage
        yield (
            f"{run.rows:10,} {run.seconds / 60:5.1f} min {run.rows / run.seconds:7,.0f} {run.cpu_seconds:7,.0f} "
            f"{usage.pss / 2**20:6,.0f} MiB {usage.pss / least:4.2f}x {run.input_bytes / 1e6:6,.0f} MB "
            f"{run.peak_disk / 1e6:7,.0f} MB {run.peak_disk / run.input_bytes:4.2f}x {run.final_disk / 1e6:7,.0f} MB "
            f"{run.final_disk / run.input_bytes:4.2f}x {run.result['kept'] / run.result['links']:5.1%}"
        )
    for run in runs:
        yield f"{run.rows:,} rows, corpus {run.result['digest'][:16]}:"
        for stage in stages_and_gaps(run):
            inside = [sample for sample in run.samples if stage.began <= sample.second <= stage.ended]
            if inside:
                cpu = inside[-1].usage.cpu_seconds - inside[0].usage.cpu_seconds
                peak = max(sample.usage.pss for sample in inside)
                each = 1e6 * (stage.ended - stage.began) / run.rows
                yield (
                    f"  {stage.name:12} {stage.began:6.0f} to {stage.ended:6.0f} s, {each:7.1f} us a row, "
                    f"{cpu:7.0f} CPU s, peak {peak / 2**20:6,.0f} MiB"
                )
        names = sorted(run.peak.usage.by_name.items(), key=lambda item: -item[1])
        yield "  at the peak: " + ", ".join(f"{name} {size / 2**20:.0f}" for name, size in names[:6]) + " MiB"


def stages_and_gaps(run: Measured) -> Iterator[Stage]:
    """The stages in their order; what lies between them, or before and after, is called "-"."""
    at = 0.0
    for stage in [*run.stages, Stage("-", run.seconds, run.seconds)]:
        if stage.began - at > SECONDS_BETWEEN_SAMPLES:
            yield Stage("-", at, stage.began)
        if stage.ended > stage.began:
            yield stage
        at = stage.ended


def verdict(runs: Sequence[Measured]) -> Iterator[str]:
    """Each target, and whether it is met."""
    first, last = min(runs, key=lambda run: run.rows), max(runs, key=lambda run: run.rows)
    minutes = CC12M_ROWS * last.seconds / last.rows / 60
    how = "" if last.rows >= CC12M_ROWS else f", if all go as fast as the {last.rows:,}"
    yield f"{_met(minutes <= MINUTES)}: {CC12M_ROWS:,} rows in {minutes:.1f} min{how} (at most {MINUTES:.0f})"
    for run in runs:
        if run is not first:
            ratio = run.peak.usage.pss / first.peak.usage.pss
            grown = f"memory {ratio:.2f}x from {first.rows:,} to {run.rows:,} rows"
            yield f"{_met(ratio <= MEMORY_RATIO)}: {grown} (at most {MEMORY_RATIO}x)"
    ratio = max(run.peak_disk / run.input_bytes for run in runs)
    yield f"{_met(ratio <= DISK_RATIO)}: disk at most {ratio:.2f}x the input, which is not counted (at most {DISK_RATIO}x)"


def _met(yes: bool) -> str:
    return "met" if yes else "NOT MET"


def draw(runs: Sequence[Measured], out: Path) -> None:
    """PSS over time, a panel per size, with the stages shaded."""
    figure = Figure(figsize=(9, 2.4 * len(runs) + 0.6), layout="constrained")
    top = 1.1 * max(run.peak.usage.pss for run in runs) / 2**20
    for axes, run in zip(figure.subplots(len(runs), squeeze=False)[:, 0], runs, strict=True):
        minutes = [sample.second / 60 for sample in run.samples]
        axes.plot(minutes, [sample.usage.pss / 2**20 for sample in run.samples], label="PSS")
        axes.plot(minutes, [sample.usage.anonymous / 2**20 for sample in run.samples], label="of it anonymous", linewidth=1)
        for number, stage in enumerate(run.stages):
            axes.axvspan(stage.began / 60, stage.ended / 60, color=f"C{number + 2}", alpha=0.15)
            axes.text(stage.began / 60, 0.97 * top, f" {stage.name}", va="top", fontsize=8)
        axes.set(xlim=(0, run.seconds / 60), ylim=(0, top), ylabel="MiB", title=f"{run.rows:,} rows")
    axes.set_xlabel("minutes")
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(out, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("links", type=Path)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "cc4m.yaml")
    parser.add_argument("--rows", type=int, nargs="+", required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs and the figures")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="more settings of the verb")
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cpus])
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    verb = [
        sys.executable,
        "pipelines/filter.py",
        "--config",
        str(args.config.resolve()),
        f"session.num_cpus={args.cpus}",
        *args.set,
    ]
    runs = []
    for rows in sorted(args.rows):
        with first_rows(args.links.resolve(), rows, work) as part:
            runs.append(measure(part, rows, work, verb))
        print(
            f"{rows:,} rows: {runs[-1].seconds / 60:.1f} min, peak PSS {runs[-1].peak.usage.pss / 2**20:,.0f} MiB", flush=True
        )
        (work / "curation_scale.json").write_text(json.dumps([asdict(run) for run in runs], indent=1) + "\n", encoding="utf-8")
        draw(runs, work / "curation_scale.png")
    print(*table(runs), *verdict(runs), sep="\n")


if __name__ == "__main__":
    main()
