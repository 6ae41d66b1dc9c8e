"""OVSegmentor against recorded numbers of the official code, in eval mode: running statistics, no noise.

A case: image and cross_image [B, 3, H, W]; caption_features, question_features, answer_features and entity_features
[B, L, C], last hidden states of a text tower, of which position 0 stands for the sentence; the losses loss/matching,
loss/entity, loss/mask (unweighted) and loss/loss = matching + entity + 0.1 mask, its gradients as grad/<official parameter>;
encoder/group_features [B, K, C], encoder/soft_assignment [B, K, P], encoder/q and encoder/k. And for one image as one window,
infer/image [1, 3, H, W] with infer/text_embeddings [n, E]: labels infer/argmax_<mode> [H, W] and the winning score at every 8th
pixel infer/max_<mode>, where the mode is no_background or background_<threshold>.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from parity_comparison import GRADIENT, LABELS, LOSS, MAP, NOTHING, Arrays, Comparison, indices, tensor
from torch import Tensor

from owseg import InputError
from owseg.methods.ovsegmentor import OvSegmentor, OvSegmentorConfig
from owseg.methods.ovsegmentor.grouping import GroupingEncoder
from owseg.methods.ovsegmentor.text_tower import Texts, TextTower
from owseg.published import import_official, layout_of, official_names, recognise

HEADS = 8
"""Attention heads, which no shape tells: as in the official configuration."""
MASK_WEIGHT = 0.1
ROUNDING = 1e-7
"""A gradient that differs by less than this share of the whole gradient's norm passes: float32 has no more digits.

Some are zero but for rounding: a bias does nothing where a softmax or LayerNorm ignores what all its inputs share.
"""
LOSSES = {"contrast": "loss/matching", "entity": "loss/entity", "mask": "loss/mask"}
TOTAL = "loss/loss"
TEXTS = {name: f"{name}_features" for name in ("caption", "question", "answer")}
FIRST_STAGE, SECOND_STAGE = {"image", *TEXTS.values()}, {"cross_image", "entity_features"}
"""Inputs of the losses: of the first two, and what the third needs besides."""
INFERENCE = {"infer/image", "infer/text_embeddings"}
LABEL_MAP, SCORE_MAP = "infer/argmax_", "infer/max_"
STRIDE = 8
"""Every how manyeth pixel's score a case holds."""


class GivenTexts(TextTower):
    """Stands where a text tower does: what it would read is in the case."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.mask_word, self.tokenize = width, "[MASK]", partial(torch.zeros, 0)


def build_ovsegmentor(weights: Arrays) -> OvSegmentor:
    """OVSegmentor with these weights, in the architecture that their shapes tell. Raises InputError for something else's."""
    state = {name: tensor(value) for name, value in weights.items()}
    name, settings = recognise(state, "shapes")
    config = OvSegmentorConfig(fidelity="official", heads=HEADS, entity_weight=1.0, mask_weight=1.0, **settings)
    if name != config.name:
        raise InputError(f"weights of {name}")
    try:
        width, _, patch_size, _ = state["img_encoder.patch_embed.proj.weight"].shape
        side = round((state["img_encoder.pos_embed"].numel() / width) ** 0.5)
        early, late = (indices(weights, f"img_encoder.layers.{stage}.blocks.") for stage in (0, 1))
        tower = GroupingEncoder(
            width=width,
            depths=(early, late),
            heads=HEADS,
            patch_size=patch_size,
            grid=(side, side),
            tokens=config.tokens,
            groups=config.groups,
        )
        text_width = state["text_projector.linear_hidden.0.weight"].shape[1]
        method = OvSegmentor(config, tower, GivenTexts(text_width))
    except KeyError as error:
        raise InputError(f"not the weights of an OVSegmentor ({error.args[0]} is missing)") from error
    except (ValueError, IndexError, ArithmeticError, AssertionError, RuntimeError) as error:
        raise InputError(f"not the weights of an OVSegmentor ({error})") from error
    import_official(method, state, "shapes")
    return method.eval()


def compare_ovsegmentor(method: OvSegmentor, case: Arrays) -> Comparison:
    """Encoder, the three losses, gradients of their sum, and labels. Raises InputError where the case does not fit."""
    comparison = Comparison()
    try:
        if "image" in case:
            compare_encoder(method, case, comparison)
        if case.keys() >= FIRST_STAGE:
            compare_training(method, case, comparison)
        if case.keys() >= INFERENCE:
            compare_labels(method, case, comparison)
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        raise InputError(f"does not fit the weights: {error}") from error
    if not comparison.quantities:
        raise InputError("holds no inputs of an OVSegmentor case with what came of them")
    inputs = FIRST_STAGE | SECOND_STAGE | INFERENCE
    usual = inputs | {*LOSSES.values(), TOTAL, *(f"encoder/{part}" for part in ("group_features", "soft_assignment", "q", "k"))}
    left = case.keys() - inputs - {quantity.name for quantity in comparison.quantities}
    comparison.notes += [f"absent: {key}" for key in sorted(usual - case.keys())]
    for key in sorted(left):
        known = key in usual or key.startswith(("grad/", LABEL_MAP, SCORE_MAP))
        comparison.notes.append(f"{'not compared, for its inputs are absent' if known else 'not known, not compared'}: {key}")
    return comparison


@torch.no_grad()
def compare_encoder(method: OvSegmentor, case: Arrays, comparison: Comparison) -> None:
    """Group features and what the binding is made of."""
    groups = method.encoder(tensor(case["image"]))
    found = {
        "group_features": groups.features,
        "soft_assignment": groups.binding.logits.softmax(dim=1),
        "q": groups.binding.q,
        "k": groups.binding.k,
    }
    for name, value in found.items():
        if (key := f"encoder/{name}") in case:
            add(comparison, key, value, case, MAP)


def compare_training(method: OvSegmentor, case: Arrays, comparison: Comparison) -> None:
    """The losses of the case's batch, and the gradients of their weighted sum that it holds."""
    given = {name: case[key] for name, key in TEXTS.items()}
    partner = None
    if case.keys() >= SECOND_STAGE:
        given["prompt"] = case["entity_features"]
        partner = tensor(case["cross_image"])
    image, texts = tensor(case["image"]), {name: as_texts(value) for name, value in given.items()}
    losses = method.losses_from(method.encode_images(image, partner), texts, image)
    total = sum((MASK_WEIGHT if name == "mask" else 1.0) * loss for name, loss in losses.items())
    named = {LOSSES[name]: loss for name, loss in losses.items()}
    whole = partner is not None or "loss/mask" not in case
    for key, loss in (named | ({TOTAL: total} if whole else {})).items():
        if key in case:
            add(comparison, key, loss.detach(), case, LOSS, NOTHING[0])
    if whole:
        compare_gradients(method, total, case, comparison)


def as_texts(array: np.ndarray) -> Texts:
    """Last hidden states as a text tower gives them: no padding, the first token stands for the sentence."""
    features = tensor(array)
    return Texts(features, torch.ones(features.shape[:2], dtype=torch.bool), torch.zeros(len(features), dtype=torch.int64))


def compare_gradients(method: OvSegmentor, total: Tensor, case: Arrays, comparison: Comparison) -> None:
    """Gradients by official names: zero for what the loss does not reach, what the official code never reads included."""
    names = {f"grad/{official}": name for name, official in official_names(method).items()}
    wanted = [key for key in case if key.startswith("grad/")]
    unused = layout_of(method).unused
    foreign = [key for key in wanted if key not in names and not any(part in key for part in unused)]
    if foreign:
        raise InputError(f"{foreign[0]}: no such parameter in the weights")
    parameters = dict(method.named_parameters())
    gradients = dict(zip(parameters, torch.autograd.grad(total, [*parameters.values()], materialize_grads=True), strict=True))
    whole = torch.stack([gradient.nan_to_num(0.0).norm() for gradient in gradients.values()]).norm().item()
    for key in wanted:
        gradient = gradients.get(names.get(key, ""), torch.zeros(case[key].shape))
        add(comparison, key, gradient, case, GRADIENT, max(NOTHING[1], ROUNDING * whole))


def compare_labels(method: OvSegmentor, case: Arrays, comparison: Comparison) -> None:
    """Labels and winning scores of the case's own image, with and without background."""
    image, texts = tensor(case["infer/image"]), tensor(case["infer/text_embeddings"])
    modes = {key.removeprefix(prefix) for key in case for prefix in (LABEL_MAP, SCORE_MAP) if key.startswith(prefix)}
    for mode in sorted(modes):
        threshold = threshold_of(mode)
        if threshold is not None:
            method.config = replace(method.config, background_threshold=threshold)
        best, labels = method.segment(image, texts, background=threshold is not None)[0].max(dim=0)
        if LABEL_MAP + mode in case:
            comparison.add_labels(LABEL_MAP + mode, labels, tensor(case[LABEL_MAP + mode]), LABELS)
        if SCORE_MAP + mode in case:
            comparison.add(SCORE_MAP + mode, best[::STRIDE, ::STRIDE], tensor(case[SCORE_MAP + mode]), MAP)


def threshold_of(mode: str) -> float | None:
    """The background threshold in a mode's name, None without background. Raises InputError for another mode."""
    if mode == "no_background":
        return None
    try:
        return float(mode.removeprefix("background_"))
    except ValueError:
        raise InputError(f"infer/*_{mode}: modes are no_background and background_<threshold>") from None


def add(comparison: Comparison, key: str, found: Tensor, case: Arrays, tolerance: float, nothing: float | None = None) -> None:
    """Compare with the case's array of that name. Axes of length 1 do not count: official shapes have some more."""
    expected = tensor(case[key])
    if [size for size in found.shape if size != 1] == [size for size in expected.shape if size != 1]:
        found = found.reshape(expected.shape)
    comparison.add(key, found, expected, tolerance, nothing)
