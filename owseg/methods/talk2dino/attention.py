"""What each head of a ViT's last block looks at: the class token's attention, and images embedded once for each head."""

import torch.nn.functional as F
from torch import Tensor

SCALE = 64**-0.5
"""What queries times keys are multiplied with: that of heads 64 wide, whatever a tower's are (official)."""


def class_attention(qkv: Tensor, heads: int, prefix: int) -> Tensor:
    """Logits [B, M, P] of the class token's query against the patches' keys, before any softmax.

    qkv: [B, G + P, 3 C], what the last block's fused projection makes of its tokens: queries, keys and values side by side,
    the class token first. heads: M, prefix: G, the tokens that are no patches (class token and registers).
    """
    query, key, _ = qkv.reshape(*qkv.shape[:-1], 3, heads, -1).unbind(dim=-3)
    logits: Tensor = SCALE * (key[:, prefix:] * query[:, :1]).sum(dim=-1).transpose(1, 2)
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
