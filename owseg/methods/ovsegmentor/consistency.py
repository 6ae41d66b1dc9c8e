"""Cross-image mask consistency: groups of one image must divide up another that shares an entity (OVSegmentor, section 3.4).

The loss compares maps that are upsampled from patches to pixels. Upsampling is linear, up(m) = A m A' with a fixed A whose rows
sum to 1, so its sums and products over pixels are those of patches under fixed weights, <up(m), t> = <m, A' t A>, and only
finding which pixels of a target pass its threshold takes the full size, which no gradient needs.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from owseg.methods.ovsegmentor.grouping import Binding, assignment_logits

GATED = 0.5
"""The share of an image's groups, those least relevant to the shared entity, that learn nothing from it."""
THRESHOLD = 0.6
"""A target covers the pixels whose probability is at least this much of its largest."""
PAPER_SCALE = 128 / 8
"""The official loss sums over a rank's batch and divides by the groups: this times the mean at the paper's 128 and 8."""
FLAT = 1e-6
"""A map is constant where it varies by no more than this share of its largest value: beyond float32."""


class Upsampling(NamedTuple):
    """Bilinear interpolation of maps [..., h, w] to [..., H, W], corners aligned, as a product from both sides."""

    rows: Tensor
    """[H, h]"""
    columns: Tensor
    """[W, w]"""

    def __call__(self, maps: Tensor) -> Tensor:
        return self.rows @ (maps @ self.columns.T)

    def back(self, maps: Tensor) -> Tensor:
        """The transpose: [..., H, W] → [..., h, w]."""
        return self.rows.T @ maps @ self.columns


def upsampling(grid: tuple[int, int], size: tuple[int, int], like: Tensor) -> tuple[Upsampling, Upsampling]:
    """From a grid (h, w) of patches to an image (H, W): to all its pixels, and to the few that can be extreme.

    Between four neighbouring patches an upsampled map is bilinear, so its extremes there lie at the corners of the pixels
    between them. The matrices are of like's type and device.
    """
    pixels = [
        F.interpolate(torch.eye(short, dtype=like.dtype)[None], size=long, mode="linear", align_corners=True)[0].T
        for short, long in zip(grid, size, strict=True)
    ]
    return Upsampling(*(x.to(like) for x in pixels)), Upsampling(*(_ends(x).to(like) for x in pixels))


def _ends(matrix: Tensor) -> Tensor:
    """The rows of an interpolation that are the first or the last between their two patches."""
    between = (matrix > 0).int().argmax(dim=1)
    changes = F.pad(between.diff() != 0, (1, 1), value=True)
    return matrix[changes[:-1] | changes[1:]]


@torch.no_grad()
def match(predicted: Tensor, target: Tensor, pixels: Upsampling) -> Tensor:
    """For each predicted map [B, K, h, w] the number [B, K] of its target map, one to one, at the least total distance.

    The distance is that of upsampled maps of unit length. It is taken in float64: squares of near maps cancel.
    """
    from scipy.optimize import linear_sum_assignment  # takes a moment, and settings are read without it

    predicted, target = predicted.double(), target.double()
    rows, columns = (matrix.double().T @ matrix.double() for matrix in pixels)
    weighted = rows @ target @ columns
    own, their = ((maps * (rows @ maps @ columns)).sum(dim=(-2, -1)).clamp(min=1e-24).sqrt() for maps in (predicted, target))
    products = torch.einsum("bihw,bjhw->bij", predicted, weighted) / (own[:, :, None] * their[:, None])
    # A map that is no number is as far as any from all, so that a run that diverges shows it in its loss.
    distances = (2 - 2 * products).clamp(min=0).sqrt().nan_to_num(nan=2.0).cpu().numpy()
    return torch.from_numpy(np.stack([linear_sum_assignment(of_sample)[1] for of_sample in distances])).to(predicted.device)


@torch.no_grad()
def covered(target: Tensor, pixels: Upsampling, corners: Upsampling) -> Tensor:
    """The pixels that targets [B, K, h, w] cover, 0/1, brought back to patches [B, K, h, w]."""
    largest = corners(target).amax(dim=(-2, -1), keepdim=True)
    threshold = torch.logit(THRESHOLD * torch.sigmoid(largest))  # of logits, which saves the probability of every pixel
    return pixels.back(pixels(target).ge_(threshold))


def stretched(maps: Tensor, corners: Upsampling, constant: float) -> Tensor:
    """Maps [B, K, h, w] such that, upsampled, each runs from 0 to 1; those that are constant are scaled by `constant`."""
    extremes = corners(maps).flatten(-2)
    low, high = extremes.min(dim=-1).values[..., None, None], extremes.max(dim=-1).values[..., None, None]
    flat = high - low <= FLAT * maps.abs().amax(dim=(-2, -1), keepdim=True)
    return (maps - low) * torch.where(flat, constant, 1 / (high - low).masked_fill(flat, 1.0))


def dice(predicted: Tensor, target: Tensor, pixels: Upsampling) -> Tensor:
    """Dice distance [B], over all maps of a sample together, each sum over pixels and smoothed by 1.

    predicted: [B, K, h, w], to be upsampled; target: as `covered` returns it.
    """
    area = torch.outer(pixels.rows.sum(dim=0), pixels.columns.sum(dim=0))
    both, own, other = (x.sum(dim=(1, 2, 3)) for x in (predicted * target, predicted * area, target))
    return 1 - (2 * both + 1) / (own + other + 1)


def gate(q: Tensor, relevance: Tensor) -> Tensor:
    """Groups [B, K, C], the least relevant ones among them cut off from gradients. relevance: [B, K]."""
    least = relevance.topk(int(relevance.shape[1] * GATED), dim=1, largest=False).indices
    gated = torch.zeros_like(relevance, dtype=torch.bool).scatter_(1, least, True)
    return torch.where(gated[..., None], q.detach(), q)


def mask_consistency(
    q: Tensor, other: Binding, relevance: Tensor, *, grid: tuple[int, int], size: tuple[int, int], official: bool
) -> Tensor:
    """How far groups of one image, on another, are from the groups that a momentum encoder finds there. A scalar.

    q: [B, K, C], an image's groups, which alone learn; other: the other image's binding; relevance: [B, K], of the image's
    groups to the shared entity; grid: of its patches; size: of the image. The matched maps' Dice distances are averaged over
    the batch and scaled as at the paper's batch; a constant map covers nothing. official: they are summed over the batch and
    divided by the number of groups, so that their scale is the batch's, and come to NaN where a map is constant.
    """
    with torch.autocast(q.device.type, enabled=False):
        logits = assignment_logits(gate(q, relevance), other.k.detach()), other.logits.detach()
        predicted, target = (x.reshape(*x.shape[:2], *grid) for x in logits)
        pixels, corners = upsampling(grid, size, predicted)
        targets = covered(target, pixels, corners)
        matching = match(predicted, target, pixels)[..., None, None].expand_as(targets)
        distances = dice(stretched(predicted, corners, math.nan if official else 0.0), targets.gather(1, matching), pixels)
    return distances.sum() / q.shape[1] if official else distances.mean() * PAPER_SCALE
