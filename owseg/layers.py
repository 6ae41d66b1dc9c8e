"""The layers of TCL's grounder."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each pixel of a map [B, C, H, W] (eps 1e-5, affine)."""

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = super().forward(x.movedim(1, -1))
        return normed.movedim(-1, 1)


class GatedConv(nn.Module):
    """tanh(g) * Conv3x3(GELU(LayerNorm(x))), g a learned scalar that starts at 0 (TCL paper, section 3.3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        update: Tensor = self.conv(F.gelu(self.norm(x)))
        return torch.tanh(self.gate) * update


class GroundingDecoder(nn.Module):
    """TCL's decoder: [B, C, h, w] → [B, C, 4h, 4w]; two stages of nearest x2 upsampling and two gated convolutions."""

    def __init__(self, channels: int, stages: int = 2) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Sequential(GatedConv(channels), GatedConv(channels)) for _ in range(stages))

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            for conv in stage.children():
                x = x + conv(x)
        return x


class Projection(nn.Module):
    """LayerNorm and matrix that lead from tower width to the joint space: a trainable copy of CLIP's `ln_post` and `proj`."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(visual.ln_post.normalized_shape, eps=visual.ln_post.eps)
        self.ln.load_state_dict(visual.ln_post.state_dict())
        self.proj = nn.Parameter(visual.proj.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, E, H, W]."""
        projected: Tensor = self.ln(x.movedim(1, -1)) @ self.proj
        return projected.movedim(-1, 1)
