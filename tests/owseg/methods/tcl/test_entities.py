"""TCL on two entities of each caption: their texts, what is no mismatch, and the losses pair by pair."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers import tiny
from helpers.tcl_ranks import ENTITIES, build, entity_texts
from owseg import InputError
from owseg.data import Batch
from owseg.entity_labels import NONE, caption_label, label_of
from owseg.methods.tcl import Tcl, TclConfig
from owseg.methods.tcl.entities import EntityTexts, overlap
from owseg.text import clip_tokenizer, prompt_templates

FILLED = {name: {template.format(name) for template in prompt_templates("imagenet7")} for name in ("dog", "grass", "sea")}


class Reader:
    """A tokenizer that keeps what it was given."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, texts: str | list[str]) -> Tensor:
        self.texts = [texts] if isinstance(texts, str) else [*texts]
        return torch.arange(len(self.texts))[:, None]

    def encode(self, text: str) -> list[int]:
        return [*text.encode()]


def test_an_images_texts_are_two_of_its_entities_in_templates_or_its_caption() -> None:
    read = Reader()
    captions = ["a dog on grass by the sea", "my dog", "hm"]
    entities = [["dog", "grass", "sea", "dog"], ["dog"], []]
    found = EntityTexts(read)(captions, entities, None, [random.Random(seed) for seed in range(3)])
    first, second = read.texts[:2]
    names = [name for text in (first, second) for name, filled in FILLED.items() if text in filled]
    assert len(set(names)) == 2
    assert read.texts[2] in FILLED["dog"]
    assert read.texts[3:] == ["my dog", "hm", "hm"]
    assert found["text"].tolist() == [[[0], [1]], [[2], [3]], [[4], [5]]]
    assert found["label"][0].tolist() == [label_of(name) for name in names]
    assert found["label"][1:].tolist() == [[label_of("dog"), caption_label("my dog")], [caption_label("hm")] * 2]
    assert set(found["labels"][0].tolist()) == {caption_label(captions[0]), *map(label_of, FILLED), NONE}
    assert found["labels"][:, 0].tolist() == [caption_label(caption) for caption in captions]


def test_texts_are_a_samples_own_whatever_lies_beside_it() -> None:
    prepare = EntityTexts(clip_tokenizer(1024, 16))
    captions, entities = ["one", "two", "three"], [["dog", "grass", "sea", "sky"]] * 3
    whole = prepare(captions, entities, None, [random.Random(seed) for seed in range(3)])
    alone = prepare(captions[1:2], entities[1:2], None, [random.Random(1)])
    for name, rows in alone.items():
        assert torch.equal(rows, whole[name][1:2]), name
    assert len({tuple(row) for row in whole["label"].tolist()}) > 1, "which two is drawn"


def test_what_is_no_mismatch_pair_by_pair() -> None:
    """Image 0 has dog and grass, image 1 dog, sea and sky of which sky is not drawn, image 2 sky and its caption, 3 nothing."""
    dog, grass, sea, sky, captions = 1, 2, 3, 4, [100, 101, 102, 103]
    label = torch.tensor([[dog, grass], [dog, sea], [sky, captions[2]], [captions[3]] * 2])
    has = [{100, dog, grass}, {101, dog, sea, sky}, {102, sky}, {103}]
    labels = torch.tensor(
        [[captions[i], *sorted(some - {captions[i]})] + [NONE] * (4 - len(some)) for i, some in enumerate(has)]
    )
    found = overlap(label, labels)
    texts = [(image, int(one)) for image in range(4) for one in label[image]]

    def speaks_of(image: int, text: int) -> set[int]:
        return has[image] if text == captions[image] else {text}

    for row, (image, text) in enumerate(texts):
        for column, (other, further) in enumerate(texts):
            assert bool(found.has[row, column]) == (further in has[image])
            assert bool(found.had[row, column]) == (text in has[other])
            shared = text in speaks_of(other, further) or further in speaks_of(image, text)
            assert bool(found.same[row, column]) == shared, (row, column)
    assert not found.same[0, 1], "an image's two entities are each other's negatives"
    assert found.has[0, 1], "but not where the whole image is seen"


def plain_losses(method: Tcl, batch: Batch, uniform: Tensor) -> dict[str, Tensor]:
    """The losses from the docstring's words, a pair at a time. uniform: [B, 2, h, w]."""
    names = [[*some[:2], *[f"caption {i}"] * (2 - len(some))] for i, some in enumerate(ENTITIES)]
    places = [(i, k) for i in range(len(names)) for k in range(2)]
    spoken = {(i, k): {names[i][k]} | (set(ENTITIES[i]) if k >= len(ENTITIES[i]) else set()) for i, k in places}
    whole = [{*some, f"caption {i}"} for i, some in enumerate(ENTITIES)]
    dense = method.features(batch.image)
    texts = {place: method.clip.encode_text(batch.texts["text"][place][None])[0].detach() for place in places}
    mask, logits, pooled, kept = {}, {}, {}, {}
    for i, _ in places:
        for place, text in texts.items():
            logits[i, place] = method.mask_scale * F.cosine_similarity(dense[i], text[:, None, None], dim=0) + method.mask_shift
            mask[i, place] = torch.sigmoid(logits[i, place])
            pooled[i, place] = (dense[i] * mask[i, place]).sum(dim=(1, 2)) / (mask[i, place].sum() + 1e-6)
    for i, k in places:
        soft = torch.sigmoid(logits[i, (i, k)] + torch.logit(uniform[i, k]))
        hard = (soft > 0.5).float() + soft - soft.detach()
        shown = batch.image[i] * F.interpolate(hard[None, None], scale_factor=2, mode="nearest")[0]
        kept[i, k] = method.clip.encode_image(shown[None])[0]

    def nce(cosine: dict[tuple[tuple[int, int], tuple[int, int]], Tensor], left_out, scale: Tensor) -> Tensor:  # type: ignore
        """cosine of (image's pair, text's pair), of all of them."""
        found = []
        for place in places:
            negatives = [q for q in places if q != place and not left_out(place, q)]
            found.append(torch.stack([cosine[place, q] for q in (place, *negatives)]).mul(scale).log_softmax(0)[0])
            negatives = [q for q in places if q != place and not left_out(q, place)]
            found.append(torch.stack([cosine[q, place] for q in (place, *negatives)]).mul(scale).log_softmax(0)[0])
        return -torch.stack(found).mean()

    def same(p: tuple[int, int], q: tuple[int, int]) -> bool:
        return names[p[0]][p[1]] in spoken[q] or names[q[0]][q[1]] in spoken[p]

    def has(p: tuple[int, int], q: tuple[int, int]) -> bool:
        return names[q[0]][q[1]] in whole[p[0]]

    under_own = {(p, q): F.cosine_similarity(kept[p], texts[q], dim=0) for p in places for q in places}
    under_others = {(p, q): F.cosine_similarity(pooled[p[0], q], texts[q], dim=0) for p in places for q in places}
    all_masks = torch.stack([mask[i, place] for i, _ in places for place in places])
    return {
        "tcl_v": 0.1 * nce(under_own, same, method.tcl_v_scale.exp()),
        "tcl_f": 0.1 * nce(under_others, has, method.tcl_f_scale.exp()),
        "area": 0.4 * (torch.stack([mask[p[0], p] for p in places]).mean() - 0.4).abs(),
        "area_negative": 0.4 * torch.stack([mask[p[0], q] for p in places for q in places if not has(p, q)]).mean(),
        "tv_features": dense.diff(dim=3).abs().mean() + dense.diff(dim=2).abs().mean(),
        "tv_masks": all_masks.diff(dim=2).abs().mean() + all_masks.diff(dim=1).abs().mean(),
    }


def test_losses_and_gradients_are_those_of_the_definition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = build(tmp_path, "exact", texts="entities").double()
    batch, uniform = entity_texts(tmp_path)
    batch, uniform = batch._replace(image=batch.image.double()), uniform.double()
    monkeypatch.setattr(torch, "rand_like", lambda _: uniform.clone())
    results = []
    for losses in (plain_losses(method, batch, uniform), method.losses(batch)):
        method.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        gradients = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
        results.append({name: loss.detach() for name, loss in losses.items()} | gradients)
    expected, found = results
    assert len(found) > 26
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


def test_an_entity_that_two_images_share_changes_the_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were another's entity a name of its own, it would be a negative."""
    method = build(tmp_path, "exact", texts="entities")
    batch, uniform = entity_texts(tmp_path)
    monkeypatch.setattr(torch, "rand_like", lambda _: uniform.clone())
    found = method.losses(batch)
    apart = {"label": torch.arange(16).view(8, 2), "labels": torch.arange(16).view(8, 2)}
    other = method.losses(batch._replace(texts=batch.texts | apart))
    assert {name for name in found if not torch.equal(found[name], other[name])} == {"tcl_v", "tcl_f", "area_negative"}
    assert other["tcl_f"] > found["tcl_f"]


def test_the_ablations_first_row_and_a_batch_of_one_name(tmp_path: Path) -> None:
    """Where every image has the one entity of them all, nothing is left to be told apart."""
    weights = {"whole_image_weight": 0.1, "tcl_weight": 0.0, "area_weight": 0.4, "tv_weight": 0.0}
    config = replace(tiny.tcl_config(), texts="entities", **weights)
    method = config.build(tiny.encoder(tmp_path))
    batch, _ = entity_texts(tmp_path)
    alike = {"label": torch.full((8, 2), 7), "labels": torch.tensor([[9, 7]] * 8)}
    losses = method.losses(batch._replace(texts=batch.texts | alike))
    assert set(losses) == {"whole_image", "area", "area_negative"}
    assert losses["whole_image"].item() == pytest.approx(0.0, abs=1e-6)
    assert losses["area_negative"].item() == 0.0
    assert method.losses(batch)["whole_image"] > 0.01


def test_the_official_form_has_captions_alone() -> None:
    with pytest.raises(InputError, match="fidelity: the official form knows no texts=entities"):
        TclConfig(texts="entities", fidelity="official")
