"""ViL-Seg: its losses and teacher, its towers, regions and names, and what it says of wrong settings."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from helpers import tiny
from helpers.vilseg import batch_of
from owseg import InputError
from owseg.data import AugmentConfig
from owseg.engine import TorchEngine
from owseg.fit import fit
from owseg.methods import Methods
from owseg.methods.vilseg import VilSeg, VilSegConfig
from owseg.methods.vilseg.regions import connected_components, paint, pool_regions
from owseg.methods.vilseg.self_distillation import distillation_loss, teacher_temperature
from owseg.methods.vilseg.towers import TextSize, VitSize
from owseg.methods.vilseg.views import Crops
from owseg.optim import OptimConfig, ParameterGroup
from owseg.phases import Phase
from owseg.segmenter import load_segmenter


def config(**settings: Any) -> VilSegConfig:
    return tiny.vilseg_config(**settings)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "tars"
    tiny.write_shards(folder)
    return folder


# --------------------------------------------------------------------------------------------------------------- training


def test_losses_and_diagnostics(shards: Path) -> None:
    torch.manual_seed(0)
    method = config().build(None)
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
    method = config(**{f"{gone}_weight": 0.0}).build(None)
    batch = batch_of(method, shards)
    assert set(method.losses(batch)) == left
    assert (method.teacher is None) == (gone == "vision")
    assert bool(batch.views) == (gone != "vision")


def test_the_clustering_loss_trains_its_head_alone_unless_asked(shards: Path) -> None:
    for gradient in (False, True):
        torch.manual_seed(0)
        method = config(cluster_gradient=gradient).build(None)
        method.losses(batch_of(method, shards))["cluster"].backward()  # type: ignore[no-untyped-call]
        reached = {name.split(".")[0] for name, parameter in method.named_parameters() if parameter.grad is not None}
        assert reached == ({"clusters", "image"} if gradient else {"clusters"})


def test_both_global_views_meet_the_caption(shards: Path) -> None:
    """With the text loss alone, the second view's pixels have a gradient of the first one's kind."""
    method = config(cluster_weight=0.0).build(None)
    batch = batch_of(method, shards)
    views = batch.views["global"].clone().requires_grad_()
    method.losses(batch._replace(views={**batch.views, "global": views}))["contrast"].backward()  # type: ignore[no-untyped-call]
    assert views.grad is not None
    assert (views.grad.abs().amax(dim=(1, 2, 3, 4)) > 0).all()


def test_the_teacher_follows_and_starts_as_a_copy(shards: Path) -> None:
    torch.manual_seed(0)
    method = config(momentum=0.9).build(None)
    assert method.teacher is not None
    first, other = method.image.vit.blocks[0].attn.qkv.weight, method.teacher.vit.blocks[0].attn.qkv.weight
    with torch.no_grad():
        first += 1
        method.begin_phase(method.config.phases[0])
        assert torch.equal(first, other)
        before = other.clone()
        first += 1
        method.after_step()
        assert torch.allclose(other, before + 0.1)
        method.begin_phase(method.config.phases[0])
        assert torch.allclose(other, before + 0.1), "a later phase goes on with the teacher there is"
    assert not any("teacher" in name for name, _ in method.named_parameters())


def test_the_centre_follows_the_teacher_in_training_alone(shards: Path) -> None:
    torch.manual_seed(0)
    method = config().build(None)
    method.losses(batch_of(method, shards))
    assert method.centre.abs().sum() > 0
    method.eval()
    centre = method.centre.clone()
    method.losses(batch_of(method, shards))
    assert torch.equal(method.centre, centre)


def test_distillation_against_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(n * 3, 7, generator=generator, dtype=torch.float64) for n in (4, 2))
    centre = torch.randn(1, 7, generator=generator, dtype=torch.float64)
    terms = []
    for view in range(2):
        for crop in range(4):
            if crop == view:
                continue
            for image in range(3):
                target = ((teacher[view * 3 + image] - centre[0]) / 0.05).softmax(dim=0)
                terms.append(-(target * (student[crop * 3 + image] / 0.2).log_softmax(dim=0)).sum())
    found = distillation_loss(student, teacher, centre, student_temperature=0.2, teacher_temperature=0.05)
    assert found.item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-12)


def test_the_teacher_s_temperature_warms_up() -> None:
    warm = [teacher_temperature(step, warmup=0.04, final=0.07, warmup_steps=4) for step in range(6)]
    assert warm == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.07, 0.07])
    assert teacher_temperature(0, warmup=0.04, final=0.07, warmup_steps=0) == 0.07
    assert teacher_temperature(0, warmup=0.04, final=0.07, warmup_steps=1) == 0.04


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
    settings = config(steps=80, optim=optim, colour_jitter=0.0, vision_weight=0.1, clusters=4, templates="plain")
    method, log = train(settings, shards)
    assert log[-1]["contrast"] < 0.8 * log[0]["contrast"]
    assert "cluster/perplexity" in log[-1]
    method.eval()
    names = list(tiny.COLOURS)
    classes = method.embed_classes([f"a {name} wall" for name in names])
    batch = batch_of(method, shards)
    found = method.segment(batch.image, classes, background=False).mean(dim=(2, 3)).argmax(dim=1)
    assert [f"a {names[label]} wall" for label in found.tolist()] == batch.captions


# --------------------------------------------------------------------------------------------------------------- inference


def test_segment_is_the_mean_of_the_region_s_patches() -> None:
    torch.manual_seed(0)
    method = config(clusters=3).build(None).eval()
    image = torch.randn(2, 3, 27, 45)  # neither side is whole patches
    classes = method.embed_classes(["cat", "sea", "red wall", "road"])
    assert torch.allclose(classes.norm(dim=1), torch.ones(4))
    scores = method.segment(image, classes, background=True)
    assert scores.shape == (2, 5, 27, 45)
    assert (scores[:, 0] == method.config.background_threshold).all()
    assert torch.allclose(scores[:, 1:].sum(dim=1), torch.ones(2, 27, 45), atol=1e-5)
    padded = F.pad(image, (1, 2, 2, 3))  # 27 → 32, 45 → 48, half before
    with torch.no_grad():
        tokens = method.image(padded)
        logits = method.clusters(tokens.patches).transpose(1, 2).reshape(2, 3, 4, 6)
        clusters = F.interpolate(logits, scale_factor=8, mode="bilinear", align_corners=False).argmax(dim=1)
        embedded = F.normalize(method.image_projection(tokens.patches), dim=-1)
        for picture in range(2):
            for cluster in clusters[picture].unique():
                inside = clusters[picture] == cluster
                shares = inside.float().reshape(4, 8, 6, 8).sum(dim=(1, 3)).flatten()
                mean = F.normalize((shares[:, None] * embedded[picture]).sum(dim=0), dim=0)
                expected = (method.log_scale.exp() * classes @ mean).softmax(dim=0)
                shown = inside[2:29, 1:46]
                assert torch.allclose(scores[picture, 1:, shown], expected[:, None], atol=1e-5)
    regions = method.regions(image, classes)
    assert torch.equal(regions, clusters[:, 2:29, 1:46])


def test_patches_that_are_named_lie_in_the_text_space() -> None:
    """What meets the caption in training is the mean of the very embeddings that regions are named by."""
    method = config().build(None).eval()
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = method.image(image)
        assert torch.allclose(method.embed(tokens), method.image_projection(tokens.patches).mean(dim=1), atol=1e-6)
        by_class_token = VilSeg(config(pool="cls")).eval()
        tokens = by_class_token.image(image)
        assert torch.allclose(by_class_token.embed(tokens), by_class_token.image_projection(tokens.whole), atol=1e-6)


def test_connected_components() -> None:
    clusters = torch.tensor([[[0, 0, 1, 0], [1, 1, 1, 0], [0, 0, 1, 2]]])
    parts = connected_components(clusters)[0]
    assert len(parts.unique()) == 5
    assert int(parts.min()) == 0
    for part in parts.unique():
        assert len(clusters[0][parts == part].unique()) == 1, "a component is of one cluster"
    assert parts[0, 0] != parts[0, 3]
    assert parts[0, 3] == parts[1, 3]
    torch.manual_seed(0)
    method = config(components=True).build(None).eval()
    image = torch.randn(1, 3, 32, 32)
    whole = VilSeg(config()).eval()
    whole.load_state_dict(method.state_dict())
    finer, coarser = (m.regions(image, torch.zeros(1, 16)) for m in (method, whole))
    assert all(len(coarser[finer == part].unique()) == 1 for part in finer.unique())
    assert method.regions_across_windows is False
    assert whole.regions_across_windows is True


def test_pool_and_paint() -> None:
    patches = torch.tensor([[[[3.0, 0.0], [0.0, 2.0]]]])  # one row of two patches
    regions = torch.tensor([[[0, 0, 0, 1], [0, 0, 1, 1]]])  # 2 x 2 pixels each
    pooled = pool_regions(patches, regions, 2)
    assert pooled[0, 0].tolist() == pytest.approx(F.normalize(torch.tensor([4.0, 1.0]), dim=0).tolist())
    assert pooled[0, 1].tolist() == pytest.approx([0.0, 1.0])
    painted = paint(torch.tensor([[[1.0, 5.0], [2.0, 6.0]]]), regions)
    assert painted.shape == (1, 2, 2, 4)
    assert painted[0, 1].tolist() == [[5, 5, 5, 6], [5, 5, 6, 6]]


def test_trained_weights_come_back(shards: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from owseg.encoders import EncoderConfig
    from owseg.fit import learned_state

    settings = config(steps=2)
    method, _ = train(settings, shards)
    state = {name: value.clone() for name, value in learned_state(method, settings.phases).items()}
    assert set(method.state_dict()) == set(state), "all of it is kept: nothing is pretrained"
    save_file(state, tmp_path / "method.safetensors")
    loaded = load_segmenter(settings, EncoderConfig(pretrained="nothing that is looked at"), tmp_path / "method.safetensors")
    image = torch.randn(1, 3, 32, 32)
    classes = method.eval().embed_classes(["red", "blue"])
    assert torch.equal(loaded.embed_classes(["red", "blue"]), classes)
    assert torch.equal(loaded.segment(image, classes, True), method.segment(image, classes, True))


# ------------------------------------------------------------------------------------------------------------------ towers


def test_texts_are_read_to_their_end_alone() -> None:
    """Padding has no say: a text alone, and beside a longer one, comes to the same."""
    torch.manual_seed(0)
    method = config().build(None).eval()
    alone = method.text(method.tokenize(["a cat"]))
    beside = method.text(method.tokenize(["a cat", "a red wall by the sea, seen from far away"]))
    assert torch.allclose(alone[0], beside[0], atol=1e-6)
    whole = method.text.transformer(method.tokenize(["a cat"]))
    assert torch.allclose(alone, whole, atol=1e-6)


def test_dino_weights_fill_the_tower(tmp_path: Path) -> None:
    torch.manual_seed(1)
    size = VitSize(image_size=48, patch_size=8, width=32, depth=2, heads=2)  # a grid of 6 x 6, where the method's is 4 x 4
    source = config(image_size=size).build(None).image.vit.state_dict()
    torch.save(source, tmp_path / "dino.pth")
    method = config(init="dino", image_weights=str(tmp_path / "dino.pth")).build(None)
    method.initialise()
    assert torch.equal(method.image.vit.blocks[1].mlp.fc1.weight, source["blocks.1.mlp.fc1.weight"])
    assert method.image.vit.pos_embed.shape == (1, 17, 32)
    assert torch.equal(method.image.vit.pos_embed[:, 0], source["pos_embed"][:, 0])
    scratch = config().build(None)
    scratch.initialise()
    assert not torch.equal(scratch.image.vit.blocks[1].mlp.fc1.weight, source["blocks.1.mlp.fc1.weight"])


def test_clip_is_never_taken_for_dino(tmp_path: Path) -> None:
    encoder = tiny.encoder(tmp_path)
    torch.save({f"visual.{name}": value for name, value in encoder.clip.visual.state_dict().items()}, tmp_path / "clip.pth")
    method = config(init="dino", image_weights=str(tmp_path / "clip.pth")).build(None)
    with pytest.raises(InputError, match=r"clip\.pth does not fit"):
        method.initialise()


def test_weights_that_cannot_be_had_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"method_settings\.vilseg\.image_weights: nowhere\.pth does not exist"):
        config(init="dino", image_weights="nowhere.pth").build(None).initialise()
    with pytest.raises(InputError, match=r"weights of vit_base_patch16_224\.dino cannot be downloaded"):
        config(init="dino").build(None).initialise()
    with pytest.raises(InputError, match="timm cannot build 'vit_huge'"):
        config(image_tower="vit_huge").build(None)


# ---------------------------------------------------------------------------------------------------------- wrong settings


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"local_size": 40}, r"local_size: crops of 40 pixels are larger than the images \(augment.size is 32\)"),
        ({"clusters": 1}, "clusters: 1 tells nothing apart"),
        ({"local_area": (0.5, 0.2)}, "local_area: "),
        ({"momentum": 1.5}, "momentum: 1.5 is outside 0..1"),
        ({"teacher_temperature": 0.0}, "teacher_temperature: 0.0 must be at least 0.001"),
        ({"cluster_shifts": -1}, "cluster_shifts: -1 is negative"),
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
        config(**settings)


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
        config(**settings).build(None)


def test_small_crops_do_not_matter_where_they_are_left_out() -> None:
    config(vision_weight=0.0, local_size=300).build(None)


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
