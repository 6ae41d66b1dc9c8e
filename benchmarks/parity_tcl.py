"""TCL against recorded numbers of the official code.

A case: image [B, 3, H, W], text_tokens [B, L], text_embeddings [B, E], gumbel_uniform [B, B, h, w], the weighted losses as
loss/*, gradients of their sum as grad/<official parameter>, and of one image infer/image [1, 3, H, W] with
infer/text_embeddings [n, E] the masks infer/mask_plain, mask_kp and mask_pamr_kp [1, n, H, W] in 1/65535.
"""

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from parity_comparison import GRADIENT, LOSS, MAP, NOTHING, Arrays, Comparison, indices, tensor
from torch import Tensor

from owseg import InputError
from owseg.data import Batch
from owseg.encoders import Encoder
from owseg.methods.tcl import Tcl, TclConfig
from owseg.methods.tcl.decoder import GroundingDecoder
from owseg.published import import_official, official_names

TCL_LOSSES = {
    "tcl_v": "loss/tcli_loss",
    "tcl_f": "loss/tclf_loss",
    "area": "loss/area_loss",
    "area_negative": "loss/neg_area_loss",
    "tv_features": "loss/tv_img_loss",
    "tv_masks": "loss/tv_mask_loss",
}
TCL_MASKS = {
    "infer/mask_plain": TclConfig(kp_weight=0.0),
    "infer/mask_kp": TclConfig(kp_weight=0.3),
    "infer/mask_pamr_kp": TclConfig(kp_weight=0.3, pamr=True),
}
TRAINING = ("image", "text_tokens", "gumbel_uniform")
INFERENCE = ("infer/image", "infer/text_embeddings")


def compare_tcl(method: Tcl, case: Arrays) -> Comparison:
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


def build_tcl(weights: Arrays) -> Tcl:
    """TCL with these weights, in the architecture that their shapes tell. Raises InputError for something else's weights."""
    try:
        clip = open_clip.CLIP(**tcl_architecture(weights), quick_gelu=True)
        method = TclConfig().build(Encoder(clip, open_clip.tokenize))
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


@torch.no_grad()
def encode(method: Tcl, case: Arrays) -> Tensor:
    """What the text tower makes of the case's tokens [B, E], not normalised."""
    encoded: Tensor = method.clip.encode_text(torch.from_numpy(case["text_tokens"].astype(np.int64)))
    return encoded


def compare_training(method: Tcl, case: Arrays, gradients: dict[str, str], comparison: Comparison) -> None:
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


def compare_masks(method: Tcl, case: Arrays, comparison: Comparison) -> None:
    """Masks of the case's own image, plain, with frozen CLIP's share, and refined by PAMR."""
    image = tensor(case["infer/image"])
    texts = F.normalize(tensor(case["infer/text_embeddings"]), dim=-1)
    for key, config in TCL_MASKS.items():
        if key in case:
            method.config = config
            comparison.add(key, method.segment(image, texts, background=False), tensor(case[key]) / 65535, MAP)
