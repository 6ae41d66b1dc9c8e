"""The model of benchmarks/scaling.py held against processes on this machine: TCL of the miniature world's size, gloo, loopback.

    python benchmarks/scaling_here.py [--ranks 1 2 4] [--pairs 16] [--steps 8]

Each rank takes steps of its own pairs with one thread. Predicted is one process's step, longer where ranks share cores and by
the texts of the others, then the bytes that the model says over the speed that a large all-reduce shows here, then its calls at
the time of a small one. Ranks that share a machine's memory and cores are no cluster: what this can show is whether bytes and
calls are right, and whether anything else grows with the ranks.
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
from paper_steps import counted, counted_with_texts
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
    """Take steps; rank 0 tells what they took and carried."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(options.port), RANK=str(rank), WORLD_SIZE=str(ranks))
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    method = build()
    groups = phase_groups(method, method.config.phases, method.config.optim)[0]
    learned = {id(parameter) for group in groups for parameter in group.parameters.values()}
    for parameter in method.parameters():
        parameter.requires_grad_(id(parameter) in learned)
    engine, batch, taken = TorchEngine(method, groups, method.config.optim), batch_of(method, options.pairs), list[float]()
    with counted_traffic() as traffic:
        for _ in range(options.steps + 1):
            began = time.perf_counter()
            engine.step(batch, 1e-4)
            taken.append(time.perf_counter() - began)
    found: dict[str, Any] = {"seconds": statistics.median(taken[1:]), "low": min(taken[1:]), "high": max(taken[1:])}
    found |= {"gathered": traffic.gathered / len(taken), "reduced": traffic.reduced / len(taken)}
    found |= {"parameters": sum(len(group.parameters) for group in groups)}
    if ranks > 1:
        small, large = seconds_of(1, 50), seconds_of(LARGE, 10)
        found |= {"call": small, "speed": 2 * (ranks - 1) / ranks * 4 * LARGE / max(large - small, 1e-9)}
    if rank == 0:
        connection.send(found)
    dist.barrier()
    dist.destroy_process_group()


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
    method, cores = build(), len(os.sched_getaffinity(0))
    small = batch_of(method, 2)
    own, more = counted(method, small), counted_with_texts(method, small)
    text = (more - own) / 64 / 2
    pair = own / 2 - 2 * text
    alone = measure(1, options)
    print("| ranks | s/step (low to high) | predicted | gathered MB: counted, predicted | reduced MB |")
    print("|---|---|---|---|---|")
    for ranks in options.ranks:
        found = alone if ranks == 1 else measure(ranks, options)
        work = (pair + text * options.pairs * ranks) / (pair + text * options.pairs) * max(1, ranks / cores)
        collected = gathers(method.config, 1, options.pairs, ranks, joint=method.projection.proj.shape[1], bf16=False)
        moved, predicted = gathered_bytes(collected, ranks), alone["seconds"] * work
        if ranks > 1:
            calls = sum(1 + each.back for each in collected) + found["parameters"]
            passed_on = moved + 2 * (ranks - 1) / ranks * found["reduced"]
            predicted += passed_on / found["speed"] + calls * found["call"]
        print(
            f"| {ranks} | {found['seconds']:.3f} ({found['low']:.3f} to {found['high']:.3f}) | {predicted:.3f} "
            f"| {found['gathered'] / 1e6:.3f}, {moved / 1e6:.3f} | {found['reduced'] / 1e6:.2f} |"
        )


if __name__ == "__main__":
    main()
