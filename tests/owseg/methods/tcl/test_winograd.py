"""Winograd's convolutions against direct ones."""

import pytest
import torch
import torch.nn.functional as F

from owseg.methods.tcl.decoder import GroundingDecoder
from owseg.methods.tcl.winograd import SAME, UPSAMPLED, convolve, serves


def example(batch: int, channels: int, height: int, width: int, outputs: int) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(height * width + channels)
    kernel = torch.randn(outputs, channels, 3, 3) / (3 * channels**0.5)
    return torch.randn(batch, channels, height, width), kernel, torch.randn(outputs)


@pytest.mark.parametrize("shape", [(2, 5, 9, 13, 7), (1, 4, 1, 1, 4), (1, 3, 4, 8, 2), (3, 2, 2, 31, 3), (1, 96, 28, 28, 96)])
def test_equals_the_direct_convolution(shape: tuple[int, int, int, int, int]) -> None:
    x, weight, bias = example(*shape)
    upsampled = F.interpolate(x, scale_factor=2, mode="nearest")
    for scheme, whole in ((SAME, x), (UPSAMPLED, upsampled)):
        expected = F.conv2d(whole.double(), weight.double(), bias.double(), padding=1)
        for layout in (torch.contiguous_format, torch.channels_last):
            result = convolve(x.contiguous(memory_format=layout), weight, bias, scheme)
            assert result.shape == expected.shape
            assert (result - expected).abs().max() <= 5e-5


def test_rounding_aside_the_schemes_are_exact() -> None:
    x, weight, bias = (tensor.double() for tensor in example(1, 6, 11, 10, 4))
    same = F.conv2d(x, weight, bias, padding=1)
    upsampled = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, bias, padding=1)
    assert (convolve(x, weight, bias, SAME) - same).abs().max() <= 1e-12
    assert (convolve(x, weight, bias, UPSAMPLED) - upsampled).abs().max() <= 1e-12


def test_an_image_does_not_depend_on_its_batch() -> None:
    x, weight, bias = example(3, 8, 10, 7, 8)
    for scheme in (SAME, UPSAMPLED):
        alone = torch.cat([convolve(one, weight, bias, scheme) for one in x.split(1)])
        assert torch.equal(convolve(x, weight, bias, scheme), alone)


def test_the_decoder_gives_the_same_maps_with_and_without_gradients() -> None:
    torch.manual_seed(0)
    decoder = GroundingDecoder(16)
    for name, parameter in decoder.named_parameters():
        if name.endswith("gate"):
            parameter.data.fill_(0.5)
    x = torch.randn(2, 16, 5, 6)
    with torch.no_grad():
        assert serves(x)
        fast = decoder(x)
    assert not serves(x)
    torch.testing.assert_close(fast, decoder(x).detach(), atol=5e-5, rtol=0)
