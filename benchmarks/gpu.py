"""What one device makes of training and evaluation, in a fixed time: a table (Markdown) and a JSON.

    python benchmarks/gpu.py [--device cuda] [--seconds 420] [--out gpu.json]
    python benchmarks/gpu.py --device cpu --toy --seconds 30        # tries the script; its rates mean nothing

1. Losses and gradients of every phase of every method on the device against a CPU: small models, the same weights, batch and
   noise, in float32 and under bfloat16 autocast.
2. Training steps at the papers' sizes (ViT-B/16, 224 pixels, bfloat16, random weights) at several batch sizes: images/s, MFU,
   peak memory. Batches are on the device already.
3. A training loop over shards that the script writes: images/s, and the share of time in which it waits for its next batch.
4. The evaluator: images/s with windows of 448 pixels and 21, 60 and 171 classes, in float32 as it always is.

MFU is the operations of forward and backward as torch's flop counter finds them, without those that checkpoints run again, over
the step's whole time (optimiser and momentum copies included) and the device's bfloat16 peak. Nothing is downloaded. What does
not fit into memory or time is said in its row. The JSON is written after every row. Exits with 1 where a row failed.
"""

import argparse
import json
import os
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_inputs import SMALL_BERT, Sizes, paper_sizes, toy_sizes, write_shards, write_text_tower
from gpu_report import OUT_OF_MEMORY, SHARES, Report, about, tables
from gpu_work import CLASSES, CPU, Labelling, Training, compare, free, loop_row, training_row, trainings

from owseg import InputError
from owseg.engine import usable_device
from owseg.evaluation.inference import WINDOW_BATCH
from owseg.methods.zero_shot import ZeroShotConfig


def compare_losses(report: Report, cases: list[Training]) -> None:
    """Section 1."""
    tf32, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False  # a GPU's float32 is to be a CPU's
    left = 2 * len(cases)
    for training in cases:
        here = replace(training, device=CPU)
        for precision in ("float32", "bfloat16"):
            row = {**training.named, "precision": precision}
            report.add("losses", row, left, partial(compare, training, here, bf16=precision == "bfloat16"))
            left -= 1
    torch.backends.cudnn.allow_tf32 = tf32


def time_training(report: Report, cases: list[Training], batch_sizes: tuple[int, ...]) -> None:
    """Section 2. A method is built once for all batch sizes of a phase; after one that is too large none is tried."""
    left = len(cases) * len(batch_sizes)
    for training in cases:
        too_large = False
        for size in batch_sizes:
            row = {**training.named, "batch_size": size}
            report.add("training", row, left, _too_large if too_large else partial(training_row, training, size))
            too_large = row["status"] == OUT_OF_MEMORY
            left -= 1
        training.forget()


def _too_large(seconds: float) -> dict[str, Any]:
    del seconds
    raise MemoryError


def time_loop(report: Report, cases: list[Training], size: int, workers: int) -> None:
    """Section 3: each method's last phase."""
    last = list({training.name: training for training in cases}.values())
    for number, training in enumerate(last):
        row = {**training.named, "batch_size": size, "loader_workers": workers}
        report.add("loop", row, len(last) - number, partial(loop_row, training, size, workers))
        training.forget()


def time_evaluator(report: Report, sizes: Sizes, device: torch.device) -> None:
    """Section 4. Of CLIP it is MaskCLIP's reading that segments."""
    segmenters = {**sizes.methods, "maskclip": ZeroShotConfig()}
    del segmenters["clip"]
    left = len(segmenters) * len(CLASSES)
    for name, config in segmenters.items():
        labelling = Labelling(config, sizes, device)
        for classes in CLASSES:
            row = {"method": name, "classes": classes, "window": sizes.view.window, "window_batch": WINDOW_BATCH}
            report.add("evaluator", row, left, partial(labelling.row, classes))
            left -= 1
        del labelling
        free(device)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, cpu ...")
    parser.add_argument("--toy", action="store_true", help="small models and pictures, to try the script")
    parser.add_argument("--seconds", type=float, default=420, help="time that the rows share")
    parser.add_argument("--batch-sizes", type=int, nargs="+", help="of the training steps; default 32 128 512, toy 4 8")
    parser.add_argument("--loader-workers", type=int, help="processes that read shards; default one less than cores, toy 0")
    parser.add_argument("--peak-tflops", type=float, help="the device's dense bfloat16 peak, where its name is not known")
    parser.add_argument("--commit", default="", help="what runs here, where git cannot tell")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    options = parser.parse_args(argv)
    if options.seconds <= 0 or (options.peak_tflops is not None and options.peak_tflops <= 0):
        parser.error("--seconds and --peak-tflops must be above 0")
    if any(size < 2 for size in options.batch_sizes or ()):
        parser.error("--batch-sizes must be at least 2: batch norms and contrasts need two pairs")
    return options


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure all sections; returns what the JSON has."""
    device = usable_device(options.device)
    workers = options.loader_workers
    if workers is None:
        workers = 0 if options.toy else max((os.cpu_count() or 1) - 1, 0)
    report = Report(about(device, options), options.seconds, options.out)
    with tempfile.TemporaryDirectory(prefix="owseg-gpu-") as name:
        small, large, data = (Path(name) / part for part in ("small", "large", "data"))
        write_text_tower(small, **SMALL_BERT)
        write_text_tower(large)
        toy, sizes = toy_sizes(small), toy_sizes(small) if options.toy else paper_sizes(large)
        shards = write_shards(data, sizes.samples, sizes.photo)
        cases = trainings(sizes, shards, device, report.about["device"]["peak_tflops"])
        compare_losses(report, trainings(toy, shards, device))
        time_training(report, cases, tuple(sorted(options.batch_sizes or sizes.batch_sizes)))
        time_loop(report, cases, sizes.loop_batch, workers)
        time_evaluator(report, sizes, device)
    report.write()
    found: dict[str, Any] = json.loads(options.out.read_text(encoding="utf-8"))
    return found


def main() -> None:
    try:
        found = run(parse())
    except InputError as mistake:
        print(mistake, file=sys.stderr)
        sys.exit(2)
    print(tables(found))
    failed = any(row["status"].startswith("failed") for section in SHARES for row in found[section])
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
