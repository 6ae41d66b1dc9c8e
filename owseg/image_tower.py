"""An image tower that learns: a timm ViT with a class token, from scratch or begun with pretrained weights."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from owseg import InputError
from owseg.vit import VitSize, fill_vit, timm_vit

WIDTH_OF_INIT = 768
"""The width for which timm's initial weights are spread."""


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

    def __init__(self, model: str, size: VitSize, key: str) -> None:
        """Random weights; `key`: where the method's settings stand.

        Raises InputError where timm has no such plain ViT with a class token, or not in this size.
        """
        super().__init__()
        self.key = key
        self.vit: Any = timm_vit(
            model, f"{key}.image_tower", num_classes=0, global_pool="token", dynamic_img_size=True, **size.arguments()
        )
        if self.vit.cls_token is None:
            raise InputError(f"{key}.image_tower: {model} has no class token; choose one such as vit_base_patch16_224")
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
        fill_vit(self.vit, model, weights, tower=f"{self.key}.image_tower", file=f"{self.key}.image_weights")
