"""Where the three systems go with budget: mIoU at several times the demo's image-caption pairs.

    python benchmarks/learning_curve.py OUT [--times 1 3 10] [--seeds 1] [key=value ...]

Each of --times is a sweep of configs/demo.yaml in a folder of its own below OUT (pipelines/sweep.py: it goes on where it was
stopped, and trainings run side by side, one a core) with so many times the links, `filter.min_count`, and steps and warm-up of
each phase: the same passes over more pairs, the same entities. Learning rates stay. Leaves OUT/curve.md and OUT/curve.png.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import matplotlib.pyplot as plt

from owseg.evaluation.intervals import AVERAGE
from owseg.optim import OptimConfig
from pipelines.app.config import load
from pipelines.app.settings import Config
from pipelines.sweeps.report import JSON

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "configs" / "demo.yaml"
ENCODER = "clip"
SYSTEMS = ("tcl", "ovsegmentor", "vilseg")
ROWS = ("chance", "maskclip", *SYSTEMS)


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
    report = json.loads((out / JSON).read_text())
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


def draw(points: Sequence[Mapping[str, Point]], path: Path) -> None:
    """mIoU of each row over the budget with its interval; dashed, its oracle."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for number, name in enumerate(ROWS):
        row = [found[name] for found in points]
        times, miou = [point.times for point in row], [point.miou for point in row]
        bars = [[point.miou - point.interval[0] for point in row], [point.interval[1] - point.miou for point in row]]
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


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--times", type=int, nargs="+", default=[1, 3, 10])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("settings", nargs="*", help="settings of the pipeline, key=value")
    arguments = parser.parse_intermixed_args(argv)
    points = []
    for times in arguments.times:
        out = arguments.out / f"x{times}"
        sweep(out, times, arguments.seeds, arguments.settings)
        points.append(points_of(out, times))
    table = table_of(points)
    (arguments.out / "curve.md").write_text(table, encoding="utf-8")
    draw(points, arguments.out / "curve.png")
    print(table, end="")


if __name__ == "__main__":
    main(sys.argv[1:])
