"""3x3 convolutions by Winograd's minimal filtering (Lavin & Gray, CVPR 2016, 1509.09308), for inference on CPUs.

Tiles of the input and the kernel are transformed so that the convolution becomes one matrix product for each entry of a
transformed tile: a quarter of the direct multiplications. On an upsampled map neighbours are equal, and it takes fewer still.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Matrix = tuple[tuple[float, ...], ...]


class Scheme(NamedTuple):
    """y = outputs ((kernel w) * (inputs x)) along one axis: a tile of inputs x, the three taps w, a tile of outputs y."""

    inputs: Matrix
    kernel: Matrix
    outputs: Matrix
    stride: int
    """Inputs from one tile to the next."""


SAME = Scheme(
    inputs=(
        (4, 0, -5, 0, 1, 0),
        (0, -4, -4, 1, 1, 0),
        (0, 4, -4, -1, 1, 0),
        (0, -2, -1, 2, 1, 0),
        (0, 2, -1, -2, 1, 0),
        (0, 4, 0, -5, 0, 1),
    ),
    kernel=(
        (1 / 4, 0, 0),
        (-1 / 6, -1 / 6, -1 / 6),
        (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6),
        (0, 0, 1),
    ),
    outputs=((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
    stride=4,
)
"""F(4, 3): four outputs of six inputs."""

UPSAMPLED = Scheme(
    inputs=((4, -5, 1, 0), (0, -8, 2, 0), (0, -3, 3, 0), (0, 1, -1, 0), (0, 4, -5, 1)),
    kernel=SAME.kernel[:2] + SAME.kernel[3:],
    outputs=tuple(row[:2] + row[3:] for row in SAME.outputs),
    stride=2,
)
"""F(4, 3) of a, b, b, c, c, d, which nearest x2 upsampling makes of a, b, c, d: the third entry is always zero."""


def serves(x: Tensor) -> bool:
    """Whether `convolve` is the faster way: without gradients on a CPU; elsewhere the library's own kernels know the trick."""
    return not torch.is_grad_enabled() and x.device.type == "cpu" and x.dtype == torch.float32


def convolve(x: Tensor, weight: Tensor, bias: Tensor, scheme: Scheme) -> Tensor:
    """Conv3x3, zero padding 1, of maps [B, C, H, W], with UPSAMPLED of their nearest x2 upsampling (channels-last result).

    weight: [E, C, 3, 3]; bias: [E]. Equal to the direct convolution up to rounding (relative to its spread some 3e-5).
    """
    transform = weight.new_tensor(scheme.kernel)
    taps = weight.permute(3, 2, 1, 0).reshape(9, -1)
    kernel = (torch.kron(transform, transform) @ taps).view(-1, weight.shape[1], weight.shape[0])
    factor = len(scheme.outputs) // scheme.stride
    result = x.new_empty(len(x), factor * x.shape[2], factor * x.shape[3], len(weight))
    for image, target in zip(x.permute(0, 2, 3, 1), result, strict=True):
        torch.add(_convolve(image, kernel, scheme)[: target.shape[0], : target.shape[1]], bias, out=target)
    return result.permute(0, 3, 1, 2)


def _convolve(x: Tensor, kernel: Tensor, scheme: Scheme) -> Tensor:
    """A map [H, W, C] by a transformed kernel [k * k, C, E] → whole tiles [H', W', E] of outputs."""
    entries, reach, step = len(scheme.inputs), len(scheme.inputs[0]), len(scheme.outputs)
    high, wide = (-(-length // scheme.stride) for length in x.shape[:2])
    below, right = ((n - 1) * scheme.stride + reach - 1 - length for n, length in zip((high, wide), x.shape[:2], strict=True))
    padded = F.pad(x, (0, 0, 1, right, 1, below))

    rows = x.new_empty(entries, high, padded.shape[1], x.shape[2])
    _combine(scheme.inputs, padded.unfold(0, reach, scheme.stride).unbind(-1), rows)
    tiles = x.new_empty(entries, entries, high, wide, x.shape[2])
    _combine(scheme.inputs, rows.unfold(2, reach, scheme.stride).unbind(-1), tiles)

    products = torch.bmm(tiles.view(entries**2, high * wide, -1), kernel).view(entries, entries, high, wide, -1)
    columns = x.new_empty(step, *products.shape[1:])
    _combine(scheme.outputs, products.unbind(0), columns)
    result = x.new_empty(high, step, wide, step, kernel.shape[2])
    _combine(scheme.outputs, columns.unbind(1), result.permute(1, 3, 0, 2, 4))
    return result.view(high * step, wide * step, -1)


def _combine(matrix: Matrix, maps: Sequence[Tensor], out: Tensor) -> None:
    """out[i] = sum of matrix[i][k] * maps[k], which skips zeros."""
    for coefficients, target in zip(matrix, out, strict=True):
        first, *others = [(value, part) for value, part in zip(coefficients, maps, strict=True) if value]
        torch.mul(first[1], first[0], out=target)
        for value, part in others:
            target.add_(part, alpha=value)
