"""ProxyCLIP against the paper's definition, written as loops over heads and patches; its towers' grids; what it refuses."""

from math import exp
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers import tiny
from owseg import InputError
from owseg.encoders import Encoder, embed_patches, run_blocks
from owseg.methods.proxyclip import ProxyClip, proxy_attention
from owseg.text import clip_tokenizer
from owseg.vit import VitSize

GRID = (3, 5)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    """A tiny CLIP in double precision, no weight of which is zero or one."""
    torch.manual_seed(0)
    clip = open_clip.CLIP(**(tiny.MODEL | {"vision_cfg": tiny.MODEL["vision_cfg"] | {"ls_init_value": 0.5}}))  # type: ignore
    for parameter in clip.parameters():
        parameter.data.normal_(std=0.3)
    return Encoder(clip.double().eval().requires_grad_(False), clip_tokenizer(1024, 16))


def method_of(encoder: Encoder, **settings: object) -> ProxyClip:
    torch.manual_seed(1)
    method = ProxyClip(tiny.proxyclip_config(**settings), encoder)
    for parameter in method.image.vit.parameters():
        parameter.data.normal_(std=0.3)
    return method.double().eval()


def images(count: int = 1, size: tuple[int, int] = (8 * GRID[0], 8 * GRID[1])) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def weights(patches: np.ndarray, beta: float, gamma: float) -> np.ndarray:
    """The attention [P, P] by the paper, of patches [P, C]."""
    count = len(patches)
    cosines = np.zeros((count, count))
    for i in range(count):
        for j in range(count):
            cosines[i, j] = patches[i] @ patches[j] / np.linalg.norm(patches[i]) / np.linalg.norm(patches[j])
    mean = sum(cosines[i, j] for i in range(count) for j in range(count)) / count**2
    found = np.zeros((count, count))
    for i in range(count):
        normalised = [gamma * (cosines[i, j] - beta * mean) for j in range(count)]
        powers = [0.0 if value < 0 else exp(value) for value in normalised]
        found[i] = np.array(powers) / sum(powers)
    return found


@pytest.mark.parametrize(("shift", "scale"), [(1.2, 3.0), (0.4, 2.0)])
def test_features_are_the_papers_definition(encoder: Encoder, shift: float, scale: float) -> None:
    method, image, visual = method_of(encoder, shift=shift, scale=scale), images(), encoder.clip.visual
    patches = method.image.vit.forward_features(image)[0, 1:].detach().numpy()
    read = weights(patches, shift, scale)
    assert 0 < (read == 0).mean() < 0.9, "something is masked, and something is left"
    block = visual.transformer.resblocks[1]
    tokens = run_blocks(visual, embed_patches(visual, image), 0, 1)[0, 1:]
    width, size = tokens.shape[1], tokens.shape[1] // block.attn.num_heads
    normed, value = block.ln_1(tokens), slice(2 * width, 3 * width)
    values = [block.attn.in_proj_weight[value] @ one + block.attn.in_proj_bias[value] for one in normed]
    for i in range(len(tokens)):
        mixed = torch.zeros(width, dtype=torch.float64)
        for head in range(block.attn.num_heads):  # one map for all heads
            part = slice(head * size, (head + 1) * size)
            for j in range(len(tokens)):
                mixed[part] += read[i, j] * values[j][part]
        attended = block.ls_1(block.attn.out_proj.weight @ mixed + block.attn.out_proj.bias)
        feature = visual.ln_post(attended) @ visual.proj  # neither residual nor MLP
        found = method.features(image)[0, :, i // GRID[1], i % GRID[1]]
        torch.testing.assert_close(found, feature, rtol=1e-9, atol=1e-9)


def test_scores_are_cosines_upsampled_under_a_plane_of_background(encoder: Encoder) -> None:
    method, image = method_of(encoder, background_threshold=0.125), images(2, (22, 37))
    classes = method.embed_classes(["cat", "sky"])
    plain, whole = (method.segment(image, classes, background) for background in (False, True))
    assert plain.shape == (2, 2, 22, 37)
    assert plain.abs().max() <= 1 + 1e-9
    assert torch.equal(whole[:, 1:], plain)
    assert (whole[:, 0] == 0.125).all()
    alone = method.segment(image[1:], classes, background=False)
    torch.testing.assert_close(plain[1:], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("patch", [4, 5, 16])
def test_a_tower_of_another_grid_is_read_between_its_patches(encoder: Encoder, patch: int) -> None:
    """Of 4 px four patches lie in one of CLIP's; 24 x 40 px are stretched to 25 x 40 where patches have 5 px."""
    method = method_of(encoder, image_size=VitSize(image_size=80, patch_size=patch, width=32, depth=2, heads=2))
    image = images()
    own = {4: (6, 10), 5: (5, 8), 16: (2, 2)}[patch]
    shown = F.interpolate(image, size=(own[0] * patch, own[1] * patch), mode="bilinear", align_corners=False)
    planes = method.image.vit.forward_features(shown)[:, 1:].transpose(1, 2).unflatten(2, own)
    expected = F.interpolate(planes, size=GRID, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
    torch.testing.assert_close(method.tower_patches(image, GRID), expected)
    assert method.features(image).isfinite().all()


def test_patches_that_are_all_alike_read_themselves() -> None:
    """By the definition alone nothing would be left to read."""
    found = proxy_attention(torch.ones(1, 4, 8), 1.2, 3.0)
    torch.testing.assert_close(found, torch.eye(4)[None])


def test_weights_of_the_tower_are_asked_for(tmp_path: Path) -> None:
    config = tiny.proxyclip_config(image_weights=str(tmp_path / "none.pth"))
    with pytest.raises(InputError, match=r"^method_settings\.proxyclip\.image_weights: .*none\.pth does not exist"):
        config.build(tiny.encoder(tmp_path))
    with pytest.raises(InputError, match=r"^scale: -1\.0 must be at least 0"):
        tiny.proxyclip_config(scale=-1.0)
