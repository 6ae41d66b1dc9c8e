"""TCL's evaluator, ours against the official order of work, side by side: images per second.

    python benchmarks/inference.py [--rounds 3] [--classes 21 171] [--threads 2] [--width 768] [--layers 12] [--size 480 640]

A ViT-B/16 with random weights (open gates, a steep mask slope, so that every layer counts and masks span 0..1) labels a
random picture: from uint8 RGB to labels at the picture's own size, under TCL's protocol (short side 448, windows of 448 every
224), with and without PAMR. Both take the same weights, in alternating rounds of one process. Prints medians, the ratio and
its spread, and the largest difference between their masks (averaged over windows, at the scaled size). 21 classes are VOC's
with background, 171 are COCO-Stuff's.
"""

import argparse
import statistics
import time
from dataclasses import replace

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from owseg.encoders import Encoder, EncoderConfig
from owseg.evaluation.inference import predict, predict_scores
from owseg.evaluation.protocols import EvaluateConfig, protocol_of
from owseg.methods.tcl import Tcl, TclConfig
from owseg.normalisation import Normalisation
from references import tcl_inference as reference

BENCHMARKS = {21: "voc21", 60: "context60", 171: "coco_stuff"}


def random_method(width: int, layers: int) -> Tcl:
    """A TCL of the given tower around random weights."""
    torch.manual_seed(0)
    vision = {"image_size": 224, "patch_size": 16, "width": width, "layers": layers, "head_width": 64}
    text = {"context_length": 8, "vocab_size": 16, "width": 64, "heads": 1, "layers": 1}
    clip = open_clip.CLIP(embed_dim=512, vision_cfg=vision, text_cfg=text, quick_gelu=True)
    method = TclConfig(mask_scale=40.0, mask_shift=0.0).build(Encoder(clip.eval(), open_clip.tokenize)).eval()
    for name, parameter in method.decoder.named_parameters():
        if name.endswith("gate"):
            parameter.data.fill_(0.3)
    return method


def picture(height: int, width: int) -> np.ndarray:
    """A smooth random picture [height, width, 3] uint8."""
    noise = F.interpolate(torch.randn(1, 3, 24, 32), size=(height, width), mode="bicubic")[0]
    return (noise * 50 + 128).clamp(0, 255).byte().permute(1, 2, 0).numpy().copy()


def compare(method: Tcl, image: np.ndarray, classes: int, rounds: int) -> None:
    """Measure one setting and print its line."""
    protocol, encoder, refine = protocol_of(EvaluateConfig(), BENCHMARKS[classes]), EncoderConfig(), method.config.pamr
    background = protocol.benchmark.background
    texts: Tensor = F.normalize(torch.randn(len(protocol.queries), 512, generator=torch.Generator().manual_seed(1)), dim=-1)

    def ours() -> np.ndarray:
        return predict(method, image, texts, protocol, encoder).labels

    def official() -> np.ndarray:
        return reference.predict(method, image, texts, refine=refine, background=background).labels

    expected = reference.predict(method, image, texts, refine=refine, background=background)
    masks = predict_scores(method, image, texts, background, protocol.view, Normalisation())
    difference = (masks - expected.scores).abs().max().item()
    agreement = (ours() == expected.labels).mean()
    seconds: dict[str, list[float]] = {"reference": [], "ours": []}
    for _ in range(rounds):
        for kind, run in (("reference", official), ("ours", ours)):
            began = time.perf_counter()
            run()
            seconds[kind].append(time.perf_counter() - began)
    ratios = [slow / fast for slow, fast in zip(*seconds.values(), strict=True)]
    speeds = "  ".join(f"{kind} {1 / statistics.median(values):.3f}" for kind, values in seconds.items())
    print(
        f"{classes:3} classes  {'PAMR   ' if refine else 'no PAMR'}  images/s: {speeds}  "
        f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})  "
        f"masks differ by {difference:.1e}, labels agree on {100 * agreement:.3f} %",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--classes", type=int, nargs="+", default=[21, 171], choices=BENCHMARKS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--width", type=int, default=768, help="of the tower; smaller to try the script")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--size", type=int, nargs=2, default=[480, 640], metavar=("HEIGHT", "WIDTH"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    method = random_method(args.width, args.layers)
    image = picture(*args.size)
    print(f"ViT-{args.width}/16, {args.layers} blocks, picture {args.size}, {args.threads} threads, {args.rounds} rounds")
    for classes in args.classes:
        for refine in (False, True):
            method.config = replace(method.config, pamr=refine)
            compare(method, image, classes, args.rounds)


if __name__ == "__main__":
    main()
