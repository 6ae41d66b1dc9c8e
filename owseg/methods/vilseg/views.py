"""What ViL-Seg looks at: crops that the loader cuts from an image, and changes of colour, drawn a batch at a time."""

from typing import NamedTuple

from torch import Tensor

from owseg.noise import uniform


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


def jitter(images: Tensor, most: float) -> Tensor:
    """Normalised images [B, 3, H, W] with another brightness, contrast and saturation each, by up to `most`, 0..1."""
    if not most or not images.numel():
        return images
    draws = uniform((len(images), 3, 1, 1, 1), images.device, images.dtype)
    bright, contrast, saturation = ((2 * draws - 1) * most).unbind(dim=1)
    grey = images.mean(dim=1, keepdim=True)
    coloured = grey + (images - grey) * (1 + saturation)
    mean = coloured.mean(dim=(1, 2, 3), keepdim=True)
    changed: Tensor = mean + (coloured - mean) * (1 + contrast) + bright
    return changed
