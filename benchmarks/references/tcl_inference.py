"""TCL's inference as its formulas read: one window at a time, every map at full size, the tower twice.

The measuring stick of benchmarks/inference.py, benchmarks/pamr.py and tests/owseg/methods/tcl/test_inference.py. It shares
the weights of a Tcl with the package, and no line of code: the order of work is the official one, and nothing is saved or
reordered.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from owseg.methods.tcl import Tcl

DILATIONS = (1, 2, 4, 8, 12, 24)
WINDOW, STRIDE, LONG_SIDE = 448, 224, 2048
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def tokens_of(visual: Any, image: Tensor, last: Any) -> Tensor:
    """Patch tokens as a map [1, C, h, w] after all blocks; in the last one, `last`, tokens attend to themselves alone."""
    x = visual.conv1(image)
    _, channels, height, width = x.shape
    x = torch.cat([visual.class_embedding.expand(1, 1, -1), x.flatten(2).transpose(1, 2)], dim=1)
    positions = visual.positional_embedding
    if (height, width) != tuple(visual.grid_size):
        grid = positions[1:].T.reshape(1, channels, *visual.grid_size)
        grid = F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)
        positions = torch.cat([positions[:1], grid.flatten(2)[0].T])
    x = visual.ln_pre(x + positions)
    for block in visual.transformer.resblocks[:-1]:
        x = block(x)
    alone = torch.full((x.shape[1], x.shape[1]), float("-inf")).fill_diagonal_(0)
    return last(x, attn_mask=alone)[:, 1:].transpose(1, 2).reshape(1, channels, height, width)


def gated(layer: Any, x: Tensor) -> Tensor:
    """x + tanh(g) * Conv3x3(GELU(LayerNorm(x))) on [1, C, H, W]."""
    normed = F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), layer.norm.weight, layer.norm.bias, 1e-5).permute(0, 3, 1, 2)
    update = F.conv2d(F.gelu(normed.contiguous()), layer.conv.weight, layer.conv.bias, padding=1)
    return x + torch.tanh(layer.gate) * update


def project(x: Tensor, norm: Any, matrix: Tensor) -> Tensor:
    """LayerNorm over channels, then a matrix: [1, C, H, W] → [1, E, H, W]."""
    x = F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), norm.weight, norm.bias, norm.eps) @ matrix
    return x.permute(0, 3, 1, 2).contiguous()


def cosine(features: Tensor, texts: Tensor) -> Tensor:
    """[1, E, H, W] and [n, E] → [1, n, H, W]."""
    features = features / features.norm(dim=1, keepdim=True).clamp_min(1e-6)
    texts = texts / texts.norm(dim=1, keepdim=True).clamp_min(1e-6)
    return torch.einsum("behw,ne->bnhw", features, texts)


def neighbourhood(x: Tensor, *, centre: bool) -> Tensor:
    """[1, n, h, w] → [1, n, 48 or 54, h, w]: the 3 x 3 windows of all dilations, without or with their centre."""
    _, channels, height, width = x.shape
    windows = []
    for dilation in DILATIONS:
        padded = F.pad(x, (dilation,) * 4, mode="replicate")
        window = F.unfold(padded, 3, dilation=dilation).view(1, channels, 9, height, width)
        windows.append(window if centre else torch.cat([window[:, :, :4], window[:, :, 5:]], dim=2))
    return torch.cat(windows, dim=2)


def pamr(image: Tensor, masks: Tensor, steps: int = 10) -> Tensor:
    """Pixel-adaptive mask refinement of [1, n, h, w] by the formula, all neighbours of all masks at once."""
    image = F.interpolate(image, size=masks.shape[-2:], mode="bilinear", align_corners=True)
    deviation = neighbourhood(image, centre=True).std(dim=2, keepdim=True)
    affinity = -(image[:, :, None] - neighbourhood(image, centre=False)).abs() / (1e-8 + 0.1 * deviation)
    weights = affinity.mean(dim=1, keepdim=True).softmax(dim=2)
    for _ in range(steps):
        masks = (neighbourhood(masks, centre=False) * weights).sum(dim=2)
    return masks


def segment(method: Tcl, image: Tensor, classes: Tensor, *, refine: bool, kp: float = 0.3, kp_shift: float = 0.25) -> Tensor:
    """Masks [1, n, H, W] of one window [1, 3, H, W]."""
    height, width = image.shape[-2:]
    visual = method.clip.visual
    below, right = -height % visual.patch_size[0], -width % visual.patch_size[1]
    padded = F.pad(image, (right // 2, right - right // 2, below // 2, below - below // 2))

    x = tokens_of(visual, padded, method.block)
    for stage in method.decoder.stages:
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        for layer in stage:
            x = gated(layer, x)
    similarity = cosine(project(x, method.projection.ln, method.projection.proj), classes)
    masks = torch.sigmoid(method.mask_scale * similarity + method.mask_shift)
    if refine:
        masks = pamr(padded, masks)
    if kp:
        x = tokens_of(visual, padded, visual.transformer.resblocks[-1])
        own = torch.sigmoid((cosine(project(x, visual.ln_post, visual.proj), classes) - kp_shift) * 10)
        masks = kp * F.interpolate(own, size=masks.shape[-2:], mode="bilinear", align_corners=False) + (1 - kp) * masks
    masks = F.interpolate(masks, size=padded.shape[-2:], mode="bilinear", align_corners=False)
    return masks[..., below // 2 : below // 2 + height, right // 2 : right // 2 + width]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """An image's result: scores [n or 1 + n, h, w] at the scaled size and labels [H, W] at its own."""

    scores: Tensor
    labels: np.ndarray


@torch.no_grad()
def predict(
    method: Tcl, image: np.ndarray, classes: Tensor, *, refine: bool, background: bool, short_side: int = 448
) -> Prediction:
    """An RGB image [H, W, 3] uint8 under TCL's protocol: scale, slide, average, upsample, softmax, argmax."""
    height, width = image.shape[:2]
    factor = min(LONG_SIDE / max(height, width), short_side / min(height, width))
    scaled = cv2.resize(image, (int(width * factor + 0.5), int(height * factor + 0.5)), interpolation=cv2.INTER_LINEAR)
    pixels = (scaled.astype(np.float32) - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    tensor = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None]
    high, wide = tensor.shape[-2:]
    planes = len(classes) + background
    total, count = torch.zeros(1, planes, high, wide), torch.zeros(1, 1, high, wide)
    for top in starts(high):
        for left in starts(wide):
            window = (..., slice(top, top + WINDOW), slice(left, left + WINDOW))
            masks = segment(method, tensor[window], classes, refine=refine)
            if background:
                plane = torch.full_like(masks[:, :1], 0.4 if refine else 0.5)
                masks = torch.cat([plane, masks], dim=1)
            total[window] += masks
            count[window] += 1
    scores = total / count
    full = F.interpolate(scores, size=(height, width), mode="bilinear", align_corners=False)
    return Prediction(scores=scores[0], labels=full.softmax(dim=1).argmax(dim=1)[0].numpy())


def starts(length: int) -> list[int]:
    """Where windows begin along an axis; the last one ends at the border."""
    return [min(i * STRIDE, max(length - WINDOW, 0)) for i in range(max(length - WINDOW + STRIDE - 1, 0) // STRIDE + 1)]
