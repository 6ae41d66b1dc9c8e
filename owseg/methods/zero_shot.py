"""Frozen CLIP read densely, with no training at all: the baselines that every trained method must beat."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from owseg import InputError
from owseg.dense_clip import DenseClip
from owseg.encoders import Encoder, EncoderConfig, Reading, dense_features
from owseg.fields import setting
from owseg.method_config import MethodConfig
from owseg.text import check_templates


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


class ZeroShot(DenseClip):
    """CLIP's own patches, the last block read as the mode says."""

    def __init__(self, config: ZeroShotConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.mode = config.mode

    def features(self, image: Tensor) -> Tensor:
        """Joint-space features [B, E, h, w] of images [B, 3, H, W], H and W multiples of CLIP's patch size."""
        return dense_features(self.clip.visual, image, self.mode)
