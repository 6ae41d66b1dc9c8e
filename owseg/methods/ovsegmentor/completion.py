"""Masked entity completion: groups of an image answer for what a caption no longer names (OVSegmentor, section 3.3)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from owseg.methods.ovsegmentor.grouping import CrossAttentionBlock, Mlp
from owseg.methods.ovsegmentor.text_tower import Texts


class SelfAttention(nn.Module):
    """Multi-head self-attention of which one token's output is wanted."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, position: Tensor, mask: Tensor | None) -> Tensor:
        """Tokens [B, L, C] → what the one at `position` [B] reads, [B, C]. mask: [B, L], true where it may look."""
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in self.qkv(tokens).chunk(3, dim=-1))
        q = q[torch.arange(len(tokens), device=tokens.device), :, position, None]
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask[:, None, None])
        out: Tensor = self.proj(read.flatten(1))
        return out


class SingleTokenBlock(nn.Module):
    """A pre-norm ViT block of which one token's output is wanted: beyond keys and values the rest are left out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width, width)

    def forward(self, tokens: Tensor, position: Tensor, mask: Tensor | None) -> Tensor:
        """As `SelfAttention`: [B, L, C] → [B, C]."""
        x = tokens[torch.arange(len(tokens), device=tokens.device), position]
        x = x + self.attn(self.norm1(tokens), position, mask)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class EntityCompletion(nn.Module):
    """A decoder block: the tokens of a text without its entities read an image's groups, then one another.

    Submodules are named as in the official checkpoint, under `multimodal_groupingblock.blocks.0`; its `assign.*` are dead.
    """

    def __init__(self, width: int, heads: int, text_width: int) -> None:
        """width: of the groups and the result; text_width: of the text's tokens, aligned to it where it is another."""
        super().__init__()
        self.align = nn.Linear(text_width, width) if text_width != width else nn.Identity()
        self.norm_tokens = nn.LayerNorm(width)
        self.norm_x = nn.LayerNorm(width)
        self.pre_assign_attn = CrossAttentionBlock(width, heads)
        self.post_attn = SingleTokenBlock(width, heads)
        self.norm_new_x = nn.LayerNorm(width)

    def forward(self, question: Texts, groups: Tensor, *, ignore_padding: bool) -> Tensor:
        """What the question's sentence token [B, C] has come to after reading groups [B, K, C].

        ignore_padding: padding is attended to like any token, as in the official code, which passes masks that nothing reads.
        """
        tokens = self.norm_tokens(self.align(question.features))
        tokens = self.pre_assign_attn(tokens, self.norm_x(groups))
        read = self.post_attn(tokens, question.position, None if ignore_padding else question.real)
        own = tokens[torch.arange(len(tokens), device=tokens.device), question.position]
        completed: Tensor = self.norm_new_x(read + own)
        return completed
