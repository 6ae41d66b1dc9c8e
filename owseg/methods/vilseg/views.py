"""What ViL-Seg looks at."""

from typing import NamedTuple

from torch import Tensor


class Views(NamedTuple):
    """What the losses look at, all normalised."""

    whole: Tensor
    """Global views [V * B, 3, H, W], view by view: two where there is a vision-based contrast, otherwise one."""
    local: Tensor
    """Small crops [n * B, 3, h, w], crop by crop; n may be 0."""
    twin: Tensor
    """The first global view [B, 3, H, W], transformed: it shows at (x, y) what that shows at theta (x, y, 1)^T."""
    theta: Tensor
    """[B, 2, 3]"""
