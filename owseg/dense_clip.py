"""Frozen CLIP read densely: what the training-free methods have in common, whatever they make of its patches."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from owseg.encoders import Encoder, pad_to_multiple
from owseg.text import embed_prompts, prompt_templates


class DenseSettings(Protocol):
    """What such a method's settings say of class names and background."""

    @property
    def templates(self) -> str: ...
    @property
    def unit_prompts(self) -> bool: ...
    @property
    def background_threshold(self) -> float: ...


class DenseClip(nn.Module, ABC):
    """Cosine similarity of dense features in CLIP's joint space with class embeddings."""

    def __init__(self, config: DenseSettings, encoder: Encoder) -> None:
        super().__init__()
        self.config = config
        self.clip, self.tokenize = encoder.clip, encoder.tokenize
        self.background_threshold: float | None = config.background_threshold

    @abstractmethod
    def features(self, image: Tensor) -> Tensor:
        """Joint-space features [B, E, h, w] of images [B, 3, H, W], H and W multiples of CLIP's patch size."""

    def embed_classes(self, names: Sequence[str]) -> Tensor:
        """Unit class embeddings [n, E]; background is not among `names`."""
        templates = prompt_templates(self.config.templates)
        return embed_prompts(self.clip, self.tokenize, names, templates, unit_prompts=self.config.unit_prompts)

    @torch.no_grad()
    def segment(self, image: Tensor, classes: Tensor, background: bool) -> Tensor:
        """Scores [B, n, H, W] of windows [B, 3, H, W]; with `background` a constant plane comes first: [B, 1 + n, H, W]."""
        padded, (top, left) = pad_to_multiple(image, self.clip.visual.patch_size)
        scores = torch.einsum("behw,ne->bnhw", F.normalize(self.features(padded), dim=1), classes)
        scores = F.interpolate(scores, size=padded.shape[-2:], mode="bilinear", align_corners=False)
        scores = scores[..., top : top + image.shape[-2], left : left + image.shape[-1]]
        return F.pad(scores, (0, 0, 0, 0, 1, 0), value=self.config.background_threshold) if background else scores
