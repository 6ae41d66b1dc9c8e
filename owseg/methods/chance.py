"""Labels drawn at random: what a table's numbers must be read against."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from owseg.encoders import Encoder, EncoderConfig
from owseg.method_config import MethodConfig


@dataclass(frozen=True, kw_only=True)
class ChanceConfig(MethodConfig):
    """Every pixel gets one of the classes, background among them, with equal probability."""

    name: Literal["chance"] = "chance"
    """Method name."""

    @property
    def uses_clip(self) -> bool:
        """Never: nothing is looked at."""
        return False

    def supervision(self, encoder: EncoderConfig) -> str:
        """What its masks are learned from, in the words of the comparison table."""
        del encoder
        return "none"

    def build(self, encoder: Encoder | None) -> "Chance":
        """The method; no encoder is looked at."""
        del encoder
        return Chance()


class Chance(nn.Module):
    """Independent uniform scores, the same at every call."""

    background_threshold: float | None = None
    """Background is one of the labels drawn: there is no constant plane to sweep."""

    def embed_classes(self, names: Sequence[str]) -> Tensor:
        """A row for each name, [n, 1]."""
        return torch.zeros(len(names), 1)

    def segment(self, image: Tensor, classes: Tensor, background: bool) -> Tensor:
        """Random scores [B, n or 1 + n, H, W]."""
        planes = len(classes) + background
        generator = torch.Generator().manual_seed(0)
        # One draw for every window: a window's scores must not depend on which others share its batch.
        scores = torch.rand(planes, *image.shape[-2:], generator=generator).to(image.device)
        return scores.expand(len(image), -1, -1, -1)
