"""OVSegmentor's own rules: what losses read, how the momentum encoder follows, how classes and background are decided."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers import tiny
from owseg import InputError
from owseg.data import Batch
from owseg.fit import learned_state, phase_groups
from owseg.losses import info_nce, multi_label_nce
from owseg.methods.ovsegmentor import VISION, OvSegmentor, OvSegmentorConfig
from owseg.phases import Phase
from owseg.segmenter import DrawsRegions

CAPTIONS = ["a red wall", "two green things", "blue", "yellow and red"]
ENTITIES = [["red"], ["green"], ["blue"], ["yellow", "red"]]


@pytest.fixture
def method(tmp_path: Path) -> OvSegmentor:
    return build(tmp_path)


def build(folder: Path, **settings: Any) -> OvSegmentor:
    encoder = tiny.encoder(folder)
    torch.manual_seed(1)
    return tiny.ovsegmentor_config(**settings).build(encoder)


def batch(method: OvSegmentor, *, partners: bool) -> Batch:
    images = torch.randn(2, len(CAPTIONS), 3, 32, 32, generator=torch.Generator().manual_seed(2))
    shared = [names[0] for names in ENTITIES] if partners else None
    own = [random.Random(place) for place in range(len(CAPTIONS))]  # which template answers are put in
    texts = method.prepare(CAPTIONS, ENTITIES, shared, own) if method.prepare else {}
    return Batch(images[0], method.tokenize(CAPTIONS), CAPTIONS, list("abcd"), texts, images[1] if partners else None)


def spread(method: OvSegmentor) -> None:
    """Make groups unlike each other, as training does."""
    for parameter in method.encoder.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))


# ---------------------------------------------------------------------------------------------------------------- training


def test_each_loss_is_there_where_it_has_a_weight_and_inputs(tmp_path: Path) -> None:
    method = build(tmp_path)
    assert set(method.losses(batch(method, partners=False))) == {"contrast", "entity"}
    assert set(method.losses(batch(method, partners=True))) == {"contrast", "entity", "mask"}
    without = build(tmp_path, entity_weight=0.0, mask_weight=0.0)
    assert set(without.losses(batch(without, partners=True))) == {"contrast"}
    labelled = build(tmp_path, entity_weight=0.0, mask_weight=0.0, label_weight=0.5)
    assert set(labelled.losses(batch(labelled, partners=False))) == {"contrast", "label"}
    assert without.prepare is None  # so captions are enough: shards need not carry entities


def test_decay_and_what_learns_by_phase(tmp_path: Path) -> None:
    """Matrices, positions, learnable tokens and embeddings are decayed; the temperature in the official form alone."""
    for fidelity in ("exact", "official"):
        model = build(tmp_path, fidelity=fidelity)
        names = {parameter: name for name, parameter in model.named_parameters()}
        first, second = (
            {names[parameter]: group.weight_decay for group in groups for parameter in group.parameters.values()}
            for groups in phase_groups(model, model.config.phases, model.config.optim)
        )
        assert set(first) == set(names.values())
        assert {name for name in first if name not in second} == {name for name in first if name.startswith("text.")}
        assert all(first[name] == decay for name, decay in second.items())
        decayed = {name for name, parameter in model.named_parameters() if parameter.ndim > 1}
        assert {"encoder.positions", "encoder.tokens", "text.token_embedding.weight"} <= decayed
        decayed |= {"log_scale"} if fidelity == "official" else set()
        assert {name for name, decay in first.items() if decay} == decayed


def test_contrast_is_computed_in_float32_under_autocast() -> None:
    """At the highest temperature, where bfloat16 cannot tell logits apart that differ by 1/4."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(16, 32, generator=generator)
    text = image + 0.5 * torch.randn(16, 32, generator=generator)
    scale = torch.tensor(5.0)
    expected = info_nce(image, text, scale)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(info_nce(image, text, scale), expected)
        assert info_nce(image.bfloat16(), text.bfloat16(), scale).dtype == torch.float32


def test_the_label_loss_by_its_definition() -> None:
    """A prompt matches each image that has its label, and its own even where no label is known; targets are uniform."""
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(2, 4, 8, generator=generator, dtype=torch.float64)
    labels = torch.tensor([[3, 5, -1], [5, -1, -1], [-1, -1, -1], [3, 7, -1]])
    matches = {(0, 0), (0, 1), (0, 3), (1, 1), (2, 2), (3, 0), (3, 3)}  # image, prompt of
    logits = 2.0 * F.cosine_similarity(image[:, None], text[None], dim=-1)
    terms = []
    for table, pairs in ((logits, matches), (logits.T, {(prompt, row) for row, prompt in matches})):
        for row in range(4):
            found = [table[row, column] for column in range(4) if (row, column) in pairs]
            terms.append(table[row].logsumexp(0) - torch.stack(found).mean())
    loss = multi_label_nce(image, text, labels, torch.tensor(2.0, dtype=torch.float64).log())
    torch.testing.assert_close(loss, torch.stack(terms).mean())

    apart = torch.arange(4)[:, None]
    scale = torch.tensor(1.0, dtype=torch.float64)
    torch.testing.assert_close(multi_label_nce(image, text, apart, scale), info_nce(image, text, scale))


def test_weights_scale_losses(tmp_path: Path) -> None:
    found = []
    for scale in (1.0, 2.0):
        method = build(tmp_path, entity_weight=scale, label_weight=scale, mask_weight=0.1 * scale).eval()
        found.append(method.losses(batch(method, partners=True)))
    assert found[1]["entity"].item() == pytest.approx(2 * found[0]["entity"].item())
    assert found[1]["label"].item() == pytest.approx(2 * found[0]["label"].item())
    assert found[1]["mask"].item() == pytest.approx(2 * found[0]["mask"].item())
    assert found[1]["contrast"].item() == pytest.approx(found[0]["contrast"].item())


@pytest.mark.parametrize("fidelity", ["exact", "official"])
def test_every_learning_parameter_gets_a_gradient(tmp_path: Path, fidelity: str) -> None:
    method = build(tmp_path, fidelity=fidelity).train()
    sum(method.losses(batch(method, partners=True)).values(), torch.zeros(())).backward()
    phase = method.config.phases[0]
    reached = {name for name, parameter in method.named_parameters() if parameter.grad is not None}
    assert {name for name, _ in method.named_parameters() if name.startswith(phase.train)} == reached


def test_the_momentum_encoder_is_no_parameter_and_is_kept_in_checkpoints(method: OvSegmentor) -> None:
    assert method.momentum is not None
    assert not list(method.momentum.parameters())
    online, copy = method.encoder.state_dict(), method.momentum.state_dict()
    assert online.keys() == copy.keys()
    state = learned_state(method, method.config.phases)
    assert {f"momentum.{name}" for name in copy} <= state.keys()


def test_the_momentum_encoder_starts_as_a_copy_and_follows(method: OvSegmentor) -> None:
    assert method.momentum is not None
    spread(method)
    first, second = method.config.phases
    method.begin_phase(first)
    before = {name: tensor.clone() for name, tensor in method.momentum.state_dict().items()}
    assert any(not torch.equal(before[name], tensor) for name, tensor in method.encoder.state_dict().items())
    method.begin_phase(second)
    start = {name: tensor.clone() for name, tensor in method.encoder.state_dict().items()}
    assert all(torch.equal(start[name], tensor) for name, tensor in method.momentum.state_dict().items())
    spread(method)
    method.after_step()
    for name, tensor in method.momentum.state_dict().items():
        torch.testing.assert_close(tensor, 0.99 * start[name] + 0.01 * method.encoder.state_dict()[name])


def test_no_momentum_encoder_where_no_phase_has_partners(tmp_path: Path) -> None:
    method = build(tmp_path, phases=(Phase(steps=1, train=VISION),))
    assert method.momentum is None
    assert method.extra_state_prefixes == ()
    method.after_step()
    assert not any(name.startswith("momentum.") for name in method.state_dict())


def test_no_gradient_reaches_the_momentum_encoder_or_the_prompt(method: OvSegmentor) -> None:
    method.eval()
    given = batch(method, partners=True)
    mask = method.losses(given)["mask"]
    grown = torch.autograd.grad(mask, list(method.text.parameters()), allow_unused=True)
    assert all(gradient is None for gradient in grown)
    heads = [*method.image_head.parameters(), *method.text_head.parameters()]
    mask = method.losses(given)["mask"]
    assert all(gradient is None for gradient in torch.autograd.grad(mask, heads, allow_unused=True))


def test_what_does_not_learn_drops_nothing_out_in_the_exact_form(tmp_path: Path) -> None:
    for fidelity, expected in (("exact", False), ("official", True)):
        method = build(tmp_path, fidelity=fidelity).train()
        method.losses(batch(method, partners=False))
        assert method.text.training
        method.text.requires_grad_(False)
        method.losses(batch(method, partners=True))
        assert method.text.training is expected
        assert method.momentum is not None
        assert method.momentum.training is expected
        assert method.encoder.training


def test_the_text_head_sees_padding_and_questions_in_the_official_form_alone(tmp_path: Path) -> None:
    counted = {}
    for fidelity in ("exact", "official"):
        method = build(tmp_path, fidelity=fidelity).train()
        method.losses(batch(method, partners=True))
        heads = (method.text_head, method.image_head, method.answer_head)
        counted[fidelity] = [int(head.norm.num_batches_tracked) for head in heads]
    assert counted["official"] == [8, 4, 1]  # updates in a step of the official code's second stage
    assert counted["exact"] == [3, 2, 1]


def test_padding_does_not_matter_in_the_exact_form(tmp_path: Path) -> None:
    method = build(tmp_path).eval()
    given = batch(method, partners=True)
    method.text.forward_bucketed = method.text.forward  # type: ignore[method-assign]
    untrimmed = method.losses(given)
    del method.text.forward_bucketed
    for name, loss in method.losses(given).items():
        torch.testing.assert_close(loss, untrimmed[name], rtol=1e-5, atol=1e-6)


# --------------------------------------------------------------------------------------------------------------- inference


def by_hand(method: OvSegmentor, image: Tensor, classes: Tensor, threshold: float | None) -> Tensor:
    """One window pixel by pixel, as the official evaluation goes about it."""
    groups = method.encoder(image[None])
    soft = groups.binding.logits[0].softmax(dim=0).reshape(-1, *groups.grid)
    soft = F.interpolate(soft[None], size=image.shape[-2:], mode="bilinear", align_corners=False)[0]
    scale = min(method.log_scale.exp().item(), 100.0)
    whole = F.normalize(method.image_head(groups.features.mean(dim=1)), dim=-1)[0]
    shown = (classes @ whole).argsort(descending=True)[: method.config.top_classes]
    rows = []
    for feature in groups.features[0]:
        own = scale * classes @ F.normalize(method.image_head(feature[None]), dim=-1)[0]
        among_shown = torch.zeros(len(classes))
        among_shown[shown] = own[shown].softmax(dim=0)
        rows.append(own.softmax(dim=0) * among_shown)
    theta = None if threshold is None else min(threshold, max(row.max().item() for row in rows))
    planes = torch.zeros(len(classes) + (theta is not None), *image.shape[-2:])
    for y in range(image.shape[-2]):
        for x in range(image.shape[-1]):
            row = rows[int(soft[:, y, x].argmax())]
            background = [] if theta is None else [torch.tensor(float(row.max().item() < theta))]
            planes[:, y, x] = torch.stack([*background, *row])
    return planes


@pytest.mark.parametrize(("threshold", "size"), [(None, (16, 24)), (0.0, (16, 24)), (0.3, (19, 31)), (1.0, (16, 24))])
def test_segment_equals_the_rule_pixel_by_pixel(tmp_path: Path, threshold: float | None, size: tuple[int, int]) -> None:
    """Also where the image is no multiple of a patch (8 pixels)."""
    method = build(tmp_path, top_classes=2, background_threshold=threshold or 0.0).eval()
    spread(method)
    classes = method.embed_classes(["red", "green", "blue", "wall"])
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(4))
    found = method.segment(images, classes, background=threshold is not None)
    for image, planes in zip(images, found, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(planes, by_hand(method, image, classes, threshold), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [(16, 24), (19, 31), (5, 4)])
def test_regions_are_the_groups_that_segment_names(tmp_path: Path, size: tuple[int, int]) -> None:
    """A pixel's scores are those of its region, and two regions differ in them."""
    method = build(tmp_path, top_classes=2).eval()
    spread(method)
    assert isinstance(method, DrawsRegions)
    assert not method.regions_across_windows
    classes = method.embed_classes(["red", "green", "blue", "wall"])
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(4))
    drawn = method.regions(images, classes)
    assert drawn.shape == (2, *size)
    for regions, planes in zip(drawn, method.segment(images, classes, background=False), strict=True):
        scores = [planes[:, regions == region].unique(dim=1) for region in regions.unique()]
        assert all(own.shape[1] == 1 for own in scores)
        assert torch.cat(scores, dim=1).unique(dim=1).shape[1] == len(scores)
    if size != (5, 4):  # one patch, one group
        assert len(drawn.unique()) > 1


def test_the_encoder_is_run_once_for_a_window(method: OvSegmentor) -> None:
    calls: list[int] = []
    method.eval().encoder.register_forward_hook(lambda *_: calls.append(1))
    method.segment(torch.zeros(2, 3, 32, 32), method.embed_classes(["red", "green"]), background=True)
    assert len(calls) == 1


def test_images_smaller_than_a_patch(method: OvSegmentor) -> None:
    classes = method.eval().embed_classes(["red", "green"])
    for size in ((1, 45), (35, 3), (1, 1)):
        assert method.segment(torch.randn(1, 3, *size), classes, background=True).shape == (1, 3, *size)


def test_class_embeddings_are_unit_means_over_templates(tmp_path: Path) -> None:
    method = build(tmp_path, templates="maskclip").eval()
    names = ["red", "a green thing"]
    found = method.embed_classes(names)
    for name, embedding in zip(names, found, strict=True):
        prompts = [f"there is {a} {name} in the scene." for a in ("a", "the")]
        prompts += [f"this is {a} {name} in the scene." for a in ("a", "the", "one")]
        with torch.no_grad():
            mean = torch.stack([method.text_head(method.text(method.tokenize([p])).sentence)[0] for p in prompts]).mean(dim=0)
        torch.testing.assert_close(embedding, F.normalize(mean, dim=0), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------- settings


def test_official_thresholds_go_by_benchmark() -> None:
    official = OvSegmentorConfig(thresholds="official", background_threshold=0.5)
    found = {name: official.for_dataset(name).background_threshold for name in ("voc21", "context60", "coco_object", "ade20k")}
    assert found == {"voc21": 0.95, "context60": 0.35, "coco_object": 0.90, "ade20k": 0.5}
    assert replace(official, thresholds="unified").for_dataset("voc21").background_threshold == 0.5


def test_clip_is_asked_for_only_where_a_tower_is_clip() -> None:
    assert not OvSegmentorConfig().uses_clip
    assert OvSegmentorConfig(image_tower="clip").uses_clip
    assert OvSegmentorConfig(text_tower="clip").uses_clip


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("momentum", 1.5),
        ("background_threshold", -0.1),
        ("groups", 0),
        ("top_classes", 0),
        ("mask_weight", -1.0),
        ("label_weight", -1.0),
    ],
)
def test_bad_settings_name_their_key(field: str, value: float) -> None:
    with pytest.raises(InputError, match=field):
        OvSegmentorConfig(**{field: value})


def test_a_batch_of_one_is_told_before_training() -> None:
    one = replace(tiny.OPTIM, batch_size=1)
    with pytest.raises(InputError, match="batch_size"):
        OvSegmentorConfig(optim=one)
    with pytest.raises(InputError, match="batch_size"):
        OvSegmentorConfig(phases=(Phase(steps=1, train=VISION), Phase(steps=1, train=VISION, optim=one)))
