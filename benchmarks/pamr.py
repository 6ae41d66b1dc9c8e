"""Mask refinement (PAMR), ours against its formula written out, side by side: seconds and peak memory of one 448-pixel window.

    python benchmarks/pamr.py [--rounds 5] [--classes 21 60 171] [--side 112] [--threads 2]

Both refine the same random masks on the same image in alternating rounds of one process. Peak memory is how far the resident
set of a fresh process rises during the call. Prints medians, the ratio and its spread, and the largest difference.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from memory import reset_peak, resident
from torch import Tensor

from owseg.pamr import pamr
from references import tcl_inference as reference

KINDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"reference": reference.pamr, "ours": pamr}


def example(classes: int, side: int) -> tuple[Tensor, Tensor]:
    """A smooth random image [1, 3, 4 * side, 4 * side] and masks [1, classes, side, side]."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, 32, 32, generator=generator)
    masks = torch.rand(1, classes, side, side, generator=generator)
    return F.interpolate(image, size=(4 * side, 4 * side), mode="bicubic"), masks


def peak(kind: str, classes: int, side: int, threads: int) -> float:
    """Rise of this process's resident memory while it refines once, MiB."""
    torch.set_num_threads(threads)
    KINDS[kind](*example(1, 8))
    image, masks = example(classes, side)
    reset_peak()
    before = resident("VmRSS")
    KINDS[kind](image, masks)
    return (resident("VmHWM") - before) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--classes", type=int, nargs="+", default=[21, 60, 171])
    parser.add_argument("--side", type=int, default=112, help="side of the masks, pixels")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"masks of {args.side} x {args.side}, {args.threads} threads, {args.rounds} rounds")
    for classes in args.classes:
        image, masks = example(classes, args.side)
        difference = (pamr(image, masks) - reference.pamr(image, masks)).abs().max().item()  # warms both up
        seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for _ in range(args.rounds):
            for kind, refine in KINDS.items():
                began = time.perf_counter()
                refine(image, masks)
                seconds[kind].append(time.perf_counter() - began)
        ratios = [slow / fast for slow, fast in zip(*seconds.values(), strict=True)]
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            memory = {kind: pool.apply(peak, (kind, classes, args.side, args.threads)) for kind in KINDS}
        for kind in KINDS:
            print(f"{classes:4} classes  {kind:10} {statistics.median(seconds[kind]):7.3f} s  {memory[kind]:7.0f} MiB")
        print(
            f"{'':13} {statistics.median(ratios):.1f}x faster ({min(ratios):.1f} to {max(ratios):.1f}), "
            f"{memory['reference'] / memory['ours']:.1f}x leaner, largest difference {difference:.1e}"
        )


if __name__ == "__main__":
    main()
