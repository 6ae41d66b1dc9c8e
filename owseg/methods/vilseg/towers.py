"""ViL-Seg's two towers: a timm ViT, from scratch or begun as DINO's, and a small causal transformer for texts, from scratch."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from owseg import InputError
from owseg.text import CLIP_VOCABULARY, Tokenizer, clip_tokenizer

KEY = "method_settings.vilseg"


@dataclass(frozen=True, kw_only=True)
class TextSize:
    """The text tower: a causal transformer over CLIP's byte pairs (GroupViT's sizes by default)."""

    layers: int = 12
    """Blocks."""
    width: int = 256
    """Channels of a token."""
    heads: int = 4
    """Attention heads."""
    context_length: int = 77
    """Tokens of a text, begin and end among them; longer texts are cut."""
    vocabulary: int = CLIP_VOCABULARY
    """CLIP's most frequent byte pairs that are used, at most 49408."""

    def __post_init__(self) -> None:
        for name, least in (("layers", 1), ("width", 1), ("heads", 1), ("context_length", 3)):
            if getattr(self, name) < least:
                raise InputError(f"{name}: {getattr(self, name)} must be at least {least}")
        if self.width % self.heads:
            raise InputError(f"heads: {self.heads} heads do not divide the width {self.width}")
        if not 514 < self.vocabulary <= CLIP_VOCABULARY:
            raise InputError(
                f"vocabulary: {self.vocabulary} must be above 514 (bytes, begin and end) and at most {CLIP_VOCABULARY}"
            )


class TextTower(nn.Module):
    """Texts to one feature each: that of the end-of-text token, as CLIP reads them."""

    def __init__(self, size: TextSize) -> None:
        super().__init__()
        from open_clip.transformer import TextTransformer

        self.tokenize: Tokenizer = clip_tokenizer(size.vocabulary, size.context_length)
        self.width = size.width
        self.transformer = TextTransformer(
            context_length=size.context_length,
            vocab_size=size.vocabulary,
            width=size.width,
            heads=size.heads,
            layers=size.layers,
            output_dim=None,
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Features [B, C] of token ids [B, L]. What follows the longest text's end is not read: no token before sees it."""
        ends = tokens.argmax(dim=1)
        read, of = tokens[:, : int(ends.max()) + 1], self.transformer
        length = read.shape[1]
        x = of.token_embedding(read) + of.positional_embedding[:length]
        x = of.transformer(x, attn_mask=of.attn_mask[:length, :length])
        features: Tensor = of.ln_final(x[torch.arange(len(x), device=x.device), ends])
        return features


def is_dino(model: str) -> bool:
    """Whether a timm ViT's name stands for DINO's weights: it has no tag, or one of theirs, and is no CLIP's architecture."""
    name, _, tag = Path(model).name.partition(".")
    return "clip" not in name and (not tag or tag.startswith("dino"))


def dino_tag(model: str) -> str:
    """timm's name of a ViT's DINO weights; a name that has a tag already keeps it."""
    return model if "." in Path(model).name else f"{model}.dino"
