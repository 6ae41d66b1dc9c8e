"""The frozen image tower: any timm ViT with a class token, with or without registers."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from owseg import InputError
from owseg.methods.talk2dino.attention import class_attention
from owseg.vit import VitSize, create_vit, fill_vit

KEY = "method_settings.talk2dino"


class Seen(NamedTuple):
    """What the tower makes of images."""

    patches: Tensor
    """[B, P, C] after the last norm, row-major."""
    attention: Tensor
    """[B, M, P]: logits of the last block's class token against its patches, by head."""
    grid: tuple[int, int]
    """(h, w) of the patches."""


class ImageTower(nn.Module):
    """A ViT that takes images of any size that its patches divide. It never learns."""

    def __init__(self, model: str, size: VitSize) -> None:
        """Random weights. Raises InputError where timm has no such ViT, or its last block's attention cannot be read."""
        super().__init__()
        self.model = model
        self.vit: Any = create_vit(
            model, f"{KEY}.image_tower", num_classes=0, global_pool="", dynamic_img_size=True, **size.arguments()
        )
        if getattr(self.vit, "cls_token", None) is None:
            raise InputError(
                f"{KEY}.image_tower: {model} has no class token, whose attention says what an image is about; "
                "choose one such as vit_base_patch14_reg4_dinov2.lvd142m"
            )
        attention: Any = getattr(self.vit.blocks[-1], "attn", None)
        if not isinstance(getattr(attention, "qkv", None), nn.Linear):
            raise InputError(f"{KEY}.image_tower: the last block of {model} has no fused query-key-value layer to be read")
        self.vit.requires_grad_(False)
        self.patch_size: int = self.vit.patch_embed.patch_size[0]
        self.width: int = self.vit.embed_dim
        self.heads: int = attention.num_heads
        self.prefix: int = self.vit.num_prefix_tokens

    @torch.no_grad()
    def forward(self, image: Tensor) -> Seen:
        """Patches and attention of images [B, 3, H, W], normalised as the tower was trained; H and W multiples of the patch."""
        projected: list[Tensor] = []
        hook = self.vit.blocks[-1].attn.qkv.register_forward_hook(lambda _, __, output: projected.append(output))
        try:
            tokens = self.vit.forward_features(image)
        finally:
            hook.remove()
        grid = (image.shape[-2] // self.patch_size, image.shape[-1] // self.patch_size)
        return Seen(tokens[:, self.prefix :], class_attention(projected[0], self.heads, self.prefix), grid)

    def load(self, weights: str) -> None:
        """Fill in timm's pretrained weights, or those of a file. Raises InputError where they cannot be had or do not fit."""
        fill_vit(self.vit, self.model, weights, tower=f"{KEY}.image_tower", file=f"{KEY}.image_weights")
