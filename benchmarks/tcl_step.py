"""Peak memory and time of one TCL training step: the package against the formulas written plainly (references/tcl_training.py).

    python benchmarks/tcl_step.py [--device cuda] [--batch 16] [--texts 256] [--rounds 3] [--part masks]

Each variant runs in a process of its own, with the same random weights, images, texts and noise, and both take their steps in
turn. Memory is the step's peak above what the process held before it: on a CPU, of its resident set (Linux); on a GPU, of what
torch allocated. The first step of each is left out of the times. A step is losses, backward, clipping and AdamW; `--part masks`
takes the features V^s as given and measures the losses that read the masks, and their gradients.
"""

import argparse
import multiprocessing as mp
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from memory import reset_peak, resident
from torch import Tensor

from owseg.data import Batch
from owseg.encoders import EncoderConfig, build_encoder
from owseg.losses import gumbel_sigmoid
from owseg.methods.tcl import GROUNDER, Tcl, TclConfig
from owseg.methods.tcl import method as tcl
from references import tcl_training as reference

VARIANTS = ("reference", "package")


class Step(NamedTuple):
    """What one step took and gave."""

    seconds: float
    peak: int
    losses: dict[str, float]


def build(options: argparse.Namespace) -> Tcl:
    """A Tcl with random weights and gates that are open, its grounder trainable."""
    torch.manual_seed(0)
    config = TclConfig()
    if options.text_chunk is not None:
        config = replace(config, text_chunk=options.text_chunk)
    encoder = build_encoder(EncoderConfig(model=options.model))
    method = config.build(encoder).eval()
    learned = (*GROUNDER, "block.") if options.phase == 2 else GROUNDER
    for name, parameter in method.named_parameters():
        parameter.requires_grad_(name.startswith(learned))
        if name.endswith("gate"):
            parameter.data.fill_(0.3)
    return method.to(options.device)


def whole_step(method: Tcl, variant: str, options: argparse.Namespace) -> Callable[[], dict[str, Tensor]]:
    """The six losses of a random batch, as a call."""
    height, width = method.clip.visual.image_size
    image = torch.randn(options.batch, 3, height, width).to(options.device)
    tokens = method.tokenize([f"a photo of thing number {i}" for i in range(options.batch)]).to(options.device)
    others = F.normalize(torch.randn(options.texts - options.batch, method.projection.proj.shape[1]), dim=1).to(options.device)
    grid = tuple(4 * side for side in method.clip.visual.grid_size)
    noise = torch.rand(options.batch, *grid).clamp(1e-6, 1 - 1e-6).to(options.device)
    if variant == "reference":
        return lambda: reference.losses(method, image, tokens, others, noise)
    tcl.gather = lambda text: torch.cat([text, others])
    torch.rand_like = lambda _: noise.clone()
    return lambda: method.losses(Batch(image, tokens, [], []))


def masks_step(method: Tcl, variant: str, options: argparse.Namespace) -> Callable[[], dict[str, Tensor]]:
    """The losses that read the masks of random features, and the sum of the hard masks that TCL_v would read."""
    height, width = (4 * side for side in method.clip.visual.grid_size)
    joint = method.projection.proj.shape[1]
    v = torch.randn(options.batch, height, width, joint).to(options.device).movedim(-1, 1)
    texts = F.normalize(torch.randn(options.texts, joint), dim=1).to(options.device)
    noise = torch.rand(options.batch, height, width).clamp(1e-6, 1 - 1e-6).to(options.device)
    if variant == "reference":
        v = v.contiguous()  # channels-first, as the reference's own layers leave it
    v.requires_grad_()

    def reference_losses() -> dict[str, Tensor]:
        v.grad = None
        losses, hard = reference.mask_losses(method, v, texts, noise)
        return {**losses, "hard": 1e-3 * hard.mean()}

    def package_losses() -> dict[str, Tensor]:
        v.grad = None
        slope = method.mask_slope(v)
        own = method.own_logits(v, slope, texts[: options.batch, None])
        encoded = {"text": texts[: options.batch, None], **method.encode_masks(v, slope, own, texts[: options.batch], texts)}
        return {**method.mask_losses(encoded), "hard": 1e-3 * gumbel_sigmoid(own, noise).mean()}

    return reference_losses if variant == "reference" else package_losses


class PeakMemory:
    """Bytes that a step takes above what was held when it began."""

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")

    def start(self) -> None:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            reset_peak()
        self.before = torch.cuda.memory_allocated() if self.cuda else resident("VmRSS")

    def stop(self) -> int:
        if self.cuda:
            torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() if self.cuda else resident("VmHWM")) - self.before


def worker(connection: Connection, variant: str, options: argparse.Namespace) -> None:
    """Take one step whenever told to, and answer with what it took."""
    torch.set_num_threads(options.threads)
    method = build(options)
    losses_of = {"whole": whole_step, "masks": masks_step}[options.part](method, variant, options)
    learned = [parameter for parameter in method.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-5)
    memory = PeakMemory(options.device)
    connection.send(None)
    while connection.recv():
        optimizer.zero_grad(set_to_none=True)
        memory.start()
        began = time.perf_counter()
        with torch.autocast(torch.device(options.device).type, torch.bfloat16, enabled=options.bf16):
            losses = losses_of()
            total = torch.stack([loss.float() for loss in losses.values()]).sum()
        total.backward()
        torch.nn.utils.clip_grad_norm_(learned, 5.0)
        optimizer.step()
        values = {name: loss.item() for name, loss in losses.items()}
        peak = memory.stop()
        connection.send(Step(time.perf_counter() - began, peak, values))


def measure(options: argparse.Namespace) -> dict[str, list[Step]]:
    """Steps of both variants, in turn; the first of each warms up."""
    context = mp.get_context("spawn")
    ends: dict[str, Connection[Any, Any]] = {}
    processes = []
    for variant in VARIANTS:
        ends[variant], other = context.Pipe()
        processes.append(context.Process(target=worker, args=(other, variant, options), daemon=True))
        processes[-1].start()
        ends[variant].recv()
    steps: dict[str, list[Step]] = {variant: [] for variant in VARIANTS}
    for _ in range(options.rounds + 1):
        for variant in VARIANTS:
            ends[variant].send(True)
            steps[variant].append(ends[variant].recv())
    for variant, process in zip(VARIANTS, processes, strict=True):
        ends[variant].send(False)
        process.join()
    return steps


def report(steps: dict[str, list[Step]]) -> None:
    """Print medians, ratios and their spread, and how far the first losses lie apart."""
    for variant, taken in steps.items():
        seconds = [step.seconds for step in taken[1:]]
        print(
            f"{variant:10} {max(step.peak for step in taken) / 2**20:8.0f} MiB peak   {statistics.median(seconds):8.3f} s/step"
            f" ({min(seconds):.3f} to {max(seconds):.3f})"
        )
    plain, lean = (steps[variant] for variant in VARIANTS)
    ratios = [ours.seconds / theirs.seconds for theirs, ours in zip(plain[1:], lean[1:], strict=True)]
    memory = max(step.peak for step in lean) / max(step.peak for step in plain)
    print(f"memory: {memory:.2f}x   time: {statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})")
    differences = {name: abs(lean[0].losses[name] - value) / abs(value) for name, value in plain[0].losses.items()}
    worst = max(differences, key=lambda name: differences[name])
    print(f"losses: largest relative difference {differences[worst]:.1e} ({worst})")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=16, help="images per step")
    parser.add_argument("--texts", type=int, default=256, help="texts of all ranks, those of this batch among them")
    parser.add_argument("--rounds", type=int, default=3, help="measured steps of each variant")
    parser.add_argument("--part", choices=("whole", "masks"), default="whole")
    parser.add_argument("--phase", type=int, choices=(1, 2), default=1, help="2: the copied block learns too")
    parser.add_argument("--model", default="ViT-B-16-quickgelu", help="open_clip model name or config file; weights are random")
    parser.add_argument("--text-chunk", type=int, help="TclConfig.text_chunk, in place of its default")
    parser.add_argument("--bf16", action="store_true", help="under autocast, as DeepSpeed runs it")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    options = parser.parse_args()
    if options.texts < options.batch:
        parser.error(f"--texts counts those of the batch, too: give at least {options.batch}")
    return options


if __name__ == "__main__":
    report(measure(parse()))
