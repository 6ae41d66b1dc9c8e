"""From clusters to names: ViL-Seg's regions on the pixels of a window, and what the patches below them say together."""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def connected_components(clusters: Tensor) -> Tensor:
    """Clusters [B, H, W] int64 split into connected components, numbered from 0 in each image: [B, H, W] int64."""
    split = [_components(image) for image in clusters.cpu().numpy()]
    return torch.from_numpy(np.stack(split)).to(clusters.device)


def _components(clusters: np.ndarray) -> np.ndarray:
    parts = np.zeros(clusters.shape, dtype=np.int64)
    found = 0
    for cluster in np.unique(clusters):
        mask = clusters == cluster
        number, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        parts[mask] = labels[mask] + (found - 1)  # cv2 numbers from 1, its 0 is what lies outside the mask
        found += number - 1
    return parts


def pool_regions(patches: Tensor, regions: Tensor, patch: int) -> Tensor:
    """Unit embeddings [B, R, E] of regions: the mean of unit patch embeddings, each weighted by its pixels in the region.

    patches: [B, h, w, E], any norm; regions: [B, h * patch, w * patch] int64, 0..R-1. A region without pixels is all zeros.
    """
    batch, height, width, _ = patches.shape
    count = int(regions.max()) + 1
    place = torch.arange(height * width, device=regions.device).reshape(height, width)
    place = place.repeat_interleave(patch, dim=0).repeat_interleave(patch, dim=1)
    pixels = torch.zeros(batch, count * height * width, device=patches.device, dtype=patches.dtype)
    index = (regions * (height * width) + place).flatten(1)
    pixels.scatter_add_(1, index, torch.ones_like(index, dtype=patches.dtype))
    weights = pixels.reshape(batch, count, height * width)
    return F.normalize(weights @ F.normalize(patches, dim=-1).flatten(1, 2), dim=-1)


def paint(scores: Tensor, regions: Tensor) -> Tensor:
    """Scores [B, n, H, W] of pixels: those of the region [B, H, W] that they lie in. scores: [B, R, n]."""
    painted = [image[region] for image, region in zip(scores, regions, strict=True)]
    return torch.stack(painted).permute(0, 3, 1, 2)
