"""ViL-Seg: its losses, what it learns, and what it says of wrong settings."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from helpers import tiny
from helpers.vilseg import batch_of
from owseg import InputError
from owseg.augmentation import AugmentConfig
from owseg.crops import Crops
from owseg.engine import TorchEngine
from owseg.fit import fit
from owseg.methods import Methods
from owseg.methods.vilseg import VilSeg, VilSegConfig
from owseg.optim import OptimConfig, ParameterGroup
from owseg.phases import Phase
from owseg.segmenter import load_segmenter

# --------------------------------------------------------------------------------------------------------------- training


def test_losses_and_diagnostics(shards: Path) -> None:
    torch.manual_seed(0)
    method = tiny.vilseg_config().build(None)
    batch = batch_of(method, shards)
    assert batch.views["global"].shape == (8, 1, 3, 32, 32)
    assert batch.views["local"].shape == (8, 2, 3, 16, 16)
    losses = method.losses(batch)
    assert set(losses) == {"contrast", "vision", "cluster"}
    assert all(loss.isfinite() for loss in losses.values())
    assert set(method.diagnostics) == {
        "cluster/mutual_information",
        "cluster/perplexity",
        "cluster/per_image",
        "cluster/collapsed",
    }
    assert 1 <= method.diagnostics["cluster/perplexity"] <= method.config.clusters
    torch.stack(list(losses.values())).sum().backward()
    silent = [name for name, parameter in method.named_parameters() if parameter.grad is None]
    assert silent == []


@pytest.mark.parametrize(("gone", "left"), [("vision", {"contrast", "cluster"}), ("cluster", {"contrast", "vision"})])
def test_a_weight_of_zero_leaves_a_loss_out(shards: Path, gone: str, left: set[str]) -> None:
    method = tiny.vilseg_config(**{f"{gone}_weight": 0.0}).build(None)
    batch = batch_of(method, shards)
    assert set(method.losses(batch)) == left
    assert (method.teacher is None) == (gone == "vision")
    assert bool(batch.views) == (gone != "vision")


def test_the_clustering_loss_trains_its_head_alone_unless_asked(shards: Path) -> None:
    for gradient in (False, True):
        torch.manual_seed(0)
        method = tiny.vilseg_config(cluster_gradient=gradient).build(None)
        method.losses(batch_of(method, shards))["cluster"].backward()  # type: ignore[no-untyped-call]
        reached = {name.split(".")[0] for name, parameter in method.named_parameters() if parameter.grad is not None}
        assert reached == ({"clusters", "image"} if gradient else {"clusters"})


def test_both_global_views_meet_the_caption(shards: Path) -> None:
    """With the text loss alone, the second view's pixels have a gradient of the first one's kind."""
    method = tiny.vilseg_config(cluster_weight=0.0).build(None)
    batch = batch_of(method, shards)
    views = batch.views["global"].clone().requires_grad_()
    method.losses(batch._replace(views={**batch.views, "global": views}))["contrast"].backward()  # type: ignore[no-untyped-call]
    assert views.grad is not None
    assert (views.grad.abs().amax(dim=(1, 2, 3, 4)) > 0).all()


def train(settings: VilSegConfig, shards: Path) -> tuple[VilSeg, list[dict[str, float]]]:
    torch.manual_seed(0)
    method = settings.build(None)
    log: list[dict[str, float]] = []

    def make_engine(groups: list[ParameterGroup], optim: OptimConfig) -> TorchEngine:
        return TorchEngine(method, groups, optim)

    fit(
        method,
        settings.phases,
        settings.optim,
        make_engine,  # type: ignore[arg-type]
        lambda span, step: (batch_of(method, shards, number) for number in range(step, span.stop)),
        seed=0,
        log_every=1,
        on_log=lambda step, losses, lr, diagnostics: log.append(losses | diagnostics),
    )
    return method, log


def test_it_learns_colours_and_their_names(shards: Path) -> None:
    """Pictures of one colour each, named by their caption: after some steps each colour's picture has its own name."""
    optim = replace(tiny.OPTIM, warmup=5)
    settings = tiny.vilseg_config(steps=80, optim=optim, colour_jitter=0.0, vision_weight=0.1, clusters=4, templates="plain")
    method, log = train(settings, shards)
    assert log[-1]["contrast"] < 0.8 * log[0]["contrast"]
    assert "cluster/perplexity" in log[-1]
    method.eval()
    names = list(tiny.COLOURS)
    classes = method.embed_classes([f"a {name} wall" for name in names])
    batch = batch_of(method, shards)
    found = method.segment(batch.image, classes, background=False).mean(dim=(2, 3)).argmax(dim=1)
    assert [f"a {names[label]} wall" for label in found.tolist()] == batch.captions


def test_trained_weights_come_back(shards: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from owseg.encoders import EncoderConfig
    from owseg.fit import learned_state

    settings = tiny.vilseg_config(steps=2)
    method, _ = train(settings, shards)
    state = {name: value.clone() for name, value in learned_state(method, settings.phases).items()}
    assert set(method.state_dict()) == set(state), "all of it is kept: nothing is pretrained"
    save_file(state, tmp_path / "method.safetensors")
    loaded = load_segmenter(settings, EncoderConfig(pretrained="nothing that is looked at"), tmp_path / "method.safetensors")
    image = torch.randn(1, 3, 32, 32)
    classes = method.eval().embed_classes(["red", "blue"])
    assert torch.equal(loaded.embed_classes(["red", "blue"]), classes)
    assert torch.equal(loaded.segment(image, classes, True), method.segment(image, classes, True))


# ---------------------------------------------------------------------------------------------------------- wrong settings


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"local_size": 40}, r"local_size: crops of 40 pixels are larger than the images \(augment.size is 32\)"),
        ({"clusters": 1}, "clusters: 1 tells nothing apart"),
        ({"local_area": (0.5, 0.2)}, "local_area: "),
        ({"momentum": 1.5}, "momentum: 1.5 is outside 0..1"),
        ({"teacher_temperature": 0.0}, "teacher_temperature: 0.0 must be at least 0.001"),
        ({"cluster_shifts": -1}, "cluster_shifts: -1 must be at least 0"),
        ({"twin_scale": 1.0}, "twin_scale: 1.0 must be at least 0 and below 1"),
        ({"twin_degrees": 200.0}, "twin_degrees: 200.0 is outside 0..180"),
        ({"image_weights": "dino.pth"}, "image_weights: dino.pth is read with init=dino alone"),
        ({"init": "dino", "image_tower": "vit_base_patch16_clip_224"}, "vit_base_patch16_clip_224 does not begin as DINO's"),
        ({"init": "dino", "image_tower": "vit_base_patch16_clip_224.openai"}, "does not begin as DINO's"),
        ({"init": "dino", "image_tower": "vit_base_patch16_224.augreg_in21k"}, "does not begin as DINO's"),
        (
            {"vision_weight": 0.0, "phases": (Phase(steps=1, train=("vision_head.",)),)},
            "phases.0.train: vision_head. learns from",
        ),
        ({"cluster_weight": 0.0, "phases": (Phase(steps=1, train=("clusters.",)),)}, "phases.0.train: clusters. learns from"),
        ({"templates": "none"}, "templates: "),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        tiny.vilseg_config(**settings)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"clusters": 25},
            r"method_settings\.vilseg\.optim\.batch_size: 8 is too small for the clustering head: .* at least 40 images",
        ),
        ({"local_size": 12}, r"method_settings\.vilseg\.local_size: 12 pixels are no whole patches of 8"),
        ({"augment": AugmentConfig(size=36)}, r"method_settings\.vilseg\.augment\.size: 36 pixels are no whole patches of 8"),
        ({"cluster_shifts": 4}, r"vilseg\.cluster_shifts: 4 is no shift of a grid of 4 patches"),
        ({"phases": ()}, "phases: there are none"),
    ],
)
def test_sizes_that_do_not_fit(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        tiny.vilseg_config(**settings).build(None)


def test_small_crops_do_not_matter_where_they_are_left_out() -> None:
    tiny.vilseg_config(vision_weight=0.0, local_size=300).build(None)


def test_the_registry_has_it_and_no_clip_is_loaded() -> None:
    assert Methods().vilseg == VilSegConfig()
    assert VilSegConfig().uses_clip is False


def test_crops_are_cut_from_the_image_itself() -> None:
    torch.manual_seed(0)
    photo = Image.fromarray(tiny.blocks(64, 80))
    drawn = Crops(2, 16, (0.05, 0.4))(photo, tiny.AUGMENT)
    assert drawn["global"].shape == (1, 3, 32, 32)
    assert drawn["local"].shape == (2, 3, 16, 16)
    assert 0 <= drawn["local"].min() < drawn["local"].max() <= 1
    assert not torch.equal(drawn["local"][0], drawn["local"][1])
    assert Crops(0, 16, (0.05, 0.4))(photo, tiny.AUGMENT)["local"].shape == (0, 3, 16, 16)
    grey = Image.new("RGB", (64, 80), (51, 102, 204))
    for crops in Crops(2, 16, (0.05, 0.4))(grey, tiny.AUGMENT).values():
        assert torch.equal(crops, torch.tensor([0.2, 0.4, 0.8])[:, None, None].expand_as(crops)), "colours are left alone here"
