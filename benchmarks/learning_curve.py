"""Where the three systems go with budget: mIoU at several times the demo's image-caption pairs.

    python benchmarks/learning_curve.py OUT [--times 1,3,10] [--seeds 1] [key=value ...]

Each of --times is a sweep of configs/demo.yaml in a folder of its own below OUT (pipelines/sweep.py: it resumes where it was
stopped, and trainings run side by side, one a core) with so many times the links, `filter.min_count`, and steps and warm-up of
each phase: the same passes over more pairs, the same entities. Learning rates stay. Leaves OUT/curve.md and OUT/curve.png.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import matplotlib.pyplot as plt

from owseg.evaluation.intervals import AVERAGE
from owseg.optim import OptimConfig
from pipelines.app.config import ConfigError, load
from pipelines.app.outcome import exit_code
from pipelines.app.settings import Config
from pipelines.sweeps.report import JSON

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "configs" / "demo.yaml"
ENCODER = "clip"
SYSTEMS = ("tcl", "ovsegmentor", "vilseg")
ROWS = ("chance", "maskclip", *SYSTEMS)
OWN_KEYS = ("run_dir", "methods", "evaluate.oracle", "evaluate.bootstrap", "evaluate.datasets")


@dataclass(frozen=True)
class Point:
    """A row's averages over the eight sets at one budget, in percent: means over seeds, and the interval of the mIoU."""

    times: int
    miou: float
    interval: tuple[float, float]
    oracle: float
    pairs: float
    cpu_seconds: float
    """Of its own training, without the encoder's."""


def scaled(config: Config, times: int) -> Iterator[str]:
    """The settings that make the demo so many times as large, as `key=value`."""
    yield f"miniature.links={config.miniature.links * times}"
    yield f"filter.min_count={config.filter.min_count * times}"
    for name in (ENCODER, *SYSTEMS):
        method = getattr(config.method_settings, name)
        warmups: dict[str, OptimConfig] = {"optim": method.optim}
        for number, phase in enumerate(method.phases):
            yield f"method_settings.{name}.phases.{number}.steps={phase.steps * times}"
            if phase.optim is not None:
                warmups[f"phases.{number}.optim"] = phase.optim
        for key, optim in warmups.items():
            yield f"method_settings.{name}.{key}.warmup={optim.warmup * times}"


def sweep(out: Path, times: int, seeds: int, settings: Sequence[str]) -> None:
    """Train and score everything at one budget. Raises SystemExit where the sweep fails, with its exit code."""
    command = [sys.executable, str(ROOT / "pipelines" / "sweep.py"), "--config", str(DEMO), "--seeds", str(seeds)]
    command += [f"run_dir={out}", f"methods=[{','.join(ROWS)}]", "train.workers=1", "train.threads=1"]
    code = subprocess.run([*command, *scaled(load(Config, DEMO, []), times), *settings], check=False).returncode
    if code:
        raise SystemExit(code)


def points_of(out: Path, times: int) -> dict[str, Point]:
    """What a finished sweep came to, by row."""
    report = json.loads((out / JSON).read_text(encoding="utf-8"))
    oracles = {name: fmean(cell["averages"][name]["oracle_mIoU"] for cell in report["cells"]) for name in ROWS}
    return {
        row["method"]: Point(
            times,
            row["mIoU"][AVERAGE]["mean"],
            tuple(row["intervals"][AVERAGE]),
            oracles[row["method"]],
            row["costs"].get("pairs", 0),
            row["costs"].get("cpu_seconds", 0),
        )
        for row in report["rows"]
    }


def table_of(points: Sequence[Mapping[str, Point]]) -> str:
    """A line for each row, in Markdown."""
    lines = ["| row | " + " | ".join(f"{found[ROWS[0]].times}x" for found in points) + " |", "|---" * (len(points) + 1) + "|"]
    for name in ROWS:
        cells = (
            f"{point.miou:.1f} ({point.interval[0]:.1f}..{point.interval[1]:.1f}), oracle {point.oracle:.1f}, "
            f"{point.pairs:,.0f} pairs in {point.cpu_seconds:,.0f} CPU-s"
            for point in (found[name] for found in points)
        )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _ends(point: Point) -> tuple[float, float]:
    """How far the interval reaches down and up from the score."""
    return point.miou - point.interval[0], point.interval[1] - point.miou


def draw(points: Sequence[Mapping[str, Point]], path: Path) -> None:
    """mIoU of each row over the budget with its interval; dashed, its oracle."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for number, name in enumerate(ROWS):
        row = [found[name] for found in points]
        times, miou = [point.times for point in row], [point.miou for point in row]
        # A score that hardly depends on the images, such as chance's, may lie outside its interval (docs/results.md).
        bars = [[max(0.0, end) for end in ends] for ends in zip(*(_ends(point) for point in row), strict=True)]
        axes.errorbar(times, miou, yerr=bars, marker="o", capsize=3, color=f"C{number}", label=name)
        if name in SYSTEMS:
            axes.plot(times, [point.oracle for point in row], linestyle="--", color=f"C{number}", alpha=0.5)
    axes.set_xscale("log")
    axes.set_xticks([found[ROWS[0]].times for found in points], [f"{found[ROWS[0]].times}x" for found in points])
    axes.minorticks_off()
    axes.set_xlabel("image-caption pairs and steps, times the demo's")
    axes.set_ylabel("average mIoU (%); dashed: named by the labels")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def budgets(text: str) -> list[int]:
    """Whole numbers in rising order. Raises ConfigError for anything else."""
    parts = text.split(",")
    if not all(re.fullmatch("[1-9][0-9]{0,3}", part) for part in parts) or len(set(parts)) < len(parts):
        raise ConfigError(f"--times: '{text}' is no list of different whole numbers from 1 on, such as 1,3,10")
    return sorted(map(int, parts))


def check_settings(settings: Sequence[str]) -> None:
    """Raise ConfigError for a setting that the curve itself decides or needs."""
    for setting in settings:
        if setting.split("=")[0] in OWN_KEYS:
            raise ConfigError(f"{setting.split('=')[0]}: is the curve's own; leave it out")


def work(argv: Sequence[str]) -> None:
    """The command line at the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--times", default="1,3,10")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of the pipeline")
    arguments = parser.parse_intermixed_args(argv)
    times = budgets(arguments.times)
    check_settings(arguments.settings)
    points = []
    for one in times:
        out = arguments.out / f"x{one}"
        sweep(out, one, arguments.seeds, arguments.settings)
        points.append(points_of(out, one))
    table = table_of(points)
    (arguments.out / "curve.md").write_text(table, encoding="utf-8")
    draw(points, arguments.out / "curve.png")
    print(table, end="")


if __name__ == "__main__":
    sys.exit(exit_code(lambda: work(sys.argv[1:])))
