"""TCL's training step as its formulas read: maps channels-first, every [B, N, h, w] tensor held, noise for all pairs.

The measuring stick of benchmarks/tcl_step.py and tests/owseg/methods/tcl/test_lean.py. It shares the weights of a Tcl with
the package, and no line of code. One process; the texts of other ranks are an argument.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from owseg.methods.tcl import Tcl


def patch_tokens(visual: Any, image: Tensor) -> Tensor:
    """Tokens [B, 1 + h*w, C] before the first block, on the grid that the tower was built for."""
    x = visual.conv1(image).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
    return visual.ln_pre(x + visual.positional_embedding.to(x.dtype))


def gated(layer: Any, x: Tensor) -> Tensor:
    """tanh(g) * Conv3x3(GELU(LN(x)))."""
    normed = layer.norm(x)
    return torch.tanh(layer.gate) * F.conv2d(F.gelu(normed), layer.conv.weight, layer.conv.bias, padding=1)


def features(method: Tcl, image: Tensor) -> Tensor:
    """V^s [B, E, 4h, 4w]: frozen blocks, the copied block with each token attending to itself, decoder, projection."""
    visual = method.clip.visual
    with torch.no_grad():
        tokens = patch_tokens(visual, image)
        for block in visual.transformer.resblocks[:-1]:
            tokens = block(tokens)
    length = tokens.shape[1]
    alone = torch.full((length, length), float("-inf"), device=image.device).fill_diagonal_(0)
    tokens = method.block(tokens, attn_mask=alone)
    height, width = visual.grid_size
    x = tokens[:, 1:].transpose(1, 2).reshape(len(tokens), -1, height, width)
    for first, second in method.decoder.stages:  # type: ignore[misc]
        x = F.interpolate(x, scale_factor=2)
        x = x + gated(first, x)
        x = x + gated(second, x)
    x = method.projection.ln(x.permute(0, 2, 3, 1)) @ method.projection.proj
    return x.permute(0, 3, 1, 2).contiguous()


def info_nce(similarity: Tensor, columns: Tensor, log_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE; rows and columns [B, N] hold the positive of row i in column i."""
    scale = log_scale.exp().clamp(max=100)
    labels = torch.arange(len(similarity), device=similarity.device)
    return (F.cross_entropy(scale * similarity, labels) + F.cross_entropy(scale * columns, labels)) / 2


def total_variation(x: Tensor) -> Tensor:
    return (x[..., 1:] - x[..., :-1]).abs().mean() + (x[..., 1:, :] - x[..., :-1, :]).abs().mean()


def mask_losses(method: Tcl, v: Tensor, texts: Tensor, own_noise: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """All weighted losses but TCL_v, and the hard masks [B, h, w] of matched pairs.

    v: V^s; texts: unit [N, E], this rank's first; own_noise: uniform [B, h, w], put in the place of what is drawn for matched
    pairs, so that two implementations can be given the same.
    """
    config, batch = method.config, len(v)
    rows = torch.arange(batch, device=v.device)
    similarity = torch.einsum("behw,ne->bnhw", F.normalize(v, dim=1, eps=1e-6), texts)
    logits = method.mask_scale * similarity + method.mask_shift
    masks = torch.sigmoid(logits)

    uniform = torch.rand_like(logits)
    uniform[rows, rows] = own_noise.to(uniform.dtype)
    soft = torch.sigmoid(logits + torch.log(uniform / (1 - uniform)))
    hard = (soft > 0.5).to(soft.dtype) - soft.detach() + soft

    matched = torch.eye(batch, len(texts), dtype=torch.bool, device=v.device)[:, :, None, None]
    positive, negative = masks.masked_select(matched), masks.masked_select(~matched)

    pooled = torch.einsum("behw,bnhw->bne", v, masks) / (masks.sum(dim=(2, 3))[..., None] + 1e-6)
    cosine = torch.einsum("bne,ne->bn", F.normalize(pooled, dim=-1, eps=1e-6), texts)
    losses = {
        "tcl_f": config.tcl_weight * info_nce(cosine, cosine[:, :batch].T, method.tcl_f_scale),
        "area": config.area_weight * (positive.mean() - config.area_prior).abs(),
        "area_negative": config.area_weight * negative.mean().abs(),
        "tv_features": config.tv_weight * total_variation(v),
        "tv_masks": config.tv_weight * total_variation(masks),
    }
    return losses, hard[rows, rows]


def losses(method: Tcl, image: Tensor, tokens: Tensor, others: Tensor, own_noise: Tensor) -> dict[str, Tensor]:
    """The six weighted losses. tokens: [B, context]; others: texts [N - B, E] of other ranks; own_noise: see `mask_losses`."""
    visual = method.clip.visual
    with torch.no_grad():
        text = F.normalize(method.clip.encode_text(tokens), dim=-1, eps=1e-6)
        texts = torch.cat([text, F.normalize(others, dim=-1, eps=1e-6)])
    result, hard = mask_losses(method, features(method, image), texts, own_noise)

    x = patch_tokens(visual, image * F.interpolate(hard[:, None], size=image.shape[-2:]))
    for block in visual.transformer.resblocks:
        x = block(x)
    seen = F.normalize(visual.ln_post(x[:, 0]) @ visual.proj, dim=-1)
    result["tcl_v"] = method.config.tcl_weight * info_nce(seen @ text.T, text @ seen.T, method.tcl_v_scale)
    return result
