"""A frozen self-supervised ViT that a method is built around: which one, and its patches."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from owseg.encoders import PRETRAIN
from owseg.fields import setting
from owseg.method_config import MethodConfig
from owseg.vit import VitSize, create_vit, fill_vit, tried_patch


@dataclass(frozen=True, kw_only=True)
class TowerSettings(MethodConfig):
    """What a method with such a tower says of it."""

    image_tower: str
    """timm's name of a ViT, with the tag of its weights."""
    image_size: VitSize = VitSize()
    """Its sizes, where they are not the model's."""
    image_weights: str = setting("", local_path=True)
    """File of its weights, in timm's names or DINO's; empty: timm's own; "pretrain": the run trains it first (method dino)."""

    @property
    def tower_of_run(self) -> bool:
        """Whether the run trains the tower."""
        return self.image_weights == PRETRAIN

    @property
    def tower_supervision(self) -> str:
        """What the tower is learned from, in the words of the comparison table."""
        return "self-supervised images of the run" if self.tower_of_run else "self-supervised image tower"

    def with_tower(self, model: str, size: VitSize, weights: Path) -> Self:
        """The settings with another tower, whose weights lie in a file."""
        return replace(self, image_tower=model, image_size=size, image_weights=str(weights))


class FrozenTower(nn.Module):
    """A ViT that takes images of any size that its patches divide. It never learns."""

    def __init__(self, settings: TowerSettings) -> None:
        """Random weights. Raises InputError where timm has no such ViT, or it has not one token for each patch."""
        super().__init__()
        self.model, self.key = settings.image_tower, f"method_settings.{settings.name}"
        sizes = settings.image_size.arguments()
        self.vit: Any = create_vit(
            self.model, f"{self.key}.image_tower", num_classes=0, global_pool="", dynamic_img_size=True, **sizes
        )
        self.vit.requires_grad_(False)
        self.patch_size = tried_patch(self.vit, self.model, self.key)
        self.width: int = self.vit.embed_dim
        self.prefix: int = self.vit.num_prefix_tokens

    @torch.no_grad()
    def patches(self, image: Tensor) -> Tensor:
        """Patches [B, P, C] after the last norm, row-major, of images [B, 3, H, W], H and W multiples of the patch."""
        tokens: Tensor = self.vit.forward_features(image)
        return tokens[:, self.prefix :]

    def grid(self, image: Tensor) -> tuple[int, int]:
        """(h, w) of an image's patches."""
        return image.shape[-2] // self.patch_size, image.shape[-1] // self.patch_size

    def load(self, weights: str) -> None:
        """Fill in timm's pretrained weights, or those of a file. Raises InputError where they cannot be had or do not fit."""
        fill_vit(self.vit, self.model, weights, tower=f"{self.key}.image_tower", file=f"{self.key}.image_weights")
