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


def chosen_heads(texts: Tensor, heads: Tensor) -> Tensor:
    """The head [B] of each image that its own text [B, C] is closest to. heads: [B, M, C]; any norm."""
    return head_scores(texts, heads).argmax(dim=1)


def head_scores(texts: Tensor, heads: Tensor) -> Tensor:
    """Cosines [B, M] of each image's heads [B, M, C] with its own text [B, C]."""
    scores: Tensor = (F.normalize(heads, dim=-1) @ F.normalize(texts, dim=-1)[:, :, None])[..., 0]
    return scores
