"""Memory and time of a training step whose batch is encoded whole, and of the same step in micro-batches.

    python benchmarks/micro_batches.py [--methods tcl ovsegmentor vilseg] [--batch 32] [--micro-batch 8]

Each method at its paper's size (ViT-B/16, 224 px, random weights) in its last phase: losses and backward of random pixels with
real captions, on a CPU. The two take turns, each turn in a process of its own; ratios are medians over rounds, with the lowest
and highest. Peaks are of resident memory, above what the process had before the step.
"""

import argparse
import multiprocessing as mp
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from paper_steps import METHODS, pairs, paper_config, paper_method
from tcl_step import PeakMemory

from owseg.fit import phase_groups
from owseg.methods.tcl import TclConfig
from owseg.micro_batches import ContrastiveMethod
from owseg.noise import of_step
from owseg.phases import scheduled_phases
from owseg.steady import total_of
from owseg.trainable import losses_of

TURNS = ("whole", "micro-batches")


class Turn(NamedTuple):
    peak: int
    """Bytes."""
    seconds: float
    loss: float


def take(name: str, batch_size: int, micro_batch: int, threads: int) -> Turn:
    """One step after a small one that warms up; micro_batch 0 = the batch whole."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix="owseg-bert-") as folder:
        config = TclConfig() if name == "tcl" else paper_config(name, Path(folder))
        method = paper_method(config)
    assert isinstance(method, ContrastiveMethod)
    method.train()
    scheduled = scheduled_phases(config.phases, config.optim)[-1]
    method.requires_grad_(False)
    for group in phase_groups(method, config.phases, config.optim)[-1]:
        for parameter in group.parameters.values():
            parameter.requires_grad_()
    method.begin_phase(scheduled.phase)
    memory = PeakMemory("cpu")
    for count in (2, batch_size):
        method.micro_batch = micro_batch
        batch = pairs(method, config, scheduled, count)
        memory.start()
        began = time.perf_counter()
        with of_step(0, 0):
            total = total_of(losses_of(method, batch))
        total.backward()  # type: ignore[no-untyped-call]
        seconds, peak = time.perf_counter() - began, memory.stop()
    return Turn(peak, seconds, total.item())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    print(f"{options.batch} pairs, micro-batches of {options.micro_batch}")
    print("| method | peak, whole | in micro-batches | ratio | seconds, whole | in micro-batches | ratio | losses apart |")
    print("|---|---|---|---|---|---|---|---|")
    context = mp.get_context("spawn")
    for name in options.methods:
        turns: dict[str, list[Turn]] = {kind: [] for kind in TURNS}
        for _ in range(options.rounds):
            for kind, size in zip(TURNS, (0, options.micro_batch), strict=True):
                with context.Pool(1) as pool:
                    turns[kind].append(pool.apply(take, (name, options.batch, size, options.threads)))
        print(row(name, *(turns[kind] for kind in TURNS)), flush=True)


def row(name: str, whole: list[Turn], parts: list[Turn]) -> str:
    """A method's line of the table."""
    peaks = [max(turn.peak for turn in turns) for turns in (whole, parts)]
    seconds = [statistics.median(turn.seconds for turn in turns) for turns in (whole, parts)]
    ratios = [after.seconds / before.seconds for before, after in zip(whole, parts, strict=True)]
    apart = abs(parts[0].loss - whole[0].loss) / abs(whole[0].loss)
    return (
        f"| {name} | {peaks[0] / 2**20:.0f} MiB | {peaks[1] / 2**20:.0f} MiB | {peaks[1] / peaks[0]:.2f} "
        f"| {seconds[0]:.1f} | {seconds[1]:.1f} | {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) "
        f"| {apart:.0e} |"
    )


if __name__ == "__main__":
    main()
