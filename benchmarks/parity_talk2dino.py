"""Talk2DINO against recorded numbers of its official code.

A case: weight/<official name> of the map; patch_tokens [B, P, C], qkv [B, G + P, 3 C], text_features [B, D], num_heads,
num_global_tokens G, scale. Results: attn_logits, attn_maps, head_embeddings, projected_text, head_scores, head_index,
similarity, logit_scale, loss, grad/<official name>. And of inference under infer/: text_template_features [N, T, D],
patch_tokens, qkv, image_bgr; text_embeddings, simmap, mask_{plain,clean}[_pamr], argmax_<same>, clean_grid_<weight>. Results of
strategies that the published maps were not trained with (avg/, weighted_avg/, triplet/) are named and not compared.
"""

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from parity_comparison import GRADIENT, LABELS, LOSS, NOTHING, Arrays, Comparison, double
from torch import Tensor

from owseg import InputError
from owseg.methods.talk2dino.attention import SCALE, class_attention, head_embeddings, head_scores, heads_for
from owseg.methods.talk2dino.cleaning import cleaned
from owseg.methods.talk2dino.contrast import LOG_SCALE, caption_contrast
from owseg.methods.talk2dino.method import Projection, Talk2Dino
from owseg.methods.talk2dino.official import NAMES, renamed
from owseg.pamr import pamr

MAP, REFINED, EXACT = 1e-5, 1e-4, 1e-9
"""Tolerances of maps, similarities and embeddings, of maps refined by PAMR (absolute), and of choices (share that differs)."""
BACKGROUND = 0.55
WEIGHT, GRAD, INFER = "weight/", "grad/", "infer/"
INPUTS = ("patch_tokens", "qkv", "text_features", "num_heads", "num_global_tokens", "scale")
INFER_INPUTS = tuple(INFER + name for name in ("text_template_features", "patch_tokens", "qkv", "image_bgr"))


def compare_talk2dino(_: None, case: Arrays) -> Comparison:
    """Training and inference, all in float64. Raises InputError where the case does not fit."""
    comparison = Comparison()
    try:
        projection = build_projection(case)
        if "loss" in case or "attn_logits" in case:
            compare_training(case, projection, comparison)
        if any(name.startswith(INFER) for name in case):
            compare_inference(case, projection, comparison)
    except KeyError as error:
        raise InputError(f"not a Talk2DINO case ({error.args[0]} is missing)") from error
    except (ArithmeticError, RuntimeError, IndexError, ValueError, TypeError) as error:
        raise InputError(f"not a Talk2DINO case ({error})") from error
    if not comparison.quantities:
        raise InputError("not a Talk2DINO case (it holds no results)")
    weights = [name for name in case if name.startswith(WEIGHT)]
    comparison.note_unknown(case, (*INPUTS, *INFER_INPUTS, *weights))
    return comparison


def build_projection(case: Arrays) -> Projection:
    """The map of a case."""
    state = renamed({name.removeprefix(WEIGHT): double(value) for name, value in case.items() if name.startswith(WEIGHT)})
    text, image = state["linear_layer.weight"].shape[1], len(state["linear_layer.weight"])
    projection = Projection(text, image).double()
    projection.load_state_dict({ours.removeprefix("projection."): state[official] for ours, official in NAMES.items()})
    return projection


def attention_of(case: Arrays, prefix: str = "") -> Tensor:
    """The class token's logits, with the scale that the case asks for."""
    qkv = double(case[f"{prefix}qkv"])
    query, key, _ = qkv.reshape(*qkv.shape[:2], 3, int(case["num_heads"]), -1).permute(2, 0, 3, 1, 4)
    logits = class_attention(query, key, int(case["num_global_tokens"]))
    return logits * (float(case["scale"]) / SCALE)


def compare_training(case: Arrays, projection: Projection, comparison: Comparison) -> None:
    """From attention to the loss and its gradients."""
    patches, logits = double(case["patch_tokens"]), attention_of(case)
    heads = head_embeddings(logits, patches)
    texts = projection(double(case["text_features"]))
    scores = head_scores(texts[:, None], heads)[:, 0]
    image = heads_for(texts[:, None], heads)[:, 0]
    loss = caption_contrast(image, texts, official=True)
    similarity = F.normalize(texts, dim=-1) @ F.normalize(image, dim=-1).T
    found = {
        "attn_logits": logits,
        "attn_maps": logits.softmax(dim=-1),
        "head_embeddings": heads,
        "projected_text": texts,
        "head_scores": scores,
        "similarity": similarity,
        "logit_scale": torch.tensor(LOG_SCALE).exp(),
    }
    for name, value in found.items():
        if name in case:
            comparison.add(name, value.detach(), double(case[name]).reshape(value.shape), MAP)
    if "head_index" in case:
        comparison.add_labels("head_index", scores.argmax(dim=1), double(case["head_index"]).long(), EXACT)
    if "loss" in case:
        comparison.add("loss", loss.detach(), double(case["loss"]), LOSS, NOTHING[0])
    parameters = dict(projection.named_parameters())
    wanted = {GRAD + official: parameters[ours.removeprefix("projection.")] for ours, official in NAMES.items()}
    wanted |= {key.replace("hidden_layers.0", "linear_layer2"): parameter for key, parameter in wanted.items()}
    wanted = {key: parameter for key, parameter in wanted.items() if key in case}
    if wanted:
        for key, gradient in zip(wanted, torch.autograd.grad(loss, list(wanted.values())), strict=True):
            comparison.add_scaled(key, gradient, double(case[key]), GRADIENT)


def compare_inference(case: Arrays, projection: Projection, comparison: Comparison) -> None:
    """From class names to masks, plain and cleaned, with and without refinement."""
    patches, logits = double(case[f"{INFER}patch_tokens"]), attention_of(case, INFER)
    model: Any = SimpleNamespace(projection=projection)
    with torch.no_grad():
        classes = Talk2Dino.map_classes(model, double(case[f"{INFER}text_template_features"]))
    side = round(patches.shape[1] ** 0.5)
    plain = Talk2Dino.grid_scores(patches, logits, classes, 0.0)
    _add(comparison, case, "text_embeddings", classes)
    _add(comparison, case, "simmap", plain.logit().unflatten(2, (side, side)))
    for name in case:
        if name.startswith(f"{INFER}clean_grid_"):
            weight = float(name.rpartition("_")[2])
            of_weight = cleaned(plain, logits, patches, classes, weight).unflatten(2, (side, side))
            comparison.add(name, of_weight, double(case[name]), MAP)
    image = double(case[f"{INFER}image_bgr"]).flip(1)
    for kind, scores in (("plain", plain), ("clean", cleaned(plain, logits, patches, classes, 0.2))):
        size = (image.shape[-2], image.shape[-1])
        masks = F.interpolate(scores.unflatten(2, (side, side)), size=size, mode="bilinear", align_corners=True)
        _add_masks(comparison, case, kind, masks, MAP)
        if f"{INFER}mask_{kind}_pamr" in case:
            _add_masks(comparison, case, f"{kind}_pamr", pamr(image.float(), masks.float()).double(), REFINED)


def _add(comparison: Comparison, case: Arrays, name: str, found: Tensor) -> None:
    if f"{INFER}{name}" in case:
        comparison.add(f"{INFER}{name}", found, double(case[f"{INFER}{name}"]), MAP)


def _add_masks(comparison: Comparison, case: Arrays, kind: str, masks: Tensor, tolerance: float) -> None:
    """Masks, and the labels that they give beside a constant background."""
    if f"{INFER}mask_{kind}" in case:
        comparison.add(f"{INFER}mask_{kind}", masks, double(case[f"{INFER}mask_{kind}"]), tolerance)
    if f"{INFER}argmax_{kind}" in case:
        labels = F.pad(masks, (0, 0, 0, 0, 1, 0), value=BACKGROUND).argmax(dim=1)[0]
        comparison.add_labels(f"{INFER}argmax_{kind}", labels, double(case[f"{INFER}argmax_{kind}"]).long(), LABELS)
