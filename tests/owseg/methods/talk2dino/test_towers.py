"""Talk2DINO's image towers: the attention that is read is the block's own, and towers that have none such are refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from helpers import tiny
from owseg import InputError
from owseg.compiled import compile_blocks
from owseg.methods.talk2dino.attention import SCALE, head_embeddings, head_scores
from owseg.methods.talk2dino.image_tower import ImageTower
from owseg.vit import VitSize

SIZE = VitSize(image_size=32, patch_size=8, width=32, depth=2, heads=2)
ROTATED = ("vit_small_patch16_dinov3", "vit_small_patch16_dinov3_qkvb", "vit_small_patch16_rope_mixed_224")
PLAIN = ("vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2")
OTHERS = ("vit_small_patch16_rope_224", "vit_pe_core_tiny_patch16_384", "eva02_tiny_patch14_224")


def tower(model: str, size: VitSize = SIZE) -> ImageTower:
    torch.manual_seed(0)
    found = ImageTower(tiny.talk2dino_config(image_tower=model, image_size=size)).eval()
    for parameter in found.vit.parameters():
        parameter.data.normal_(std=0.3)
    return found


def attention_of_timm(of: ImageTower, image: Tensor) -> Tensor:
    """[B, M, P]: what the class token of the last block really reads of patches, by timm's own formula without torch's."""
    attn: Any = of.vit.blocks[-1].attn
    maps: list[Tensor] = []
    hook = attn.attn_drop.register_forward_pre_hook(lambda _, given: maps.append(given[0]))
    attn.fused_attn = False
    of.patches(image)
    attn.fused_attn = True
    hook.remove()
    weights = maps[0][:, :, 0, of.prefix :]
    return weights / weights.sum(dim=-1, keepdim=True)


@pytest.mark.parametrize("model", [*PLAIN, *ROTATED, *OTHERS])
def test_heads_are_those_of_the_block_s_own_attention(model: str) -> None:
    """Queries and keys are read as they are compared: with their bias, normalised, and rotated by their places."""
    found, image, texts = tower(model), torch.randn(3, 3, 24, 40), torch.randn(3, 4, 32)
    seen, own = found(image), attention_of_timm(found, image)
    assert (seen.grid, seen.attention.shape) == ((3, 5), (3, 2, 15))
    as_scaled = seen.attention / SCALE * (32 / 2) ** -0.5
    torch.testing.assert_close(as_scaled.softmax(dim=-1), own)
    chosen = head_scores(texts, head_embeddings(as_scaled, seen.patches)).argmax(dim=2)
    by_own = head_scores(texts, own @ seen.patches).argmax(dim=2)
    assert (chosen == by_own).all()
    assert len(by_own.unique()) == 2, "a choice between heads"


def test_attention_is_read_where_blocks_are_compiled() -> None:
    found, image = tower("vit_tiny_patch16_224"), torch.randn(2, 3, 24, 40)
    before = found(image)
    torch.compiler.reset()
    assert compile_blocks(found, backend="aot_eager") == 2
    torch.testing.assert_close(found(image).attention, before.attention)


@pytest.mark.parametrize(
    ("model", "size", "told"),
    [
        ("vit_tiny_r_s16_p8_224", VitSize(), r"image_tower: vit_tiny_r_s16_p8_224, .*choose one such as vit_base"),
        ("vit_small_resnet26d_224", VitSize(depth=1), r"image_tower: vit_small_resnet26d_224, .*begins with more than patches"),
        ("vit_base_mci_224", VitSize(depth=1), r"image_tower: vit_base_mci_224, .*choose one such as vit_base"),
        (
            "vit_small_patch16_18x2_224",
            VitSize(width=32, depth=1, heads=2),
            r"image_tower: the attention of .* cannot be read; .*dinov3",
        ),
        ("vit_small_patch16_dinov3", VitSize(depth=1, heads=5), r"image_size\.heads: 5 heads do not divide the width 384 of"),
        ("vit_small_patch16_dinov3", VitSize(depth=1, heads=128), r"image_tower: vit_small_patch16_dinov3, with image_size, "),
        ("vit_tiny_patch16_224", VitSize(depth=1, heads=5), r"image_tower: timm cannot build 'vit_tiny_patch16_224' \(dim "),
    ],
)
def test_towers_that_cannot_be_read_are_told_when_they_are_built(model: str, size: VitSize, told: str) -> None:
    with pytest.raises(InputError, match=rf"^method_settings\.talk2dino\.{told}") as mistake:
        tower(model, size)
    assert "\n" not in str(mistake.value)


def test_proxyclip_asks_for_plain_patches_alone() -> None:
    from owseg.frozen_tower import FrozenTower

    settings = tiny.proxyclip_config()
    without_class = replace(settings, image_tower="vit_medium_patch16_gap_256", image_size=SIZE)
    assert FrozenTower(without_class).patch_size == 8
    with pytest.raises(InputError, match=r"^method_settings\.proxyclip\.image_tower: vit_tiny_r_s16_p8_224, "):
        FrozenTower(replace(settings, image_tower="vit_tiny_r_s16_p8_224", image_size=VitSize(depth=1)))


def test_dinov3_is_read_under_its_own_names_and_eva_on_another_grid(tmp_path: Path) -> None:
    """Files as DINOv3's authors name tensors, and a tower's with positions of another grid."""
    found = tower(ROTATED[0])
    own = {name: value.clone() for name, value in found.vit.state_dict().items()}
    theirs = {"storage_tokens": own["reg_token"], "mask_token": torch.zeros(1, 32), "rope_embed.periods": torch.ones(4)}
    for name, value in own.items():
        if name != "reg_token":
            theirs[name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")] = value
    theirs["blocks.0.attn.qkv.bias"] = torch.zeros(96)
    assert theirs.keys() != own.keys()
    save_file(theirs, tmp_path / "dinov3.safetensors")
    for parameter in found.vit.parameters():
        parameter.data.zero_()
    found.load(str(tmp_path / "dinov3.safetensors"))
    for name, value in found.vit.state_dict().items():
        assert torch.equal(value, own[name]), name
    larger = tower("eva02_tiny_patch14_224", replace(SIZE, image_size=64))
    save_file(larger.vit.state_dict(), tmp_path / "eva.safetensors")
    tower("eva02_tiny_patch14_224").load(str(tmp_path / "eva.safetensors"))
    save_file({**own, "reg_token": torch.zeros(3)}, tmp_path / "cut.safetensors")
    with pytest.raises(InputError, match=r"^method_settings\.talk2dino\.image_weights: .*reg_token is \[3\] and not"):
        found.load(str(tmp_path / "cut.safetensors"))
