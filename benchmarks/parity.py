"""Numbers recorded from an official implementation against ours: same weights in, same numbers out.

    python benchmarks/parity.py tcl --weights W.npz --case C.npz

W holds a model's weights under their official names; the architecture is read off their shapes. C holds inputs and what the
official code made of them: every quantity in it is compared. Prints the largest differences; exit code 0 if all are within
tolerance, 1 if one is not, 2 if a file cannot be used.

A TCL case: image [B, 3, H, W], text_tokens [B, L], text_embeddings [B, E], gumbel_uniform [B, B, h, w], the weighted losses as
loss/*, gradients of their sum as grad/<official parameter>, and of one image infer/image [1, 3, H, W] with
infer/text_embeddings [n, E] the masks infer/mask_plain, mask_kp and mask_pamr_kp [1, n, H, W] in 1/65535.
"""

import argparse
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from owseg import InputError
from owseg.data import Batch
from owseg.encoders import Encoder
from owseg.layers import GroundingDecoder
from owseg.methods.tcl import Tcl, TclMethod
from owseg.published import import_official, official_names

Arrays = dict[str, np.ndarray]
LOSS, GRADIENT, MAP = 1e-5, 1e-4, 1e-4
"""Tolerances: losses relative, gradients relative in norm, maps and embeddings absolute."""
NOTHING = 1e-7, 1e-9
"""A loss or gradient (in norm) that differs by less than this passes: relative differences near zero say nothing in float32."""


class Quantity(NamedTuple):
    """One compared quantity."""

    name: str
    difference: float
    tolerance: float
    relative: bool
    passed: bool


@dataclass
class Comparison:
    """What a case said of an implementation."""

    quantities: list[Quantity] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, found: Tensor, expected: Tensor, tolerance: float, nothing: float | None = None) -> None:
        """Compare by the largest absolute difference, or, where `nothing` is given, by the relative difference in norm."""
        if found.shape != expected.shape:
            raise InputError(f"{name} has shape {list(expected.shape)} where the weights give {list(found.shape)}")
        error = found.double() - expected.double()
        if nothing is None:
            difference = error.abs().max().item()
            passed = difference <= tolerance
        else:
            difference = error.norm().item() / max(expected.double().norm().item(), 1e-30)
            passed = difference <= tolerance or error.norm().item() <= nothing
        self.quantities.append(Quantity(name, difference, tolerance, nothing is not None, passed))

    def table(self) -> str:
        """All quantities, the largest share of its tolerance first."""
        width = max(len(quantity.name) for quantity in self.quantities)
        lines = [f"{'quantity':{width}}  tolerance           difference"]
        for quantity in sorted(self.quantities, key=lambda q: -q.difference / q.tolerance):
            kind = "relative" if quantity.relative else "absolute"
            verdict = "pass" if quantity.passed else "FAIL"
            lines.append(f"{quantity.name:{width}}  {quantity.tolerance:.0e} {kind}  {quantity.difference:12.2e}  {verdict}")
        passed = sum(quantity.passed for quantity in self.quantities)
        return "\n".join([*lines, *self.notes, f"{passed} of {len(self.quantities)} quantities agree"])

    @property
    def passed(self) -> bool:
        """Whether every quantity is within its tolerance."""
        return all(quantity.passed for quantity in self.quantities)


# --------------------------------------------------------------------------------------------------------------- TCL

TCL_LOSSES = {
    "tcl_v": "loss/tcli_loss",
    "tcl_f": "loss/tclf_loss",
    "area": "loss/area_loss",
    "area_negative": "loss/neg_area_loss",
    "tv_features": "loss/tv_img_loss",
    "tv_masks": "loss/tv_mask_loss",
}
TCL_MASKS = {
    "infer/mask_plain": Tcl(kp_weight=0.0),
    "infer/mask_kp": Tcl(kp_weight=0.3),
    "infer/mask_pamr_kp": Tcl(kp_weight=0.3, pamr=True),
}
TRAINING = ("image", "text_tokens", "gumbel_uniform")
INFERENCE = ("infer/image", "infer/text_embeddings")


def compare_tcl(method: TclMethod, case: Arrays) -> Comparison:
    """Text tower, the six losses, gradients of their sum, and masks. Raises InputError where the case does not fit."""
    gradients = {f"grad/{official}": name for name, official in official_names(method).items()}
    known = {"text_embeddings", *TRAINING, *INFERENCE, *TCL_LOSSES.values(), *TCL_MASKS}
    foreign = sorted(key for key in case if key.startswith("grad/") and key not in gradients)
    if foreign:
        raise InputError(f"{foreign[0]}: no such parameter in the weights")
    comparison = Comparison()
    comparison.notes += [f"absent: {key}" for key in sorted(known - case.keys())]
    comparison.notes += [f"not known, not compared: {key}" for key in sorted(case.keys() - known - gradients.keys())]
    try:
        if {"text_tokens", "text_embeddings"} <= case.keys():
            comparison.add("text_embeddings", encode(method, case), tensor(case["text_embeddings"]), MAP)
        if case.keys() >= set(TRAINING):
            compare_training(method, case, gradients, comparison)
        if case.keys() >= set(INFERENCE):
            compare_masks(method, case, comparison)
    except (RuntimeError, IndexError, ValueError) as error:
        raise InputError(f"does not fit the weights: {error}") from error
    if not comparison.quantities:
        raise InputError("holds no inputs of a TCL case with what came of them")
    left = case.keys() & (known | gradients.keys()) - {*TRAINING, *INFERENCE, *(found.name for found in comparison.quantities)}
    comparison.notes += [f"not compared, for its inputs are absent: {key}" for key in sorted(left)]
    return comparison


def build_tcl(weights: Arrays) -> TclMethod:
    """TCL with these weights, in the architecture that their shapes tell. Raises InputError for something else's weights."""
    try:
        clip = open_clip.CLIP(**tcl_architecture(weights), quick_gelu=True)
        method = Tcl().build(Encoder(clip, open_clip.tokenize))
        stages = indices(weights, "masker.image_encoder.decoder.decoder.net.")
        method.decoder = GroundingDecoder(clip.visual.conv1.out_channels, stages)
        lacking = sorted(set(official_names(method).values()) - weights.keys())
        if lacking:
            raise InputError(f"{lacking[0]} is missing")
        import_official(method, {name: tensor(value) for name, value in weights.items()}, "shapes")
    except KeyError as error:
        raise InputError(f"not the weights of a TCL model ({error.args[0]} is missing)") from error
    except (ValueError, ArithmeticError, AssertionError, RuntimeError) as error:
        raise InputError(f"not the weights of a TCL model ({error})") from error
    method.block.requires_grad_()
    return method.eval()


def tcl_architecture(weights: Arrays) -> dict[str, Any]:
    """open_clip's arguments for the frozen CLIP, read off the shapes of its weights; heads are 64 wide in every CLIP ViT."""
    visual, text = "clip_image_encoder.clip_visual.", "clip_text_encoder."
    width, _, patch_size, _ = weights[f"{visual}conv1.weight"].shape
    vocabulary, text_width = weights[f"{text}token_embedding.weight"].shape
    side = round((len(weights[f"{visual}positional_embedding"]) - 1) ** 0.5)
    tower, text_tower = (
        {
            "layers": indices(weights, f"{part}transformer.resblocks."),
            "mlp_ratio": len(weights[f"{part}transformer.resblocks.0.mlp.c_fc.weight"]) / across,
            "width": across,
        }
        for part, across in ((visual, width), (text, text_width))
    )
    return {
        "embed_dim": weights["clip_image_encoder.clip_proj.proj"].shape[1],
        "vision_cfg": {**tower, "image_size": side * patch_size, "patch_size": patch_size, "head_width": 64},
        "text_cfg": {
            **text_tower,
            "heads": text_width // 64,
            "context_length": len(weights[f"{text}positional_embedding"]),
            "vocab_size": vocabulary,
        },
    }


def indices(weights: Arrays, prefix: str) -> int:
    """How many different numbers follow a prefix in the weights' names."""
    return len({name.removeprefix(prefix).split(".")[0] for name in weights if name.startswith(prefix)})


@torch.no_grad()
def encode(method: TclMethod, case: Arrays) -> Tensor:
    """What the text tower makes of the case's tokens [B, E], not normalised."""
    encoded: Tensor = method.clip.encode_text(torch.from_numpy(case["text_tokens"].astype(np.int64)))
    return encoded


def compare_training(method: TclMethod, case: Arrays, gradients: dict[str, str], comparison: Comparison) -> None:
    """The six losses of the case's batch, and the gradients of their sum that it holds."""
    batch = Batch(tensor(case["image"]), torch.from_numpy(case["text_tokens"].astype(np.int64)), [], [])
    losses: dict[str, Tensor] = {}
    reading, closest = "", float("inf")
    for name, uniform in noises(tensor(case["gumbel_uniform"])):
        with patch.object(torch, "rand_like", lambda _, drawn=uniform: drawn.clone()):
            found = method.losses(batch)
        distance = abs(found["tcl_v"].item() - float(case.get(TCL_LOSSES["tcl_v"], 0.0)))
        if not losses or distance < closest:
            losses, reading, closest = found, name, distance
    comparison.notes.append(f"gumbel_uniform read as {reading}")
    for name, key in TCL_LOSSES.items():
        if key in case:
            comparison.add(key, losses[name].detach(), tensor(case[key]), LOSS, NOTHING[0])
    wanted = [key for key in gradients if key in case]
    if wanted:
        parameters = dict(method.named_parameters())
        total = torch.stack(list(losses.values())).sum()
        found_gradients = torch.autograd.grad(total, [parameters[gradients[key]] for key in wanted], materialize_grads=True)
        for key, gradient in zip(wanted, found_gradients, strict=True):
            comparison.add(key, gradient, tensor(case[key]), GRADIENT, NOTHING[1])


def noises(recorded: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The noise [B, h, w] of matched pairs in [B, B, h, w], under both readings of how it was recorded.

    rand_like fills in memory order, and official logits, fresh from a product over channels, lie in memory as [B, h, w, B]
    whatever their shape says: a recorded stream of numbers is then to be read in that order.
    """
    images, texts, height, width = recorded.shape
    own = torch.arange(images)
    yield "memory [B, h, w, B]", recorded.reshape(images, height, width, texts).permute(0, 3, 1, 2)[own, own]
    yield "its shape [B, B, h, w]", recorded[own, own]


def compare_masks(method: TclMethod, case: Arrays, comparison: Comparison) -> None:
    """Masks of the case's own image, plain, with frozen CLIP's share, and refined by PAMR."""
    image = tensor(case["infer/image"])
    texts = F.normalize(tensor(case["infer/text_embeddings"]), dim=-1)
    for key, config in TCL_MASKS.items():
        if key in case:
            method.config = config
            comparison.add(key, method.segment(image, texts, background=False), tensor(case[key]) / 65535, MAP)


# --------------------------------------------------------------------------------------------------------- files, verbs


class Method(NamedTuple):
    """How a method is made from official weights, and compared with a case. Both raise InputError for what does not fit."""

    build: Callable[[Arrays], Any]
    compare: Callable[[Any, Arrays], Comparison]


METHODS = {"tcl": Method(build_tcl, compare_tcl)}


def tensor(array: np.ndarray) -> Tensor:
    """An array of any number type as float32. Raises InputError for one of something else."""
    if array.dtype.kind not in "fiub":
        raise InputError(f"holds an array of {array.dtype} where numbers belong")
    return torch.from_numpy(array.astype(np.float32))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's name in front of a mistake, and the mistake on one line."""
    try:
        yield
    except InputError as mistake:
        raise InputError(f"{path}: {' '.join(str(mistake).split())}") from mistake


def read(path: Path) -> Arrays:
    """The arrays of an .npz file. Raises InputError where it is missing, damaged or something else."""
    try:
        with zipfile.ZipFile(path), np.load(path) as arrays:  # np.load alone reads other formats, too
            return {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        raise InputError("no such file") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"cannot be read as .npz ({error})") from error


def main() -> int:
    """Compare one case; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("--weights", type=Path, required=True, metavar="W.npz")
    parser.add_argument("--case", type=Path, required=True, metavar="C.npz")
    given = parser.parse_args()
    try:
        build, compare = METHODS[given.method]
        with naming(given.weights):
            model = build(read(given.weights))
        with naming(given.case):
            comparison = compare(model, read(given.case))
    except InputError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    print(comparison.table())
    return 0 if comparison.passed else 1


if __name__ == "__main__":
    sys.exit(main())
