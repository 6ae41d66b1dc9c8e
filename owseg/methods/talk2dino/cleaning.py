"""Background cleaning: scores are raised where the heads that speak of a class look (official `with_bg_clean`)."""

import torch.nn.functional as F
from torch import Tensor


def cleaned(scores: Tensor, logits: Tensor, patches: Tensor, classes: Tensor, weight: float) -> Tensor:
    """Scores [B, n, P] of patches, mixed with where each class's heads look: (scores + weight * map) / (1 + weight).

    logits: [B, M, P] of the class token's attention, without a softmax; patches: [B, P, C], not normalised; classes: [n, C],
    unit. Each image's maps are shifted and scaled together, to lie within its scores. Official code takes one image at a time.
    """
    heads = F.normalize(logits @ patches / patches.shape[1], dim=-1)
    share = (classes @ heads.transpose(1, 2)).softmax(dim=-1)
    maps = (share @ logits).softmax(dim=-1)
    low, high = _extremes(maps)
    least, most = _extremes(scores)
    maps = (maps - low) / high * (most - least) + least  # by the greatest, not by the range (official)
    return (scores + weight * maps) / (1 + weight)


def _extremes(maps: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the greatest [B, 1, 1] of maps [B, n, P]."""
    return maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
