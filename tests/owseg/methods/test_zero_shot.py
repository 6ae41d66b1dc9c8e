"""The training-free readings of CLIP against their papers' definitions, written as loops over heads and tokens."""

from itertools import combinations
from math import exp, sqrt
from pathlib import Path
from typing import get_args

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers import tiny
from owseg import InputError
from owseg.encoders import Encoder, Reading, dense_features, embed_patches, gaussian_prior, last_block, pool, run_blocks
from owseg.methods import Methods
from owseg.methods.zero_shot import ZeroShot, ZeroShotConfig
from owseg.text import TEMPLATES, clip_tokenizer, embed_prompts, prompt_templates
from pipelines.app.config import load
from pipelines.app.settings import Config

MODES: tuple[Reading, ...] = get_args(Reading)
PATCH, GRID = 8, (3, 5)


@pytest.fixture(scope="module", params=[None, 0.5], ids=["plain", "layer scale"])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    """A tiny CLIP in double precision, no weight of which is zero or one."""
    torch.manual_seed(0)
    clip = open_clip.CLIP(**(tiny.MODEL | {"vision_cfg": tiny.MODEL["vision_cfg"] | {"ls_init_value": request.param}}))
    for parameter in clip.parameters():
        parameter.data.normal_(std=0.3)
    return Encoder(clip.double().eval().requires_grad_(False), clip_tokenizer(1024, 16))


def images(count: int = 1, size: tuple[int, int] = (PATCH * GRID[0], PATCH * GRID[1])) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def softmax(values: list[float]) -> list[float]:
    powers = [exp(value) for value in values]
    return [power / sum(powers) for power in powers]


def weights(mode: str, q: Tensor, k: Tensor, i: int) -> list[float]:
    """How much token i of one head reads from each token."""

    def like(side: Tensor, other: Tensor) -> list[float]:
        return [float(side[i] @ other[j]) / sqrt(q.shape[1]) for j in range(len(q))]

    def omega(j: int) -> float:
        if i == 0 or j == 0:  # the class token has no neighbours
            return 0.0
        (y, x), (v, u) = divmod(i - 1, GRID[1]), divmod(j - 1, GRID[1])
        return exp(-((y - v) ** 2 + (x - u) ** 2) / (2 * 5.0**2))

    if mode == "clip":
        return softmax(like(q, k))
    if mode == "maskclip":
        return [float(i == j) for j in range(len(q))]
    if mode == "sclip":
        return [a + b for a, b in zip(softmax(like(q, q)), softmax(like(k, k)), strict=True)]
    if mode == "clearclip":
        return softmax(like(q, q))
    return softmax([a + omega(j) for j, a in enumerate(like(k, k))])


def defined(block: torch.nn.Module, x: Tensor, mode: str) -> Tensor:
    """The last block's output [L, C] for the tokens [L, C] of one image."""
    attn, length = block.attn, len(x)
    width, size = x.shape[1], x.shape[1] // attn.num_heads
    read = torch.zeros_like(x)
    normed = block.ln_1(x)
    for head in range(attn.num_heads):
        q, k, v = (
            torch.stack([attn.in_proj_weight[rows] @ normed[i] + attn.in_proj_bias[rows] for i in range(length)])
            for rows in (slice(part * width + head * size, part * width + (head + 1) * size) for part in range(3))
        )
        for i in range(length):
            for j, weight in enumerate(weights(mode, q, k, i)):
                read[i, head * size : (head + 1) * size] += weight * v[j]
    attended = block.ls_1(torch.stack([attn.out_proj.weight @ read[i] + attn.out_proj.bias for i in range(length)]))
    if mode in {"clearclip", "naclip"}:  # neither residual nor MLP
        return attended
    x = x + attended
    return x + block.ls_2(block.mlp(block.ln_2(x)))


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_is_its_papers_definition(encoder: Encoder, mode: Reading) -> None:
    visual, image = encoder.clip.visual, images()
    tokens = run_blocks(visual, embed_patches(visual, image), 0, 1)
    expected = visual.ln_post(defined(visual.transformer.resblocks[1], tokens[0], mode))[1:] @ visual.proj
    found = dense_features(visual, image, mode)[0]
    for i, feature in enumerate(expected):
        torch.testing.assert_close(found[:, i // GRID[1], i % GRID[1]], feature, rtol=1e-9, atol=1e-9)


def test_plain_clip_is_the_tower_itself(encoder: Encoder) -> None:
    """At the trained size, the tokens of mode "clip" pool to CLIP's own embedding of the image."""
    visual, image = encoder.clip.visual, images(2, (32, 32))
    tokens = run_blocks(visual, embed_patches(visual, image), 0, 1)
    tokens = last_block(visual.transformer.resblocks[1], tokens, "clip", (4, 4))
    torch.testing.assert_close(pool(visual, tokens), encoder.clip.encode_image(image))


def test_the_prior_falls_with_distance_and_leaves_the_class_token_alone() -> None:
    prior = gaussian_prior((2, 3), sigma=5.0)
    assert prior.shape == (7, 7)
    assert prior[0].tolist() == prior[:, 0].tolist() == [0.0] * 7
    assert prior[1:, 1:].diagonal().tolist() == [1.0] * 6
    assert prior[1, 6] == pytest.approx(exp(-(1 + 4) / 50))  # patches (0, 0) and (1, 2)
    assert torch.equal(prior, prior.T)


def test_modes_differ(encoder: Encoder) -> None:
    found = {mode: F.normalize(dense_features(encoder.clip.visual, images(), mode), dim=1) for mode in MODES}
    for one, other in combinations(MODES, 2):
        assert (found[one] - found[other]).abs().max() > 1e-2, (one, other)


@pytest.mark.parametrize("mode", MODES)
def test_an_image_is_read_alone(encoder: Encoder, mode: Reading) -> None:
    """What else is in the batch has no say."""
    batch = images(3)
    together = dense_features(encoder.clip.visual, batch, mode)
    for index in range(len(batch)):
        alone = dense_features(encoder.clip.visual, batch[index : index + 1], mode)[0]
        torch.testing.assert_close(together[index], alone, rtol=1e-9, atol=1e-9)


def build(encoder: Encoder, **settings: object) -> ZeroShot:
    return ZeroShotConfig(**settings).build(encoder)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", MODES)
def test_scores_are_cosines_upsampled(encoder: Encoder, mode: Reading) -> None:
    method, image = build(encoder, mode=mode), images(2)
    classes = method.embed_classes(["cat", "sky", "a wooden table"])
    features = dense_features(encoder.clip.visual, image, mode)
    cosines = torch.zeros(2, 3, *GRID, dtype=torch.float64)
    for b in range(2):
        for y in range(GRID[0]):
            for x in range(GRID[1]):
                for n in range(3):
                    cosines[b, n, y, x] = F.cosine_similarity(features[b, :, y, x], classes[n], dim=0)
    expected = F.interpolate(cosines, scale_factor=PATCH, mode="bilinear", align_corners=False)
    torch.testing.assert_close(method.segment(image, classes, background=False), expected)


@pytest.mark.parametrize("size", [(24, 40), (30, 41), (7, 9)])
def test_background_is_a_constant_plane_in_front(encoder: Encoder, size: tuple[int, int]) -> None:
    """Whatever the window's size: sides that are no multiple of the patch are padded, and cut again."""
    method, image = build(encoder, mode="sclip", background_threshold=0.125), images(2, size)
    classes = method.embed_classes(["cat", "sky"])
    plain, with_plane = (method.segment(image, classes, background) for background in (False, True))
    assert plain.shape == (2, 2, *size)
    assert plain.abs().max() <= 1 + 1e-9
    assert torch.equal(with_plane[:, 1:], plain)
    assert method.background_threshold == 0.125
    assert (with_plane[:, 0] == method.background_threshold).all()


def test_padding_is_split_before_and_after(encoder: Encoder) -> None:
    """A window of 22 x 37 is read as the middle of one of 24 x 40: 1 row and 1 column before, 1 row and 2 columns after."""
    method, image = build(encoder, mode="naclip"), images(1, (22, 37))
    classes = method.embed_classes(["cat", "sky"])
    around = torch.zeros(1, 3, 24, 40, dtype=torch.float64)
    around[..., 1:23, 1:38] = image
    expected = method.segment(around, classes, background=False)[..., 1:23, 1:38]
    torch.testing.assert_close(method.segment(image, classes, background=False), expected)


@pytest.mark.parametrize("unit", [False, True])
def test_prompts_are_averaged_in_the_order_asked_for(encoder: Encoder, unit: bool) -> None:
    """TCL: mean, normalise. CLIP: normalise, mean, normalise."""
    templates, names = prompt_templates("imagenet7"), ["cat", "potted plant"]
    found = embed_prompts(encoder.clip, encoder.tokenize, names, templates, unit_prompts=unit, chunk=3)
    for row, name in zip(found, names, strict=True):
        total = torch.zeros_like(row)
        for template in templates:
            embedding = encoder.clip.encode_text(encoder.tokenize([template.replace("{}", name)]))[0]
            total += embedding / embedding.norm() if unit else embedding
        torch.testing.assert_close(row, total / total.norm())


def test_template_sets() -> None:
    sizes = {name: len(prompt_templates(name)) for name in TEMPLATES}
    assert sizes == {"plain": 1, "simple": 1, "imagenet7": 7, "tcl": 9, "maskclip": 5, "imagenet80": 80}
    for name in TEMPLATES:
        assert all(template.count("{}") == 1 for template in prompt_templates(name))
    assert prompt_templates("tcl")[:7] == prompt_templates("imagenet7")
    assert set(prompt_templates("imagenet7")) < set(prompt_templates("imagenet80"))
    assert prompt_templates("tcl")[7:] == ("a photo of many {}.", "a photo of {}s.")


def test_wrong_settings_are_told() -> None:
    with pytest.raises(InputError, match=r"^templates: 'imagenet' is none of plain, "):
        ZeroShotConfig(templates="imagenet")
    with pytest.raises(InputError, match=r"^background_threshold: 1\.5 "):
        ZeroShotConfig(background_threshold=1.5)


def test_the_registry_names_every_mode(tmp_path: Path) -> None:
    methods = Methods()
    named = [methods.plain_clip, methods.maskclip, methods.sclip, methods.clearclip, methods.naclip]
    assert [method.mode for method in named] == list(MODES)
    file = tmp_path / "run.yaml"
    file.write_text("method_settings: {naclip: {background_threshold: 0.5}}\n")
    config = load(Config, file, ["method_settings.sclip.templates=maskclip"])
    assert config.method_settings.naclip == ZeroShotConfig(mode="naclip", background_threshold=0.5)
    assert config.method_settings.sclip == ZeroShotConfig(mode="sclip", templates="maskclip")
