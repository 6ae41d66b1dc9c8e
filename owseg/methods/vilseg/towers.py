"""ViL-Seg's two towers: a timm ViT, from scratch or begun as DINO's, and a small causal transformer for texts, from scratch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from owseg import InputError
from owseg.text import CLIP_VOCABULARY, Tokenizer, clip_tokenizer
from owseg.vit import VitSize, fill_vit, timm_vit

KEY = "method_settings.vilseg"
WIDTH_OF_INIT = 768
"""The width for which timm's initial weights are spread."""


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


class Tokens(NamedTuple):
    """What the image tower makes of images, after its last LayerNorm."""

    whole: Tensor
    """[B, C]: the class token."""
    patches: Tensor
    """[B, h * w, C], row-major."""
    grid: tuple[int, int]
    """(h, w) of the patches."""


class ImageTower(nn.Module):
    """A timm ViT that takes images of any size that patches divide."""

    def __init__(self, model: str, size: VitSize) -> None:
        """Random weights. Raises InputError where timm has no such plain ViT with a class token, or not in this size."""
        super().__init__()
        self.vit: Any = timm_vit(
            model, f"{KEY}.image_tower", num_classes=0, global_pool="token", dynamic_img_size=True, **size.arguments()
        )
        if self.vit.cls_token is None:
            raise InputError(f"{KEY}.image_tower: {model} has no class token; choose one such as vit_base_patch16_224")
        self.patch_size: int = self.vit.patch_embed.patch_size[0]
        self.width: int = self.vit.embed_dim
        with torch.no_grad():  # timm's spread of 0.02 is right for a width of 768; narrower ones would hardly move at first
            for parameter in self.vit.parameters():
                if parameter.ndim > 1:
                    parameter *= (WIDTH_OF_INIT / self.width) ** 0.5

    def forward(self, image: Tensor) -> Tokens:
        """Tokens of images [B, 3, H, W], H and W multiples of the patch size."""
        tokens = self.vit.forward_features(image)
        grid = (image.shape[-2] // self.patch_size, image.shape[-1] // self.patch_size)
        return Tokens(tokens[:, 0], tokens[:, self.vit.num_prefix_tokens :], grid)

    def load(self, model: str, weights: str) -> None:
        """Fill in timm's pretrained weights of `model` or, where `weights` names one, of a file with timm's or DINO's.

        Positions of another grid are resized, a classifier's head is left aside. Raises InputError where they cannot be had or
        do not fit.
        """
        fill_vit(self.vit, model, weights, tower=f"{KEY}.image_tower", file=f"{KEY}.image_weights")


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
