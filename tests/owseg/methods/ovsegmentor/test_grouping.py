"""OVSegmentor's image tower: the grouping block against Hugging Face's GroupViT, the halves of the ViT, and where it begins."""

from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import GroupViTVisionConfig
from transformers.models.groupvit.modeling_groupvit import GroupViTTokenAssign

from helpers import tiny
from helpers.tensors import assert_same
from owseg import InputError
from owseg.encoders import build_encoder, embed_patches, run_blocks
from owseg.methods.ovsegmentor.grouping import GroupingBlock, GroupingEncoder, hard_assignment
from owseg.methods.ovsegmentor.image_tower import clip_tower, load_vit, vit_tower

VIT = "vit_tiny_patch16_224"
BINDING = {"heads": 3, "tokens": 10, "groups": 4, "drop_path": 0.0}


def grouping_blocks(width: int, heads: int, tokens: int, groups: int) -> tuple[GroupViTTokenAssign, GroupingBlock]:
    """Hugging Face's block with random weights, norms and biases too, and ours with the same."""
    config = GroupViTVisionConfig(hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width)
    theirs = GroupViTTokenAssign(config, tokens, groups).double()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    ours = GroupingBlock(width, heads, tokens, groups).double()
    ours.load_state_dict({name.replace("out_proj", "proj"): value for name, value in theirs.state_dict().items()})
    return theirs, ours


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("width", "heads", "tokens", "groups", "patches"),
    [
        pytest.param(768, 8, 64, 8, 196, marks=pytest.mark.slow),
        (128, 8, 64, 8, 196),
        (96, 4, 20, 5, 30),
    ],
)
def test_the_grouping_block_is_groupvits(
    width: int, heads: int, tokens: int, groups: int, patches: int, training: bool
) -> None:
    torch.manual_seed(0)
    blocks = [block.train(training) for block in grouping_blocks(width, heads, tokens, groups)]
    image, start = torch.randn(2, patches, width).double(), torch.randn(2, tokens, width).double()
    weight = torch.randn(2, groups, width).double()
    outputs, soft, gradients = [], [], []
    for block in blocks:
        x, g = image.clone().requires_grad_(), start.clone().requires_grad_()
        torch.manual_seed(1)
        segments, how = block(x, g)
        (segments * weight).sum().backward()
        outputs.append(segments)
        soft.append(how if isinstance(how, Tensor) else how.logits.softmax(dim=1))
        named = {name.replace("out_proj", "proj"): parameter.grad for name, parameter in block.named_parameters()}
        gradients.append(named | {"patches": x.grad, "tokens": g.grad})
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-9, atol=1e-9)
    if not training:  # Hugging Face's own soft map: here too before noise
        torch.testing.assert_close(soft[1], soft[0], rtol=1e-9, atol=1e-9)
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-7, atol=1e-9, msg=name)


@pytest.mark.parametrize("noisy", [False, True])
def test_each_patch_goes_to_one_group(noisy: bool) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 8, 50, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(1)
    assigned = hard_assignment(logits, noisy=noisy)
    torch.testing.assert_close(assigned, assigned.round(), rtol=0, atol=1e-12)
    torch.testing.assert_close(assigned.amax(dim=1), torch.ones(3, 50).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(assigned.sum(dim=1), torch.ones(3, 50).double(), rtol=0, atol=1e-12)
    assert torch.equal(assigned.argmax(dim=1), logits.argmax(dim=1)) is not noisy


def test_noise_draws_groups_by_their_softmax() -> None:
    """The Gumbel-max trick: 20,000 patches of the same logits; five standard deviations."""
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 1.0, -1.0, 0.5])
    draws = 20_000
    share = hard_assignment(logits[None, :, None].expand(1, 4, draws), noisy=True).mean(dim=2)[0]
    expected = logits.softmax(dim=0)
    assert ((share - expected).abs() < 5 * (expected * (1 - expected) / draws).sqrt()).all()


def small_tower(grid: tuple[int, int] = (4, 4)) -> GroupingEncoder:
    torch.manual_seed(0)
    return GroupingEncoder(width=32, depths=(2, 2), heads=4, patch_size=8, grid=grid, tokens=10, groups=4, drop_path=0.3)


def test_the_paths_dropped_grow_over_both_halves() -> None:
    tower = GroupingEncoder(width=16, depths=(3, 3), heads=2, grid=(2, 2), drop_path=0.1)
    rates = [[path.rate for path in (block.drop_path1, block.drop_path2)] for block in tower_blocks(tower)]
    assert torch.tensor(rates).allclose(torch.arange(6)[:, None] * 0.02, atol=1e-6)


def test_norms_have_torchs_eps() -> None:
    """Official: 1e-5 throughout, also where the ViT whose weights it takes (DINO's, timm's) has 1e-6."""
    norms = [module for module in vit_tower(VIT, **BINDING).modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 12 * 2 + 6 + 1
    assert {norm.eps for norm in norms} == {1e-5}


def tower_blocks(tower: GroupingEncoder) -> list[nn.Module]:
    return [*tower.early, *tower.late]


def test_binding_alone_stops_at_queries_and_keys() -> None:
    tower = small_tower().eval()
    image = torch.randn(2, 3, 32, 32)
    ran: list[nn.Module] = []
    needless = [
        *tower.late,
        tower.norm,
        tower.grouping.assign["v_proj"],
        tower.grouping.assign["proj"],
        tower.grouping.mlp_channels,
    ]
    for module in needless:
        module.register_forward_hook(lambda module, *_: ran.append(module))
    binding = tower.bind(image)
    assert not ran
    groups = tower(image)
    assert len(ran) == len(needless)
    assert torch.equal(binding.q, groups.binding.q)
    assert torch.equal(binding.k, groups.binding.k)
    assert groups.features.shape == (2, 4, 32)
    assert binding.logits.shape == (2, 4, 16)
    torch.testing.assert_close(binding.logits, torch.einsum("bkc,bpc->bkp", binding.q, binding.k) / 32**0.5)


def test_positions_follow_the_grid() -> None:
    tower, wide = small_tower().eval(), small_tower(grid=(3, 6)).eval()
    square = tower.positions.detach().T.reshape(1, 32, 4, 4)
    resized = F.interpolate(square, (3, 6), mode="bicubic", align_corners=False)
    state = tower.state_dict() | {"positions": resized.flatten(2)[0].T}
    wide.load_state_dict(state)
    image = torch.randn(2, 3, 24, 48)
    groups, expected = tower(image), wide(image)
    assert groups.grid == (3, 6)
    torch.testing.assert_close(groups.features, expected.features)
    assert not torch.equal(tower(image.transpose(2, 3)).features, groups.features)


def test_bfloat16_leaves_the_assignment_exact() -> None:
    tower = small_tower()
    image = torch.randn(2, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        groups = tower(image)
        logits = groups.binding.logits
    assert groups.binding.q.dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, groups.binding.q.float() @ groups.binding.k.float().mT * 32**-0.5)
    groups.features.float().square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in tower.parameters())


def inside(tower: GroupingEncoder, image: Tensor) -> tuple[Tensor, Tensor]:
    """What binding takes in [B, P + T, C], and what comes out of the second half for it."""
    taken: list[Tensor] = []
    handle = tower.grouping.register_forward_hook(lambda _, inputs, outputs: taken.extend([*inputs, outputs[0]]))
    features = tower.eval()(image).features
    handle.remove()
    patches, tokens, segments = taken
    return torch.cat([patches, tokens], dim=1), torch.stack([segments, features])


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    """A timm ViT, random in everything, with the eps of our norms."""
    torch.manual_seed(0)
    vit: nn.Module = timm.create_model(VIT, num_classes=3).eval()
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.05 + ("norm" in name and name.endswith("weight")))
    for module in vit.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5
    return vit


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_tower_begins_with_the_halves_of_a_vit(tmp_path: Path, vit: nn.Module, suffix: str) -> None:
    """A file in the form of DINO's: class token, its position first, and here a head as well."""
    path = tmp_path / f"vit{suffix}"
    save_file(vit.state_dict(), path) if suffix == ".safetensors" else torch.save(vit.state_dict(), path)
    tower = vit_tower(VIT, **BINDING)
    before = {name: value.clone() for name, value in tower.state_dict().items() if name.startswith(("tokens", "grouping"))}
    load_vit(tower, VIT, str(path))
    after = tower.state_dict()
    assert_same({name: after[name] for name in before}, before)
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        bound, (segments, features) = inside(tower, image)
        x = torch.cat([vit.patch_embed(image) + vit.pos_embed[:, 1:], tower.tokens], dim=1)
        torch.testing.assert_close(bound, vit.blocks[:6](x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(features, vit.norm(vit.blocks[6:](segments)), rtol=1e-4, atol=1e-4)


def test_positions_of_another_grid_are_resized_on_loading(tmp_path: Path, vit: nn.Module) -> None:
    positions = torch.randn(1, 1 + 4 * 4, 192)
    torch.save(vit.state_dict() | {"pos_embed": positions}, tmp_path / "vit.pth")
    tower = vit_tower(VIT, **BINDING)
    load_vit(tower, VIT, str(tmp_path / "vit.pth"))
    square = positions[0, 1:].T.reshape(1, -1, 4, 4)
    expected = F.interpolate(square, (14, 14), mode="bicubic", align_corners=False).flatten(2)[0].T
    torch.testing.assert_close(tower.positions, expected)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"norm.bias": None}, "norm.bias is missing"),
        (
            {"patch_embed.proj.weight": torch.zeros(192, 3, 8, 8)},
            "patch_embed.proj.weight is [192, 3, 8, 8] and not [192, 3, 16, 16]",
        ),
        ({"pos_embed": torch.zeros(1, 20, 192)}, "pos_embed is [1, 20, 192] and not [1, 196, 192]"),
        ({"blocks.12.norm1.bias": torch.zeros(192)}, "blocks.12.norm1.bias is left over"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path: Path, vit: nn.Module, change: dict[str, Tensor | None], told: str) -> None:
    state = vit.state_dict() | change
    path = tmp_path / "vit.pth"
    torch.save({name: value for name, value in state.items() if value is not None}, path)
    with pytest.raises(InputError) as error:
        load_vit(vit_tower(VIT, **BINDING), VIT, str(path))
    assert str(error.value) == f"method_settings.ovsegmentor.image_weights: {path} does not fit {VIT}: {told}"


def test_a_failed_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError) as error:
        load_vit(small_tower(), VIT, "")
    told = str(error.value)
    assert told.startswith(f"method_settings.ovsegmentor.image_tower: the weights of {VIT} cannot be downloaded (")
    assert told.endswith("give a file with them as method_settings.ovsegmentor.image_weights")
    assert "\n" not in told
    with pytest.raises(InputError, match=r"method_settings.ovsegmentor.image_weights: none.pth does not exist"):
        load_vit(small_tower(), VIT, "none.pth")


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("vit_nope", "timm cannot build 'vit_nope' (Unknown model (vit_nope)); see timm.list_models('vit*')"),
        ("resnet18", "resnet18 is no ViT; choose one such as vit_base_patch16_224.dino"),
        (
            "vit_small_patch14_dinov2",
            "vit_small_patch14_dinov2 is no plain ViT (blocks.0.ls1.gamma is left over (24 differences))",
        ),
    ],
)
def test_only_plain_vits_serve(model: str, told: str) -> None:
    with pytest.raises(InputError) as error:
        vit_tower(model, **BINDING)
    assert str(error.value).startswith(f"method_settings.ovsegmentor.image_tower: {told}")


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(
        InputError, match=r"^method_settings.ovsegmentor.heads: 7 heads do not divide the width 192 of vit_tiny"
    ):
        vit_tower(VIT, **BINDING | {"heads": 7})


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_a_tower_begins_with_the_halves_of_a_clip(tmp_path: Path, quick_gelu: bool) -> None:
    torch.manual_seed(0)
    config = tiny.encoder_config(tmp_path)
    visual = build_encoder(type(config)(model=config.model, quick_gelu=quick_gelu)).clip.eval().requires_grad_(False).visual
    with torch.no_grad():
        for parameter in visual.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    tower = clip_tower(visual, **BINDING | {"heads": 0})
    assert all(parameter.requires_grad for parameter in tower.parameters())
    for size in ((32, 32), (24, 48)):
        image = torch.randn(2, 3, *size)
        with torch.no_grad():
            bound, (segments, features) = inside(tower, image)
            x = torch.cat([embed_patches(visual, image)[:, 1:], tower.tokens.expand(2, -1, -1)], dim=1)
            torch.testing.assert_close(bound, run_blocks(visual, x, 0, 1), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(features, visual.ln_post(run_blocks(visual, segments, 1, 2)), rtol=1e-4, atol=1e-4)
