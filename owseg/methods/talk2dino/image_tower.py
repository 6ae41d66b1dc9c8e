"""The frozen image tower: any timm ViT with a class token, with or without registers."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from owseg import InputError
from owseg.frozen_tower import FrozenTower, TowerSettings
from owseg.methods.talk2dino.attention import class_attention


class Seen(NamedTuple):
    """What the tower makes of images."""

    patches: Tensor
    """[B, P, C] after the last norm, row-major."""
    attention: Tensor
    """[B, M, P]: logits of the last block's class token against its patches, by head."""
    grid: tuple[int, int]
    """(h, w) of the patches."""


class ImageTower(FrozenTower):
    """A frozen ViT whose class token says what an image is about."""

    def __init__(self, settings: TowerSettings) -> None:
        """Random weights. Raises InputError where timm has no such ViT, or its last block's attention cannot be read."""
        super().__init__(settings)
        model = settings.image_tower
        if getattr(self.vit, "cls_token", None) is None:
            raise InputError(
                f"{self.key}.image_tower: {model} has no class token, whose attention says what an image is about; "
                "choose one such as vit_base_patch14_reg4_dinov2.lvd142m"
            )
        attention: Any = getattr(self.vit.blocks[-1], "attn", None)
        if not isinstance(getattr(attention, "qkv", None), nn.Linear):
            raise InputError(f"{self.key}.image_tower: the last block of {model} has no fused query-key-value layer to be read")
        self.heads: int = attention.num_heads

    @torch.no_grad()
    def forward(self, image: Tensor) -> Seen:
        """Patches and attention of images [B, 3, H, W], normalised as the tower was trained; H and W multiples of the patch."""
        projected: list[Tensor] = []
        hook = self.vit.blocks[-1].attn.qkv.register_forward_hook(lambda _, __, output: projected.append(output))
        try:
            patches = self.patches(image)
        finally:
            hook.remove()
        return Seen(patches, class_attention(projected[0], self.heads, self.prefix), self.grid(image))
