"""Pixel-adaptive mask refinement (PAMR; Araslanov & Roth, CVPR 2020, 2005.08104), as TCL runs it."""

import torch
import torch.nn.functional as F
from torch import Tensor

DILATIONS = (1, 2, 4, 8, 12, 24)
"""Each gives eight neighbours: a 3 x 3 window whose pixels lie this far apart."""


@torch.no_grad()
def pamr(image: Tensor, masks: Tensor, steps: int = 10) -> Tensor:
    """Masks drawn to the image's edges: each pixel becomes a weighted mean of its 48 neighbours, `steps` times.

    image: [B, 3, H, W], any affine normalisation; masks: [B, n, h, w] → [B, n, h, w], range and constant masks kept.
    """
    batch, classes, height, width = masks.shape
    image = F.interpolate(image, size=(height, width), mode="bilinear", align_corners=True)
    index = neighbours(height, width).to(masks.device)
    weights = affinities(image, index).flatten(0, 1).to(masks.dtype)
    first = torch.arange(batch, dtype=index.dtype, device=index.device) * (height * width)
    index = (index + first[:, None, None]).flatten(0, 1)
    # Pixels as rows, classes as columns: a step is a bag of 48 weighted rows, which no [n * 48, h, w] tensor precedes.
    rows = masks.permute(0, 2, 3, 1).reshape(-1, classes).contiguous()
    for _ in range(steps):
        rows = F.embedding_bag(index, rows, mode="sum", per_sample_weights=weights)
    return rows.view(batch, height, width, classes).permute(0, 3, 1, 2)


def neighbours(height: int, width: int) -> Tensor:
    """Row-major positions [h * w, 48] (int32) of every pixel's neighbours; beyond a border lies the nearest border pixel."""
    reach = torch.tensor([(d * y, d * x) for d in DILATIONS for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)])
    rows = (torch.arange(height)[:, None] + reach[:, 0]).clamp(0, height - 1)
    columns = (torch.arange(width)[:, None] + reach[:, 1]).clamp(0, width - 1)
    return (rows[:, None] * width + columns[None]).flatten(0, 1).int()


def affinities(image: Tensor, index: Tensor) -> Tensor:
    """Weights [B, h * w, 48] of the neighbours `index` [h * w, 48] of the pixels of [B, 3, h, w]; each row sums to one.

    A neighbour counts less the more its colour differs, measured in standard deviations of the neighbourhood: the nine
    pixels of each of the six dilated windows, the centre thus six times.
    """
    pixels = image.float().flatten(2)
    centre, near = pixels[..., None], pixels[..., index.long()]
    spread = torch.cat([near, centre.expand(-1, -1, -1, len(DILATIONS))], dim=-1).std(dim=-1, keepdim=True)
    likeness = -(near - centre).abs() / (1e-8 + 0.1 * spread)
    return torch.softmax(likeness.mean(dim=1), dim=-1)
