"""What each head of a ViT's last block looks at: the class token's attention, and images embedded once for each head."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

SCALE = 64**-0.5
"""What queries times keys are multiplied with: that of heads 64 wide, whatever a tower's are (official)."""


class Attended(TorchFunctionMode):
    """Keeps what the last attention computed inside it compares: queries and keys as they are, normalised and rotated."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.query = self.key = torch.empty(0, 0, 0, 0)
        """[B, M, G + P, D]."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.scaled_dot_product_attention:
            self.calls += 1
            self.query, self.key = args[:2]
        return function(*args, **(kwargs or {}))


def class_attention(query: Tensor, key: Tensor, prefix: int) -> Tensor:
    """Logits [B, M, P] of the class token's query against the patches' keys, before any softmax.

    query, key: [B, M, G + P, D], as the last block's attention compares them, the class token first. prefix: G, the tokens that
    are no patches (class token and registers).
    """
    logits: Tensor = SCALE * (key[:, :, prefix:] * query[:, :, :1]).sum(dim=-1)
    return logits


def head_embeddings(logits: Tensor, patches: Tensor) -> Tensor:
    """An image embedding for each head [B, M, C]: the mean of patches [B, P, C], weighted by its attention [B, M, P].

    The softmax is over patches alone. A mean, not a sum: cosines do not tell the difference.
    """
    return logits.softmax(dim=-1) @ patches / patches.shape[1]


def head_scores(texts: Tensor, heads: Tensor) -> Tensor:
    """Cosines [B, T, M] of each image's texts [B, T, C] with its heads [B, M, C]; any norm."""
    scores: Tensor = F.normalize(texts, dim=-1) @ F.normalize(heads, dim=-1).transpose(1, 2)
    return scores


def heads_for(texts: Tensor, heads: Tensor) -> Tensor:
    """Of each image the head's embedding [B, T, C] that each of its own texts [B, T, C] is closest to. heads: [B, M, C]."""
    chosen = head_scores(texts, heads).argmax(dim=2)
    return heads.gather(1, chosen[:, :, None].expand(-1, -1, heads.shape[2]))
