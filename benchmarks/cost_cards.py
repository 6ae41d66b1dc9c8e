"""What a run at the papers' sizes would take: hours and money of each stage and method, from what was measured and counted.

    python benchmarks/cost_cards.py [--gpus 16] [--mfu 0.35 0.1] [--rates gpu.json] [--gpu-hour 2.5] [--core-hour 0.04]

Three kinds of numbers, and each row says which it stands on. *Measured*: rates on 2 CPU cores, taken from docs/ (the script
asks that each is still written there), and, with --rates, images per second of `benchmarks/gpu.py --out gpu.json`. *Counted*:
operations of a training step (`benchmarks/paper_steps.py`), and what GPUs exchange (`benchmarks/scaling.py`). *Assumed*: all
arguments. What was neither is not in the tables: evaluation on GPUs, and that of other methods than TCL.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from paper_steps import PaperStep, count_all
from scaling import Machine, predict

from owseg.methods.ovsegmentor import OvSegmentorConfig
from owseg.methods.tcl import TclConfig
from owseg.methods.vilseg import VilSegConfig

REPO = Path(__file__).parents[1]
CONFIGS = {"tcl": TclConfig(), "ovsegmentor": OvSegmentorConfig(), "vilseg": VilSegConfig()}


class Measured(NamedTuple):
    """A figure of docs/, with the words around it there."""

    value: float
    file: str
    words: str


FILTER_CPU = Measured(1434, "filter_measured.md", "| 12,400,000 | **15.3 min** | 13,500 | 1,434 s |")
"""CPU-seconds for CC12M's size."""
FILTER_MINUTES = Measured(15.3, "filter_measured.md", "| 12,400,000 | **15.3 min** |")
"""On two cores."""
CORES = 2
IMAGE_RATE = Measured(616, "download_measured.md", "| this project | 355 | 413 | 616 | 4.5 |")
"""Images per second of two cores, of 256 px with a border, from a server on the same machine."""
PIXELS_256 = Measured(2.24, "download_measured.md", "| 256 border | 44.9 (43.6) dB | 0.990 (0.986) | 2.24 ms |")
PIXELS_512 = Measured(
    3.34, "download_measured.md", "| 512 keep_ratio (few are scaled) | 100 (42.8) dB | 1.000 (0.987) | 3.34 ms |"
)
"""Processor time of an image's pixels in ms: the recipes keep 512 px."""
LABEL_RATE = Measured(0.262, "performance.md", "| 171 | no | 0.128 | 0.262 |")
"""Images per second of TCL's evaluation with 171 classes on two cores."""
MEASURED = (FILTER_CPU, FILTER_MINUTES, IMAGE_RATE, PIXELS_256, PIXELS_512, LABEL_RATE)
LINKS = 12_400_000
"""Of CC12M."""
PAIRS = {"ovsegmentor": 4_000_000, "tcl": 14_167_919, "vilseg": 12_000_000}
"""That the papers trained on: CC4M, CC3M + CC12M, CC12M."""
IMAGES = 1449 * 2 + 5104 * 2 + 5000 * 2 + 500 + 2000
"""Of the eight benchmarks' validation sets, two of which share VOC's images, two Context's, and two COCO's."""


def check_measured() -> None:
    """Raise ValueError where docs/ does not say any more what a figure here was taken from."""
    for figure in MEASURED:
        if figure.words not in (REPO / "docs" / figure.file).read_text(encoding="utf-8"):
            raise ValueError(
                f"docs/{figure.file} no longer has '{figure.words}': take the new figure over into {Path(__file__).name}"
            )


class Card(NamedTuple):
    """A row."""

    what: str
    hours: float
    """Of wall time."""
    core_hours: float
    gpu_hours: float
    basis: str

    def money(self, options: argparse.Namespace) -> float:
        """At the assumed prices."""
        return self.core_hours * options.core_hour + self.gpu_hours * options.gpu_hour


def data_cards(pairs: int, options: argparse.Namespace) -> list[Card]:
    """Filtering CC12M and fetching as many links as give so many images."""
    asked = pairs / options.alive
    each = CORES / IMAGE_RATE.value + (PIXELS_512.value - PIXELS_256.value) / 1000
    core_hours = pairs * each / 3600
    network_hours = pairs * options.web_kb / (options.network * 1e6) / 3600
    return [
        Card(
            f"filter {LINKS / 1e6:.1f} M links",
            FILTER_MINUTES.value / 60,
            FILTER_MINUTES.value / 60 * CORES,
            0.0,
            "measured, on 2 cores; more cores were not",
        ),
        Card(
            f"fetch {asked / 1e6:.1f} M links, {pairs / 1e6:.1f} M images of 512 px, {options.cores} cores",
            max(core_hours / options.cores, network_hours),
            core_hours,
            0.0,
            f"processor time measured; an assumed network, {options.network:g} GB/s; dead and slow hosts are not in it",
        ),
    ]


def train_card(step: PaperStep, mfu: float, rates: dict[tuple[str, int], float], options: argparse.Namespace) -> Card:
    """A phase's training on all GPUs."""
    machine = Machine(
        tflops=options.tflops,
        mfu=mfu,
        gpus_per_node=options.gpus_per_node,
        inside=options.inside,
        between=options.between,
        per_hop=options.per_hop,
    )
    seconds = predict(step, CONFIGS[step.method], options.gpus, step.batch, machine, zero_stage=1)
    rate = rates.get((step.method, step.phase))
    compute = step.batch / options.gpus / rate if rate else seconds.compute
    hours = step.steps * (compute + seconds.gather + seconds.exchange) / 3600
    basis = (
        f"measured {rate:.0f} pairs/s a GPU" if rate else f"counted {step.flops / 1e12:.0f} TFLOP a step, assumed MFU {mfu:.0%}"
    )
    name = f"train phase {step.phase}: {step.steps:,} steps of {step.batch:,}, {options.gpus} GPUs"
    return Card(name, hours, 0.0, hours * options.gpus, basis)


def read_rates(path: Path | None) -> dict[tuple[str, int], float]:
    """Pairs per second of a GPU by method and phase, the best of all batch sizes, from the JSON of benchmarks/gpu.py."""
    if path is None:
        return {}
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["training"]
    found: dict[tuple[str, int], float] = {}
    for row in rows:
        if row["status"] == "measured":
            key = (row["method"], row["phase"])
            found[key] = max(found.get(key, 0.0), row["images_per_second"])
    return found


def print_card(method: str, steps: list[PaperStep], rates: dict[tuple[str, int], float], options: argparse.Namespace) -> None:
    """One method's table."""
    cards = data_cards(PAIRS[method], options)
    for step in steps:
        mfus = options.mfu[:1] if (method, step.phase) in rates else options.mfu
        cards += [train_card(step, mfu, rates, options) for mfu in mfus]
    if method == "tcl":
        core_hours = IMAGES / LABEL_RATE.value / 3600 * CORES
        name = f"score {IMAGES:,} images of the eight benchmarks, {options.cores} cores"
        cards.append(Card(name, core_hours / options.cores, core_hours, 0.0, "measured at 171 classes, the slowest"))
    print(f"\n**{method}**\n\n| stage | hours | core-hours | GPU-hours | money | stands on |\n|---|---|---|---|---|---|")
    for card in cards:
        print(
            f"| {card.what} | {card.hours:.1f} | {card.core_hours:.1f} | {card.gpu_hours:.0f} | {card.money(options):,.0f} "
            f"| {card.basis} |"
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=16)
    parser.add_argument("--tflops", type=float, default=312.0, help="peak of a GPU in bfloat16 (A100: 312)")
    parser.add_argument("--mfu", type=float, nargs="+", default=[0.35, 0.1], help="shares of the peak that training may reach")
    parser.add_argument("--rates", type=Path, help="JSON of benchmarks/gpu.py: measured rates take the MFU's place")
    parser.add_argument("--gpus-per-node", type=int, default=8)
    parser.add_argument("--inside", type=float, default=300.0, help="GB/s between the GPUs of a node")
    parser.add_argument("--between", type=float, default=10.0, help="GB/s between nodes (plain TCP on 100 Gbit/s: 10)")
    parser.add_argument("--per-hop", type=float, default=10.0, help="microseconds until a message arrives")
    parser.add_argument("--cores", type=int, default=64, help="that fetch and score at the same time")
    parser.add_argument("--web-kb", type=float, default=300.0, help="kB of an image as the web has it")
    parser.add_argument("--network", type=float, default=1.25, help="GB/s from the web (10 Gbit/s: 1.25)")
    parser.add_argument("--alive", type=float, default=0.6, help="share of the links that still have an image")
    parser.add_argument("--gpu-hour", type=float, default=2.5, help="money for an hour of a GPU")
    parser.add_argument("--core-hour", type=float, default=0.04, help="money for an hour of a CPU core")
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    check_measured()
    rates = read_rates(options.rates)
    print(
        f"Assumed: {options.tflops:g} TFLOP/s a GPU, {options.between:g} GB/s between nodes of {options.gpus_per_node}; "
        f"{options.alive:.0%} of the links alive, {options.web_kb:g} kB each; {options.gpu_hour:g} a GPU-hour, "
        f"{options.core_hour:g} a core-hour."
    )
    steps = count_all()
    for method in PAIRS:
        print_card(method, [step for step in steps if step.method == method], rates, options)


if __name__ == "__main__":
    main()
