"""The frozen image tower: any timm ViT with a class token, with or without registers and rotated positions."""

from typing import NamedTuple

import torch
from torch import Tensor

from owseg import InputError
from owseg.frozen_tower import FrozenTower, TowerSettings
from owseg.methods.talk2dino.attention import Attended, class_attention
from owseg.vit import trial_image

SUCH_AS = "choose one such as vit_base_patch14_reg4_dinov2.lvd142m or vit_base_patch16_dinov3.lvd1689m"


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
                f"{self.key}.image_tower: {model} has no class token, whose attention says what an image is about; {SUCH_AS}"
            )
        for module in self.vit.modules():
            if hasattr(module, "fused_attn"):  # attention is read where torch computes it, also with TIMM_FUSED_ATTN=0
                module.fused_attn = True
        image = trial_image(self.patch_size)
        with Attended() as last:
            tokens = self.prefix + self.patches(image).shape[1]
        if last.calls != len(self.vit.blocks) or last.query.shape[2] != tokens:
            raise InputError(f"{self.key}.image_tower: the attention of {model}'s last block cannot be read; {SUCH_AS}")
        self.heads: int = last.query.shape[1]

    @torch.no_grad()
    def forward(self, image: Tensor) -> Seen:
        """Patches and attention of images [B, 3, H, W], normalised as the tower was trained; H and W multiples of the patch."""
        with Attended() as last:
            patches = self.patches(image)
        return Seen(patches, class_attention(last.query, last.key, self.prefix), self.grid(image))
