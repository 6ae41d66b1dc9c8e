"""Frozen CLIP read densely, with no training at all: the baseline that every trained method must beat."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from owseg import InputError
from owseg.encoders import Encoder, maskclip_features, pad_to_multiple
from owseg.text import TEMPLATES, embed_prompts


@dataclass(frozen=True, kw_only=True)
class ZeroShot:
    """MaskCLIP (2112.01071): the last block's value path gives each patch a feature of the joint space."""

    name: Literal["maskclip"] = "maskclip"
    """Method name."""
    templates: str = "tcl"
    """Prompt templates of class names: simple or tcl."""
    background_threshold: float = 0.25
    """Cosine similarity below which a pixel is background, on sets that have a background class."""

    def __post_init__(self) -> None:
        if self.templates not in TEMPLATES:
            raise InputError(f"templates: {self.templates!r} is none of {', '.join(TEMPLATES)}")

    def build(self, encoder: Encoder) -> "ZeroShotMethod":
        """The method around a frozen encoder."""
        return ZeroShotMethod(self, encoder)


class ZeroShotMethod(nn.Module):
    """Cosine similarity of MaskCLIP features with class embeddings."""

    def __init__(self, config: ZeroShot, encoder: Encoder) -> None:
        super().__init__()
        self.config = config
        self.clip = encoder.clip
        self.tokenize = encoder.tokenize

    def embed_classes(self, names: Sequence[str]) -> Tensor:
        """Unit class embeddings [n, E]; background is not among `names`."""
        return embed_prompts(self.clip, self.tokenize, names, TEMPLATES[self.config.templates])

    @torch.no_grad()
    def segment(self, image: Tensor, classes: Tensor, background: bool) -> Tensor:
        """Scores [B, n, H, W] of windows [B, 3, H, W]; with `background` a constant plane comes first: [B, 1 + n, H, W]."""
        padded, (top, left) = pad_to_multiple(image, self.clip.visual.patch_size)
        features = F.normalize(maskclip_features(self.clip.visual, padded), dim=1)
        scores = torch.einsum("behw,ne->bnhw", features, classes)
        scores = F.interpolate(scores, size=padded.shape[-2:], mode="bilinear", align_corners=False)
        scores = scores[..., top : top + image.shape[-2], left : left + image.shape[-1]]
        return F.pad(scores, (0, 0, 0, 0, 1, 0), value=self.config.background_threshold) if background else scores
