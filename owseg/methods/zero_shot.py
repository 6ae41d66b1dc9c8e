"""Frozen CLIP read densely, with no training at all: the baselines that every trained method must beat."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from owseg import InputError
from owseg.encoders import Encoder, EncoderConfig, Reading, dense_features, pad_to_multiple
from owseg.fields import setting
from owseg.method_config import MethodConfig
from owseg.text import check_templates, embed_prompts, prompt_templates


@dataclass(frozen=True, kw_only=True)
class ZeroShotConfig(MethodConfig):
    """Patches of frozen CLIP against class names; the modes differ in how they read the last block (`encoders.last_block`)."""

    name: Literal["zero_shot"] = "zero_shot"
    """Method name."""
    mode: Reading = setting("maskclip", shown=True, scores_only=True)
    """Reading of the last block: clip (as trained), maskclip, sclip, clearclip or naclip."""
    templates: str = setting("tcl", shown=True, scores_only=True)
    """Prompt templates of class names: plain, simple, imagenet7, tcl (those 7 and 2 more), maskclip (5) or imagenet80."""
    unit_prompts: bool = setting(False, shown=True, scores_only=True)
    """Normalise each prompt's embedding before their mean (CLIP, SCLIP, ClearCLIP, NACLIP); false: the mean alone (TCL)."""
    background_threshold: float = setting(0.25, scores_only=True)
    """Cosine similarity below which a pixel is background, on sets that have a background class, -1..1."""

    def __post_init__(self) -> None:
        check_templates(self.templates)
        if not -1 <= self.background_threshold <= 1:
            raise InputError(f"background_threshold: {self.background_threshold} is no cosine similarity; give -1..1")

    def supervision(self, encoder: EncoderConfig) -> str:
        """What its masks are learned from, in the words of the comparison table."""
        return encoder.supervision

    def build(self, encoder: Encoder) -> "ZeroShot":
        """The method around a frozen encoder."""
        return ZeroShot(self, encoder)


class ZeroShot(nn.Module):
    """Cosine similarity of dense CLIP features with class embeddings."""

    def __init__(self, config: ZeroShotConfig, encoder: Encoder) -> None:
        super().__init__()
        self.config = config
        self.clip = encoder.clip
        self.tokenize = encoder.tokenize
        self.background_threshold: float | None = config.background_threshold

    def embed_classes(self, names: Sequence[str]) -> Tensor:
        """Unit class embeddings [n, E]; background is not among `names`."""
        templates = prompt_templates(self.config.templates)
        return embed_prompts(self.clip, self.tokenize, names, templates, unit_prompts=self.config.unit_prompts)

    @torch.no_grad()
    def segment(self, image: Tensor, classes: Tensor, background: bool) -> Tensor:
        """Scores [B, n, H, W] of windows [B, 3, H, W]; with `background` a constant plane comes first: [B, 1 + n, H, W]."""
        padded, (top, left) = pad_to_multiple(image, self.clip.visual.patch_size)
        features = F.normalize(dense_features(self.clip.visual, padded, self.config.mode), dim=1)
        scores = torch.einsum("behw,ne->bnhw", features, classes)
        scores = F.interpolate(scores, size=padded.shape[-2:], mode="bilinear", align_corners=False)
        scores = scores[..., top : top + image.shape[-2], left : left + image.shape[-1]]
        return F.pad(scores, (0, 0, 0, 0, 1, 0), value=self.config.background_threshold) if background else scores
