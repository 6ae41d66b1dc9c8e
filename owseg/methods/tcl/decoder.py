"""The layers of TCL's grounder. Maps lie channels-last in memory; backward is left little more than each layer's input."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from owseg.flops import checkpoint_contexts
from owseg.methods.tcl import winograd

T = TypeVar("T")


def checkpointed(function: Callable[..., T], *inputs: Any) -> T:
    """function(*inputs), of which only the inputs are kept: backward computes the rest again, to the same numbers.

    That ends where the last tensor that backward needs is known, so a function whose last operation is a convolution or a
    matrix product costs again only what comes before it. `function` must draw no random numbers.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)
    result: T = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=checkpoint_contexts)
    return result


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each pixel of a map [B, C, H, W] (eps 1e-5, affine)."""

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = super().forward(x.movedim(1, -1))
        return normed.movedim(-1, 1)


class GatedConv(nn.Module):
    """tanh(g) * Conv3x3(GELU(LayerNorm(x))), g a learned scalar that starts at 0 (TCL paper, section 3.3).

    With `upsample`, x is first upsampled x2, nearest; the convolution still runs on x itself. LayerNorm and GELU act on
    pixels, so they commute with upsampling; and as neighbours are equal, the output's pixels of each parity of row and column
    are a 2x2 convolution of x: 4/9 of the work.
    """

    def __init__(self, channels: int, upsample: bool = False) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.gate = nn.Parameter(torch.zeros(()))
        self.upsample = upsample

    def forward(self, x: Tensor) -> Tensor:
        if winograd.serves(x):
            scheme = winograd.UPSAMPLED if self.upsample else winograd.SAME
            return winograd.convolve(F.gelu(self.norm(x)), *self._gated(), scheme)
        if not self.upsample:
            return checkpointed(self._same_size, x)
        return interleave([[checkpointed(self._parity, x, row, column) for column in (0, 1)] for row in (0, 1)])

    def _same_size(self, x: Tensor) -> Tensor:
        weight, bias = self._gated()
        return F.conv2d(F.gelu(self.norm(x)), weight, bias, padding=1)

    def _parity(self, x: Tensor, row: int, column: int) -> Tensor:
        """The output at every second row and column, from `row` and `column` on: [B, C, H, W] of [B, C, 2H, 2W]."""
        weight, bias = self._gated()
        weight = merge_taps(merge_taps(weight, row, dim=2), column, dim=3)
        x = F.pad(F.gelu(self.norm(x)), (1 - column, column, 1 - row, row))
        return F.conv2d(x, weight, bias)

    def _gated(self) -> tuple[Tensor, Tensor]:
        """The convolution's weight and bias times the gate, so that backward need not keep the ungated output."""
        gate = torch.tanh(self.gate)
        assert self.conv.bias is not None
        return gate * self.conv.weight, gate * self.conv.bias


def merge_taps(weight: Tensor, parity: int, dim: int) -> Tensor:
    """The two taps on a map that amount to three taps (along `dim`) on its x2 upsampling, at even or odd positions."""
    before, centre, after = weight.chunk(3, dim)
    return torch.cat([before + centre, after] if parity else [before, centre + after], dim)


def interleave(parities: list[list[Tensor]]) -> Tensor:
    """The map [B, C, 2H, 2W] whose pixels [.., row::2, column::2] are parities[row][column] [B, C, H, W]."""
    rows = [torch.stack([part.movedim(1, -1) for part in row], dim=3) for row in parities]
    return torch.stack(rows, dim=2).flatten(3, 4).flatten(1, 2).movedim(-1, 1)


class GroundingDecoder(nn.Module):
    """TCL's decoder: [B, C, h, w] → [B, C, 4h, 4w]; two stages of nearest x2 upsampling and two gated convolutions."""

    def __init__(self, channels: int, stages: int = 2) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(GatedConv(channels, upsample=True), GatedConv(channels)) for _ in range(stages)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        for stage in self.stages:
            first, second = stage.children()
            x = F.interpolate(x, scale_factor=2.0, mode="nearest") + first(x)
            x = x + second(x)
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
        return checkpointed(self._project, x.movedim(1, -1)).movedim(-1, 1)

    def _project(self, x: Tensor) -> Tensor:
        projected: Tensor = self.ln(x) @ self.proj
        return projected
