"""ViL-Seg's towers: how far texts are read, whose weights fit, and which sizes."""

from pathlib import Path

import pytest
import torch

from helpers import tiny
from owseg import InputError
from owseg.methods.vilseg.towers import TextSize
from owseg.vit import VitSize


def test_texts_are_read_to_their_end_alone() -> None:
    """Padding has no say: a text alone, and beside a longer one, comes to the same."""
    torch.manual_seed(0)
    method = tiny.vilseg_config().build(None).eval()
    alone = method.text(method.tokenize(["a cat"]))
    beside = method.text(method.tokenize(["a cat", "a red wall by the sea, seen from far away"]))
    assert torch.allclose(alone[0], beside[0], atol=1e-6)
    whole = method.text.transformer(method.tokenize(["a cat"]))
    assert torch.allclose(alone, whole, atol=1e-6)


def test_dino_weights_fill_the_tower(tmp_path: Path) -> None:
    torch.manual_seed(1)
    size = VitSize(image_size=48, patch_size=8, width=32, depth=2, heads=2)  # a grid of 6 x 6, where the method's is 4 x 4
    source = tiny.vilseg_config(image_size=size).build(None).image.vit.state_dict()
    torch.save(source, tmp_path / "dino.pth")
    method = tiny.vilseg_config(init="dino", image_weights=str(tmp_path / "dino.pth")).build(None)
    method.initialise()
    assert torch.equal(method.image.vit.blocks[1].mlp.fc1.weight, source["blocks.1.mlp.fc1.weight"])
    assert method.image.vit.pos_embed.shape == (1, 17, 32)
    assert torch.equal(method.image.vit.pos_embed[:, 0], source["pos_embed"][:, 0])
    scratch = tiny.vilseg_config().build(None)
    scratch.initialise()
    assert not torch.equal(scratch.image.vit.blocks[1].mlp.fc1.weight, source["blocks.1.mlp.fc1.weight"])


def test_clip_is_never_taken_for_dino(tmp_path: Path) -> None:
    encoder = tiny.encoder(tmp_path)
    torch.save({f"visual.{name}": value for name, value in encoder.clip.visual.state_dict().items()}, tmp_path / "clip.pth")
    method = tiny.vilseg_config(init="dino", image_weights=str(tmp_path / "clip.pth")).build(None)
    with pytest.raises(InputError, match=r"clip\.pth does not fit"):
        method.initialise()


def test_weights_that_cannot_be_had_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"method_settings\.vilseg\.image_weights: nowhere\.pth does not exist"):
        tiny.vilseg_config(init="dino", image_weights="nowhere.pth").build(None).initialise()
    with pytest.raises(InputError, match=r"weights of vit_base_patch16_224\.dino cannot be downloaded"):
        tiny.vilseg_config(init="dino").build(None).initialise()
    with pytest.raises(InputError, match="timm cannot build 'vit_huge'"):
        tiny.vilseg_config(image_tower="vit_huge").build(None)


def test_sizes_of_towers() -> None:
    with pytest.raises(InputError, match="heads: 3 heads do not divide the width 32"):
        TextSize(width=32, heads=3)
    with pytest.raises(InputError, match="vocabulary: 100 must be above 514"):
        TextSize(vocabulary=100)
    with pytest.raises(InputError, match=r"depth: -1 is outside 1\.\.128"):
        VitSize(depth=-1)
    with pytest.raises(InputError, match=r"depth: 100000000 is outside 1\.\.128"):
        VitSize(depth=100_000_000)
    with pytest.raises(InputError, match="image_size: 4 pixels are no whole patches of 8"):
        VitSize(image_size=4, patch_size=8)
