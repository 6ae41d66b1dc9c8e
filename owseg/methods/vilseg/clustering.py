"""ViL-Seg's online clustering: a head over visual tokens, trained by mutual information between two views of an image.

The loss is IIC's (Ji et al., 1807.06653), its published segmentation code being the reference: the assignments of an image's
pixels and those of its transformed twin, warped back, shall tell as much of each other as they can. In at least float32.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from owseg.losses import at_least_float32, gather
from owseg.noise import uniform

Form = Literal["uncollapsed", "collapsed"]
EPSILON = torch.finfo(torch.float64).eps
"""Smallest probability: entries below it become this constant, as in the reference."""


class Agreement(NamedTuple):
    """How much two views' assignments tell of each other."""

    loss: Tensor
    """[]: minus the (weighted) mutual information in nats, to be minimised."""
    loss_unweighted: Tensor
    """[]: the same with lambda = 1: minus the mutual information itself, from 0 down to -ln C."""
    marginal: Tensor
    """[C]: how often each cluster is used, over everything that was counted; no gradient."""


def agreement(
    p: Tensor,
    q: Tensor,
    mask: Tensor,
    *,
    weight: float = 1.0,
    shifts: int = 0,
    form: Form = "uncollapsed",
    pool: Literal["batch", "image"] = "batch",
) -> Agreement:
    """IIC's segmentation loss of soft assignments p and q [B, C, h, w] that lie in one frame; the batch is that of all ranks.

    mask: [B, h, w], 0 where a pixel does not count (in either view, at its own place). weight: IIC's lambda on the marginal
    terms; above 1 it favours an even use of clusters. shifts: pixels by which p is also moved against q, each way. form: one
    joint over all shifts (collapsed; its normaliser is a constant for the gradient) or one for each, their losses averaged
    (uncollapsed; differentiated through). pool: one joint for the whole batch, or one for each image.
    """
    return agreement_of(joint_counts(p, q, mask, shifts), weight=weight, form=form, pool=pool)


def agreement_of(
    counts: Tensor, *, weight: float = 1.0, form: Form = "uncollapsed", pool: Literal["batch", "image"] = "batch"
) -> Agreement:
    """`agreement` of the `joint_counts` [B, shifts, C, C] of its views."""
    with torch.autocast(counts.device.type, enabled=False):
        counts = gather_sum(counts) if pool == "batch" else counts  # ([B,] shifts, C, C)
        if form == "collapsed":
            counts = counts.sum(dim=-3, keepdim=True)
        total = counts.sum(dim=(-2, -1), keepdim=True).clamp_min(EPSILON)
        joint = counts / (total.detach() if form == "collapsed" else total)
        joint = (joint + joint.transpose(-2, -1)) / 2
        rows, columns = joint.sum(dim=-1, keepdim=True), joint.sum(dim=-2, keepdim=True)
        joint, rows, columns = (probability.clamp_min(EPSILON) for probability in (joint, rows, columns))
        marginals = rows.log() + columns.log()
        weighted, plain = (-(joint * (joint.log() - scale * marginals)).sum(dim=(-2, -1)).mean() for scale in (weight, 1.0))
        pairs = counts.detach().flatten(0, -3).sum(dim=0)
        used = pairs.sum(dim=0) + pairs.sum(dim=1)
        return Agreement(weighted, plain, used / used.sum().clamp_min(EPSILON))


def joint_counts(p: Tensor, q: Tensor, mask: Tensor, shifts: int) -> Tensor:
    """Soft co-occurrence counts [B, (2T + 1)^2, C, C] of assignments [B, C, h, w], for each shift t in {-T..T}^2.

    Entry (i, j) adds p[i, u + t] q[j, u] over the pixels u; beyond the map and the mask [B, h, w] lies nothing.
    """
    with torch.autocast(p.device.type, enabled=False):
        p, q = (view.to(at_least_float32(view)) * mask[:, None] for view in (p, q))
        return _joint_counts(p, q, shifts)


def _joint_counts(p: Tensor, q: Tensor, shifts: int) -> Tensor:
    """Of masked assignments."""
    height, width = q.shape[-2:]
    padded = F.pad(p, (shifts,) * 4)
    moved = [
        padded[..., top : top + height, left : left + width].flatten(2)
        for top in range(2 * shifts + 1)
        for left in range(2 * shifts + 1)
    ]
    return torch.stack([view @ q.flatten(2).transpose(1, 2) for view in moved], dim=1)


def gather_sum(counts: Tensor) -> Tensor:
    """Counts [B, T, C, C] of every image of every rank added up, [T, C, C]. Differentiable, and exact over ranks."""
    return gather(counts.sum(dim=0)[None]).sum(dim=0)


def warp(maps: Tensor, theta: Tensor, *, align_corners: bool = False) -> Tensor:
    """Maps [B, C, h, w] read elsewhere: the result at (x, y) is the map at theta (x, y, 1)^T; bilinear, 0 beyond the map.

    theta: [B, 2, 3]; x to the right, y down, both -1..1 from edge to edge (`align_corners`: from centre to centre of the outer
    pixels, as PyTorch did when IIC was published).
    """
    height, width = maps.shape[-2:]
    grid = F.affine_grid(theta, [len(maps), 1, height, width], align_corners=align_corners)
    read: Tensor = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=align_corners)
    return read


def inverse(theta: Tensor) -> Tensor:
    """The affine maps [B, 2, 3] that undo `theta` [B, 2, 3]."""
    linear = torch.linalg.inv(theta[:, :, :2])
    undone: Tensor = torch.cat([linear, -linear @ theta[:, :, 2:]], dim=2)
    return undone


def random_affine(batch: int, *, degrees: float, scale: float, flip: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Random rotations and scalings about the centre, some mirrored: [B, 2, 3], without translation (as IIC's are).

    degrees: largest angle; scale: largest relative change of size either way; flip: probability of a mirror image.
    """
    angle, zoom, mirror = uniform((batch, 3), device, dtype).T
    angle = (2 * angle - 1) * degrees * (torch.pi / 180)
    zoom = (1 + scale) ** (2 * zoom - 1)
    sign = torch.where(mirror < flip, -1.0, 1.0).to(dtype)
    cosine, sine = angle.cos() * zoom, angle.sin() * zoom
    rows = [sign * cosine, sign * -sine, torch.zeros_like(zoom), sine, cosine, torch.zeros_like(zoom)]
    return torch.stack(rows, dim=1).reshape(batch, 2, 3)


def perplexity(marginal: Tensor) -> Tensor:
    """How many clusters are in use, effectively: exp of the entropy of how often each is used [C]."""
    used: Tensor = torch.special.entr(marginal).sum().exp()
    return used


def clusters_per_image(assignments: Tensor) -> Tensor:
    """The number [B] of clusters that win a pixel somewhere in an image, of soft assignments [B, C, h, w]."""
    clusters = assignments.shape[1]
    winners = F.one_hot(assignments.argmax(dim=1).flatten(1), clusters).amax(dim=1)
    return winners.sum(dim=1).float()
