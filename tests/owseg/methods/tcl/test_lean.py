"""Lean training of TCL: the same losses and gradients as the formulas written plainly, whatever is chunked or recomputed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import tiny
from helpers.tensors import assert_near
from owseg import InputError
from owseg.data import Batch
from owseg.losses import total_variation
from owseg.methods.tcl import Tcl
from owseg.methods.tcl import method as tcl
from owseg.methods.tcl.decoder import ChannelNorm, GatedConv, GroundingDecoder, Projection, checkpointed
from references import tcl_training as reference

BATCH, TEXTS = 4, 10
LOSSES = ("whole_image", "tcl_v", "tcl_f", "area", "area_negative", "tv_features", "tv_masks")
GRID = 16


def gradients(function: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The output, and the gradients of a fixed weighting of it with respect to x and all parameters."""
    x = x.detach().clone().requires_grad_()
    module.zero_grad()
    y = function(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float32).reshape(y.shape)
    (y.float() * weights).sum().backward()
    found = {name: parameter.grad.clone() for name, parameter in module.named_parameters() if parameter.grad is not None}
    assert x.grad is not None
    return y.detach(), {"x": x.grad, **found}


def opened(module: nn.Module) -> nn.Module:
    """The module with norms that are not the identity and gates that are open."""
    for name, parameter in module.named_parameters():
        if name.endswith("gate"):
            parameter.data.fill_(0.3)
        elif "norm" in name or "ln" in name:
            parameter.data.add_(0.2 * torch.randn(parameter.shape))
    return module


def plain_conv(layer: GatedConv, x: Tensor) -> Tensor:
    """The layer's formula."""
    x = F.interpolate(x, scale_factor=2) if layer.upsample else x
    normed = F.layer_norm(x.movedim(1, -1), x.shape[1:2], layer.norm.weight, layer.norm.bias).movedim(-1, 1)
    return torch.tanh(layer.gate) * F.conv2d(F.gelu(normed), layer.conv.weight, layer.conv.bias, padding=1)


@pytest.mark.parametrize("upsample", [False, True])
@pytest.mark.parametrize("size", [(5, 3), (1, 4), (6, 6)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_gated_convolution_is_its_formula(upsample: bool, size: tuple[int, int], layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    layer = opened(GatedConv(8, upsample=upsample))
    x = torch.randn(2, 8, *size).contiguous(memory_format=layout)

    y, found = gradients(layer, layer, x)

    expected_y, expected = gradients(lambda x: plain_conv(layer, x), layer, x)
    torch.testing.assert_close(y, expected_y)
    assert expected.keys() == {"x", "norm.weight", "norm.bias", "conv.weight", "conv.bias", "gate"}
    assert_near(found, expected, 1e-5)


def test_a_closed_gate_lets_gradient_reach_itself_alone() -> None:
    torch.manual_seed(0)
    layer = GatedConv(8, upsample=True)
    y, found = gradients(layer, layer, torch.randn(2, 8, 3, 3))
    assert not y.any()
    assert found.pop("gate") != 0
    assert not any(gradient.any() for gradient in found.values())


def test_frozen_parts_get_no_gradient() -> None:
    """Phase one's first layer: an input that needs no gradient; and a frozen layer that passes gradient on."""
    torch.manual_seed(0)
    layer = opened(GatedConv(8, upsample=True))
    layer(torch.randn(1, 8, 3, 3)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())

    layer.requires_grad_(False).zero_grad()
    _, found = gradients(layer, layer, torch.randn(1, 8, 3, 3))
    assert found.keys() == {"x"}


def decoder_and_projection(width: int, joint: int) -> nn.Module:
    visual = nn.Module()
    visual.ln_post, visual.proj = nn.LayerNorm(width), nn.Parameter(torch.randn(width, joint))
    return opened(nn.Sequential(GroundingDecoder(width), Projection(visual)))


def plain_grounder(module: nn.Module, x: Tensor) -> Tensor:
    decoder, projection = module.children()
    for stage in decoder.stages:  # type: ignore[union-attr]
        first, second = stage
        x = F.interpolate(x, scale_factor=2) + plain_conv(first, x)
        x = x + plain_conv(second, x)
    return (projection.ln(x.movedim(1, -1)) @ projection.proj).movedim(-1, 1)  # type: ignore[no-any-return]


def test_decoder_and_projection_are_their_formulas() -> None:
    torch.manual_seed(0)
    module = decoder_and_projection(8, 5)
    x = torch.randn(2, 8, 3, 4)

    y, found = gradients(module, module, x)

    expected_y, expected = gradients(lambda x: plain_grounder(module, x), module, x)
    assert y.shape == (2, 5, 12, 16)
    torch.testing.assert_close(y, expected_y)
    assert_near(found, expected, 1e-5)


def test_decoder_and_projection_under_autocast() -> None:
    """bfloat16 has 8 bits: as near to the exact result as the formulas are under the same autocast."""
    torch.manual_seed(0)
    module = decoder_and_projection(8, 5)
    x = torch.randn(2, 8, 3, 4)
    _, exact = gradients(lambda x: plain_grounder(module, x), module, x)
    with torch.autocast("cpu", torch.bfloat16):
        _, found = gradients(module, module, x)
        _, plain = gradients(lambda x: plain_grounder(module, x), module, x)
    for name, value in exact.items():
        assert found[name].dtype == torch.float32
        assert (found[name] - value).norm() <= 2 * (plain[name] - value).norm() + 0.02 * value.norm(), name


def test_backward_repeats_norm_and_gelu_but_no_convolution() -> None:
    torch.manual_seed(0)
    layer, x = opened(GatedConv(8)), torch.randn(2, 8, 6, 6, requires_grad=True)
    calls: list[str] = []

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            calls.append(str(function))
            return function(*args, **(kwargs or {}))

    y = layer(x)
    with Calls():
        y.sum().backward()

    assert "aten.gelu.default" in calls
    assert "aten.convolution_backward.default" in calls
    assert "aten.convolution.default" not in calls


def test_recomputed_gives_what_the_function_gives() -> None:
    norm, x = ChannelNorm(8), torch.randn(2, 8, 3, 3)
    with torch.no_grad():
        assert torch.equal(checkpointed(norm, x), norm(x))
    assert torch.equal(checkpointed(norm, x), norm(x))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_total_variation_is_its_definition(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    assert torch.equal(total_variation(x), torch.stack([reference.total_variation(map) for map in x]))
    assert torch.autograd.gradcheck(total_variation, (x,))


def test_total_variation_of_a_flat_map_has_no_gradient() -> None:
    x = torch.ones(1, 1, 4, 4, requires_grad=True)
    total_variation(x).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert not x.grad.any()


class Case:
    """A tiny TCL with open gates, a batch, texts of other ranks, and noise for the Gumbel mask of matched pairs.

    In float64 unless told otherwise: total variation has the sign of differences as its gradient, and in float32 rounding
    decides that sign for a few pixels of such small maps.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        encoder = tiny.encoder(folder)
        self.method = tiny.tcl_config().build(encoder).eval()
        generator = torch.Generator().manual_seed(1)
        opened(self.method)
        for name, parameter in self.method.named_parameters():
            parameter.requires_grad_(not name.startswith("clip."))
        self.image = torch.randn(BATCH, 3, 32, 32, generator=generator)
        self.tokens = encoder.tokenize([f"a red wall number {i}" for i in range(BATCH)])
        self.others = torch.randn(TEXTS - BATCH, 32, generator=generator)
        self.noise = torch.rand(BATCH, GRID, GRID, generator=generator).clamp(0.01, 0.99)
        self.monkeypatch = monkeypatch
        self.to(torch.float64)

    def to(self, dtype: torch.dtype) -> None:
        self.method.to(dtype)
        self.image, self.others, self.noise = (x.to(dtype) for x in (self.image, self.others, self.noise))

    def run(self, losses_of: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Losses, and gradients of their sum by parameter."""
        self.method.zero_grad()
        losses = losses_of()
        torch.stack(list(losses.values())).sum().backward()
        found = {name: parameter.grad for name, parameter in self.method.named_parameters() if parameter.grad is not None}
        return {name: loss.detach() for name, loss in losses.items()} | found

    def plain(self) -> dict[str, Tensor]:
        return self.run(lambda: reference.losses(self.method, self.image, self.tokens, self.others, self.noise))

    def lean(self, **settings: object) -> dict[str, Tensor]:
        self.method.config = replace(self.method.config, **settings)
        with self.monkeypatch.context() as patch:
            patch.setattr(tcl, "gather", lambda text: torch.cat([text, self.others]))
            patch.setattr(torch, "rand_like", lambda _: self.noise.clone())
            return self.run(lambda: self.method.losses(Batch(self.image, self.tokens, [], [])))


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    return Case(tmp_path, monkeypatch)


@pytest.mark.parametrize("checkpoint_blocks", [False, True])
@pytest.mark.parametrize("text_chunk", [0, 1, 3, TEXTS, 64])
def test_losses_and_gradients_are_those_of_the_formulas(case: Case, text_chunk: int, checkpoint_blocks: bool) -> None:
    """Whatever is held at once: all six losses, and the gradient of everything that learns, block included."""
    expected = case.plain()
    found = case.lean(text_chunk=text_chunk, checkpoint_blocks=checkpoint_blocks)
    assert len(expected) == 6 + sum(1 for parameter in case.method.parameters() if parameter.requires_grad)
    assert_near(found, expected, 1e-9)


def test_a_frozen_block_costs_the_others_nothing(case: Case) -> None:
    """Phase one: the copied block needs no gradient, all others' are unchanged."""
    whole = case.lean()
    case.method.block.requires_grad_(False).zero_grad()
    first = case.lean()
    assert_near(first, {name: value for name, value in whole.items() if not name.startswith("block.")}, 1e-9)


@pytest.mark.parametrize(
    ("weights", "left"),
    [
        ({"tcl_f_weight": 0.0, "area_weight": 0.0, "tv_weight": 0.0}, ["tcl_v"]),
        ({"area_weight": 0.0, "tv_weight": 0.0}, ["tcl_v", "tcl_f"]),
        ({"tv_weight": 0.0}, ["tcl_v", "tcl_f", "area", "area_negative"]),
        ({"tcl_weight": 0.0}, ["area", "area_negative", "tv_features", "tv_masks"]),
    ],
)
def test_a_loss_of_weight_0_is_left_out_and_the_others_stay(case: Case, weights: dict[str, float], left: list[str]) -> None:
    whole, found = case.lean(), case.lean(**weights)
    assert [name for name in found if name in LOSSES] == left
    for name in left:
        torch.testing.assert_close(found[name], whole[name])


def test_whole_images_are_the_feature_loss_under_masks_of_1(case: Case) -> None:
    """And nothing that draws masks learns from them."""
    case.others = case.others[:0]
    case.method.mask_scale.data.fill_(0.0)
    case.method.mask_shift.data.fill_(50.0)
    masked = case.lean(tcl_weight=0.3, area_weight=0.0, tv_weight=0.0)
    found = case.lean(whole_image_weight=0.3, tcl_weight=0.0)
    torch.testing.assert_close(found["whole_image"], masked["tcl_f"])
    assert found.keys() - {"whole_image"} == masked.keys() - {*LOSSES, "mask_scale", "mask_shift", "tcl_v_scale"}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"tv_weight": -1.0}, "tv_weight: -1.0 must be at least 0"),
        ({"tcl_weight": 0.0, "area_weight": 0.0, "tv_weight": 0.0}, "tcl_weight"),
    ],
)
def test_weights_that_cannot_be(weights: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tcl.TclConfig(**weights)


def test_losses_under_autocast(case: Case) -> None:
    """Near the exact losses, finite gradients everywhere, for chunked and unchunked masks alike."""
    case.to(torch.float32)
    exact = case.plain()
    with torch.autocast("cpu", torch.bfloat16):
        found = [case.lean(text_chunk=chunk) for chunk in (0, 3)]
    for run in found:
        assert run.keys() == exact.keys()
        for name in ("tcl_v", "tcl_f", "area", "area_negative", "tv_features", "tv_masks"):
            torch.testing.assert_close(run[name].float(), exact[name], rtol=0.05, atol=2e-3)
        assert all(value.isfinite().all() for value in run.values())


def test_no_tensor_of_all_pairs_outlives_its_chunk(case: Case) -> None:
    """With one text at a time, nothing that autograd keeps grows with the number of texts but the [B, N] similarities."""
    pixels = BATCH * GRID * GRID
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    features = torch.randn(BATCH, 32, GRID, GRID, requires_grad=True)
    texts = torch.randn(40, 32)
    for chunk, expected in ((0, True), (4, False)):
        case.method.config = replace(case.method.config, text_chunk=chunk)
        kept.clear()
        slope = case.method.mask_slope(features).detach()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            case.method.mask_statistics(features, slope, texts)
        assert any(size == pixels * len(texts) for size in kept) is expected


def test_pooling_is_the_mean_under_the_mask() -> None:
    features, masks = torch.randn(2, 3, 4, 4), torch.rand(2, 5, 4, 4)
    pooled = Tcl.pool_masks(features, masks)
    weights = masks[1, 2] / (masks[1, 2].sum() + 1e-6)
    torch.testing.assert_close(pooled[1, 2], (features[1] * weights).sum(dim=(1, 2)))


def test_a_negative_chunk_is_told() -> None:
    with pytest.raises(InputError, match="text_chunk"):
        tcl.TclConfig(text_chunk=-1)
