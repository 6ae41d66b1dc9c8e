"""The model of benchmarks/scaling.py held against processes on this machine: TCL of the miniature world's size, gloo, loopback.

    python benchmarks/scaling_here.py [--ranks 1 2 4] [--pairs 16] [--steps 8]

Each rank takes steps of its own pairs with one thread. Predicted is the step of as many processes that know nothing of each
other, longer by the texts that they would have of the others, then the bytes that the model says over the speed that a large
all-reduce shows here, then its calls at the time of a small one. Ranks that share a machine's memory and cores are no cluster:
what this can show is whether bytes and calls are right, and whether anything else grows with the ranks.
"""

import argparse
import os
import statistics
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from paper_steps import MORE_TEXTS, counted, counted_with_texts
from scaling import counted_traffic, gathered_bytes, gathers

from owseg.data import Batch
from owseg.encoders import EncoderConfig, build_encoder
from owseg.engine import TorchEngine
from owseg.fit import phase_groups
from owseg.methods.tcl import Tcl, TclConfig

MODEL = Path(__file__).parents[1] / "configs" / "miniature_clip.json"
LARGE = 2**22
"""Numbers of the all-reduce that shows the speed."""


def build() -> Tcl:
    """The method with random weights, in its first phase."""
    torch.manual_seed(0)
    config = replace(TclConfig(), checkpoint_blocks=False, text_chunk=0)
    return config.build(build_encoder(EncoderConfig(model=str(MODEL)))).train()


def batch_of(method: Tcl, pairs: int) -> Batch:
    """Noise under captions."""
    captions = [f"a photo of thing number {number}" for number in range(pairs)]
    return Batch(torch.randn(pairs, 3, *method.clip.visual.image_size), method.tokenize(captions), captions, [])


def seconds_of(numbers: int, repeats: int) -> float:
    """Of an all-reduce, the median."""
    tensor, taken = torch.ones(numbers), list[float]()
    for _ in range(repeats):
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(tensor)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def rank_work(rank: int, ranks: int, options: argparse.Namespace, connection: Connection) -> None:
    """Take steps, alone and then together; rank 0 tells what they took and carried."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(options.port), RANK=str(rank), WORLD_SIZE=str(ranks))
    torch.set_num_threads(1)
    method = build()
    groups = phase_groups(method, method.config.phases, method.config.optim)[0]
    learned = {id(parameter) for group in groups for parameter in group.parameters.values()}
    for parameter in method.parameters():
        parameter.requires_grad_(id(parameter) in learned)
    batch = batch_of(method, options.pairs)
    found: dict[str, Any] = {"parameters": len(learned)}
    found["alone"] = steps(TorchEngine(method, groups, method.config.optim), batch, options.steps)
    dist.init_process_group("gloo")
    with counted_traffic() as traffic:
        found["together"] = steps(TorchEngine(method, groups, method.config.optim), batch, options.steps)
    found |= {"gathered": traffic.gathered / (options.steps + 1), "reduced": traffic.reduced / (options.steps + 1)}
    if ranks > 1:
        small, large = seconds_of(1, 50), seconds_of(LARGE, 10)
        found |= {"call": small, "speed": 2 * (ranks - 1) / ranks * 4 * LARGE / max(large - small, 1e-9)}
    if rank == 0:
        connection.send(found)
    dist.barrier()
    dist.destroy_process_group()


def steps(engine: TorchEngine, batch: Batch, count: int) -> list[float]:
    """Seconds of steps, one before them left out."""
    taken = []
    for _ in range(count + 1):
        began = time.perf_counter()
        engine.step(batch, 1e-4)
        taken.append(time.perf_counter() - began)
    return taken[1:]


def measure(ranks: int, options: argparse.Namespace) -> dict[str, Any]:
    """What rank 0 of so many finds."""
    here, there = mp.Pipe()
    context = mp.spawn(rank_work, args=(ranks, options, there), nprocs=ranks, join=False)
    while not here.poll(0.2):
        context.join(0)  # raises what a rank raised
    found: dict[str, Any] = here.recv()
    context.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--pairs", type=int, default=16, help="of each rank")
    parser.add_argument("--steps", type=int, default=8, help="measured; one before them warms up")
    parser.add_argument("--port", type=int, default=29611)
    options = parser.parse_args()
    method = build()
    small = batch_of(method, 2)
    own, more = counted(method, small), counted_with_texts(method, small)
    text = (more - own) / MORE_TEXTS / 2
    pair = own / 2 - 2 * text
    print("| ranks | s/step alone | together (low to high) | predicted | gathered MB: counted, predicted | reduced MB |")
    print("|---|---|---|---|---|---|")
    for ranks in options.ranks:
        found = measure(ranks, options)
        alone, together = statistics.median(found["alone"]), found["together"]
        collected = gathers(method.config, 1, options.pairs, ranks, joint=method.projection.proj.shape[1], bf16=False)
        moved = gathered_bytes(collected, ranks)
        predicted = alone * (pair + text * options.pairs * ranks) / (pair + text * options.pairs)
        if ranks > 1:
            calls = sum(1 + each.back for each in collected) + found["parameters"]
            passed_on = moved + 2 * (ranks - 1) / ranks * found["reduced"]
            predicted += passed_on / found["speed"] + calls * found["call"]
        print(
            f"| {ranks} | {alone:.3f} | {statistics.median(together):.3f} ({min(together):.3f} to {max(together):.3f}) "
            f"| {predicted:.3f} | {found['gathered'] / 1e6:.3f}, {moved / 1e6:.3f} | {found['reduced'] / 1e6:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
