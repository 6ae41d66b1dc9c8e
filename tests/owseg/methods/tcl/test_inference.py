"""TCL's inference against a reference that follows the official order of work, one window at a time."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from owseg import InputError
from owseg.encoders import Encoder
from owseg.evaluation.inference import predict, predict_scores
from owseg.evaluation.protocols import EvaluateConfig, protocol_of
from owseg.methods.chance import Chance
from owseg.methods.tcl import Tcl, TclConfig
from owseg.normalisation import Normalisation
from references import tcl_inference as reference

EMBEDDING = 32


@pytest.fixture
def method() -> Tcl:
    """A small random TCL whose every layer has a say: gates open, masks steep, the copied block apart from the original."""
    torch.manual_seed(0)
    vision = {"image_size": 64, "patch_size": 16, "width": 64, "layers": 3, "head_width": 32}
    text = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 1, "layers": 1}
    clip = open_clip.CLIP(embed_dim=EMBEDDING, vision_cfg=vision, text_cfg=text, quick_gelu=True)
    method = TclConfig(mask_scale=12.0, mask_shift=0.5).build(Encoder(clip, open_clip.tokenize)).eval()
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            if name.endswith("gate"):
                parameter.fill_(0.3)
            elif name.startswith(("block.", "projection.")):
                parameter.add_(0.02 * torch.randn_like(parameter))
    return method


def configured(method: Tcl, **changes: float | bool | None) -> Tcl:
    method.config = replace(method.config, **changes)  # type: ignore[arg-type]
    return method


def example(batch: int, height: int, width: int, classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(height * width)
    image = F.interpolate(torch.randn(batch, 3, 8, 8, generator=generator), size=(height, width), mode="bicubic")
    return image, F.normalize(torch.randn(classes, EMBEDDING, generator=generator), dim=-1)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 96), (75, 50), (33, 131), (16, 16), (7, 20)])
@pytest.mark.parametrize("refine", [False, True])
@pytest.mark.parametrize("kp", [0.0, 0.3, 1.0])
def test_segment_equals_the_reference(method: Tcl, height: int, width: int, refine: bool, kp: float) -> None:
    image, classes = example(1, height, width, 5)
    masks = configured(method, pamr=refine, kp_weight=kp).segment(image, classes, background=False)
    with torch.no_grad():
        expected = reference.segment(method, image, classes, refine=refine, kp=kp)
    assert masks.shape == (1, 5, height, width)
    assert (masks - expected).abs().max() <= 2e-5
    assert kp == 1 or masks.std() > 0.02, "masks this flat compare nothing"


@pytest.mark.parametrize("refine", [False, True])
def test_a_batch_of_windows_equals_them_one_by_one(method: Tcl, refine: bool) -> None:
    windows, classes = example(3, 80, 61, 4)
    configured(method, pamr=refine)
    alone = torch.cat([method.segment(window, classes, background=True) for window in windows.split(1)])
    assert (method.segment(windows, classes, background=True) - alone).abs().max() <= 2e-6


def test_the_frozen_tower_runs_once(method: Tcl) -> None:
    image, classes = example(1, 64, 64, 2)
    passes: list[int] = []
    method.clip.visual.transformer.resblocks[0].ln_1.register_forward_hook(lambda *_: passes.append(1))
    configured(method, kp_weight=0.3).segment(image, classes, background=False)
    assert len(passes) == 1


@pytest.mark.parametrize(
    ("refine", "given", "in_use"), [(True, None, 0.4), (False, None, 0.5), (True, 0.25, 0.25), (False, 0.0, 0.0)]
)
def test_background_is_the_first_plane_at_the_threshold_in_use(
    method: Tcl, refine: bool, given: float | None, in_use: float
) -> None:
    image, classes = example(2, 40, 50, 3)
    configured(method, pamr=refine, background_threshold=given)
    assert method.background_threshold == in_use
    scores = method.segment(image, classes, background=True)
    assert scores.shape == (2, 4, 40, 50)
    assert torch.equal(scores[:, 0], torch.full((2, 40, 50), in_use))
    assert torch.equal(scores[:, 1:], method.segment(image, classes, background=False))


def test_a_threshold_outside_its_range_is_refused() -> None:
    with pytest.raises(InputError, match=r"background_threshold: 1\.5"):
        TclConfig(background_threshold=1.5)


def test_chance_has_no_background_plane() -> None:
    assert Chance().background_threshold is None


def flat_shapes(height: int, width: int) -> np.ndarray:
    """Shapes of one colour each: there PAMR's affinities hang on the last bits of the normalised image."""
    image = np.full((height, width, 3), (135, 206, 250), np.uint8)
    image[height // 2 :, : width // 3] = (34, 139, 34)
    image[height // 4 : height // 2, width // 2 :] = 255
    return image


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(("draw", "dataset", "size"), [(flat_shapes, "voc21", (60, 73)), (noise, "cityscapes", (101, 77))])
@pytest.mark.parametrize("refine", [False, True])
def test_the_whole_path_equals_the_reference(
    method: Tcl, draw: Callable[[int, int], np.ndarray], dataset: str, size: tuple[int, int], refine: bool
) -> None:
    protocol, image = protocol_of(EvaluateConfig(), dataset), draw(*size)
    background = protocol.benchmark.background
    _, classes = example(1, 8, 8, len(protocol.queries))
    configured(method, pamr=refine)
    expected = reference.predict(method, image, classes, refine=refine, background=background)
    scores = predict_scores(method, image, classes, background, protocol.view, Normalisation())
    assert scores.shape[-2:] == expected.scores.shape[-2:] != size
    assert (scores - expected.scores).abs().max() <= 1e-4
    labels = predict(method, image, classes, protocol, Normalisation()).labels
    assert labels.shape == size
    assert (labels == expected.labels).mean() >= 0.999
