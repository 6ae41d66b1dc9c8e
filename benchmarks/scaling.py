"""How each method's training would scale, on paper: operations and bytes are counted, everything of the machine is assumed.

    python benchmarks/scaling.py [--tflops 312] [--mfu 0.35] [--gpus-per-node 8] [--inside 300] [--between 50] [--per-hop 10]

A step on R GPUs takes what its share of the pairs takes to compute, then what the losses gather, then what gradients and
weights exchange; nothing overlaps, so the real thing can only be faster in this. Collectives are rings: each rank passes on
(R - 1) / R of what is exchanged, at the speed of the ring's slowest link, in R - 1 hops. tests/benchmarks/test_scaling.py
counts the bytes that methods and engine really exchange, and asks that they are those predicted here, to the byte. Not in it:
data loading, checkpoints, stragglers, and that small batches fill a GPU badly. `benchmarks/scaling_here.py` holds the same
model against processes on this machine.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.distributed as dist
from paper_steps import PaperStep, count_all
from torch import Tensor

from owseg.method_config import TrainableConfig
from owseg.methods.ovsegmentor import OvSegmentorConfig
from owseg.methods.tcl import TclConfig
from owseg.methods.vilseg import VilSegConfig

RANKS = (8, 64, 256)
PAIRS_PER_GPU = 64
"""Where the batch grows with the GPUs."""
GLOBAL_VIEWS = 2
"""Of ViL-Seg, each of which meets the captions."""


class Gather(NamedTuple):
    """A tensor that losses collect from all ranks."""

    numbers: int
    """Of each rank."""
    size: int = 4
    """Bytes of a number."""
    back: bool = True
    """Whether its gradient goes back, as much again."""


def gathers(
    config: TrainableConfig, phase: int, pairs: int, ranks: int, *, joint: int = 512, bf16: bool = True
) -> list[Gather]:
    """What a step of a phase (counted from 1) collects, with `pairs` on each rank; `joint` is the width of the run's CLIP."""
    short = 2 if bf16 else 4
    if isinstance(config, TclConfig):
        texts = Gather(pairs * joint, short, back=False)
        rows = Gather(pairs * pairs * ranks, short)  # this rank's images against all texts
        images, again = Gather(pairs * joint), Gather(pairs * joint, back=False)
        return [texts, images, again, rows, Gather(1), Gather(1)]
    if isinstance(config, OvSegmentorConfig):
        joined = [Gather(pairs * config.joint)] * 4  # both contrasts, both sides
        statistics, observed = Gather(1 + 2 * config.hidden), Gather(1 + 2 * config.hidden, back=False)
        # Batch norms of caption, image, answer and filled question; without a gradient, of groups and the shared entity.
        return [*joined, *[statistics] * 4, *[observed] * (2 if phase == 2 else 1)]
    if isinstance(config, VilSegConfig):
        joined = [Gather(pairs * config.joint)] * 2 * GLOBAL_VIEWS
        counts = Gather((2 * config.cluster_shifts + 1) ** 2 * config.clusters**2)
        return [*joined, Gather(config.head_out, back=False), counts]
    raise TypeError(config)


def gathered_bytes(found: list[Gather], ranks: int) -> int:
    """What a rank receives of the others, forward and back."""
    return sum((ranks - 1) * each.numbers * each.size * (1 + each.back) for each in found)


def exchanged_numbers(trained: int, parameters: int, zero_stage: int) -> int:
    """Numbers that go round a ring for gradients and weights in a step, by ZeRO stage (0: the plain engine).

    0 reduces gradients to all ranks: two rounds. 1 and 2 do the same in DeepSpeed 0.19.8, and collect the trained weights
    after the step. 3 reduces each gradient to its owner, and collects all weights, frozen ones too, for forward and for
    backward (the most that it can be: it keeps small tensors whole, and not every weight is asked for twice).
    """
    return {0: 2 * trained, 1: 3 * trained, 2: 3 * trained, 3: trained + 2 * parameters}[zero_stage]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What is assumed of the hardware."""

    tflops: float
    """Peak of a GPU in bfloat16, TFLOP/s."""
    mfu: float
    """Share of it that a step's operations reach, 0..1."""
    gpus_per_node: int
    inside: float
    """Between the GPUs of a node, GB/s."""
    between: float
    """Between nodes, GB/s."""
    per_hop: float
    """Until a message arrives, microseconds."""

    def ring_seconds(self, passed_on: float, ranks: int, calls: int) -> float:
        """Of collectives in which each rank passes on so many bytes."""
        speed = self.inside if ranks <= self.gpus_per_node else min(self.inside, self.between)
        return passed_on / (speed * 1e9) + calls * (ranks - 1) * self.per_hop * 1e-6


class Seconds(NamedTuple):
    """Of a step."""

    compute: float
    gather: float
    exchange: float

    @property
    def total(self) -> float:
        """Nothing overlaps."""
        return sum(self)


def predict(step: PaperStep, config: TrainableConfig, ranks: int, batch: int, machine: Machine, zero_stage: int) -> Seconds:
    """A step of `batch` pairs over `ranks` GPUs."""
    pairs = batch // ranks
    flops = pairs * (step.flops_pair + step.flops_text * batch)
    collected = gathers(config, step.phase, pairs, ranks)
    calls = sum(1 + each.back for each in collected)
    numbers = exchanged_numbers(step.trained, step.parameters, zero_stage)
    return Seconds(
        compute=flops / (machine.tflops * 1e12 * machine.mfu),
        gather=machine.ring_seconds(gathered_bytes(collected, ranks), ranks, calls) if ranks > 1 else 0.0,
        exchange=machine.ring_seconds(4 * numbers * (ranks - 1) / ranks, ranks, 2) if ranks > 1 else 0.0,
    )


@dataclass
class Traffic:
    """Bytes that this rank was seen to receive in gathers of losses and their backward, to hand to reductions, and to collect
    of weights."""

    gathered: int = 0
    reduced: int = 0
    collected: int = 0


@contextmanager
def counted_traffic() -> Iterator[Traffic]:
    """Count what torch.distributed's collectives carry inside the block."""
    traffic, rank = Traffic(), dist.get_rank()

    def received(tensors: list[Tensor]) -> int:
        return sum(tensor.nbytes for number, tensor in enumerate(tensors) if number != rank)

    def wrapped(count: Callable[..., None], collective: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **rest: Any) -> Any:
            count(*arguments, **rest)
            return collective(*arguments, **rest)

        return call

    def all_gather(out: list[Tensor], *_: Any, **__: Any) -> None:
        traffic.gathered += received(out)

    def all_to_all(out: list[Tensor], *_: Any, **__: Any) -> None:
        traffic.gathered += received(out)

    def scatter(out: Tensor, _: Any, source: int, *__: Any, **___: Any) -> None:
        traffic.gathered += out.nbytes if source != rank else 0

    def all_reduce(tensor: Tensor, *_: Any, **__: Any) -> None:
        traffic.reduced += tensor.nbytes

    def all_gather_into_tensor(output_tensor: Tensor, *_: Any, **__: Any) -> None:
        traffic.collected += output_tensor.nbytes

    counts = {
        "all_gather": all_gather,
        "all_to_all": all_to_all,
        "scatter": scatter,
        "all_reduce": all_reduce,
        "all_gather_into_tensor": all_gather_into_tensor,
    }
    with patch.multiple(dist, **{name: wrapped(count, getattr(dist, name)) for name, count in counts.items()}):
        yield traffic


def report(machine: Machine, zero_stage: int) -> None:
    """Print a row for each phase: the recipe's own batch, which GPUs share, and one that grows with them."""
    configs = {"tcl": TclConfig(), "ovsegmentor": OvSegmentorConfig(), "vilseg": VilSegConfig()}
    print(
        f"Assumed: {machine.tflops:g} TFLOP/s at {machine.mfu:.0%}, {machine.gpus_per_node} GPUs a node, "
        f"{machine.inside:g} GB/s inside and {machine.between:g} GB/s between nodes, {machine.per_hop:g} us a hop, "
        f"ZeRO {zero_stage}."
    )
    print("| method, phase | batch | pairs/s on 1 | " + " | ".join(f"on {ranks}" for ranks in RANKS) + " | MB a GPU receives |")
    print("|" + "---|" * (len(RANKS) + 4))
    for step in count_all():
        config = configs[step.method]
        for grows in (False, True):
            batch_of = (lambda ranks: PAIRS_PER_GPU * ranks) if grows else (lambda ranks, fixed=step.batch: fixed)
            alone = predict(step, config, 1, batch_of(1), machine, zero_stage).total / batch_of(1)
            cells = []
            for ranks in RANKS:
                seconds = predict(step, config, ranks, batch_of(ranks), machine, zero_stage)
                cells.append(f"{alone * batch_of(ranks) / ranks / seconds.total:.0%} ({seconds.total * 1e3:.0f} ms)")
            moved = [
                gathered_bytes(gathers(config, step.phase, batch_of(ranks) // ranks, ranks), ranks) / 1e6 for ranks in RANKS
            ]
            name = f"{PAIRS_PER_GPU} a GPU" if grows else f"{step.batch:,}"
            print(
                f"| {step.method}, {step.phase} | {name} | {1 / alone:.0f} | "
                + " | ".join(cells)
                + " | "
                + ", ".join(f"{each:.1f}" for each in moved)
                + f" gathered, {4 * exchanged_numbers(step.trained, step.parameters, zero_stage) / 1e6:.0f} exchanged |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tflops", type=float, default=312.0, help="peak of a GPU in bfloat16 (A100: 312)")
    parser.add_argument("--mfu", type=float, default=0.35, help="share of the peak that is reached: an assumption")
    parser.add_argument("--gpus-per-node", type=int, default=8)
    parser.add_argument("--inside", type=float, default=300.0, help="GB/s between the GPUs of a node")
    parser.add_argument("--between", type=float, default=50.0, help="GB/s between nodes (400 Gbit/s: 50)")
    parser.add_argument("--per-hop", type=float, default=10.0, help="microseconds until a message arrives")
    parser.add_argument("--zero-stage", type=int, choices=(0, 1, 2, 3), default=1)
    options = vars(parser.parse_args())
    zero_stage = options.pop("zero_stage")
    torch.set_num_threads(1)
    report(Machine(**options), zero_stage)


if __name__ == "__main__":
    main()
