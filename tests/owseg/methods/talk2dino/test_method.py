"""Talk2DINO's formulas written out plainly, its frozen tower, what it learns, and what it refuses."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from helpers import tiny
from helpers.tensors import assert_same
from owseg import InputError
from owseg.data import CaptionBatches
from owseg.engine import TorchEngine
from owseg.entity_labels import NONE
from owseg.fit import fit, learned_state
from owseg.methods.talk2dino import Talk2Dino
from owseg.methods.talk2dino.attention import class_attention, head_embeddings
from owseg.methods.talk2dino.cleaning import cleaned
from owseg.methods.talk2dino.contrast import caption_contrast, entity_contrast
from owseg.methods.talk2dino.entity_prompts import EntityPrompts
from owseg.published import export_official, load_trained, read_official, recognise
from owseg.shards import ShardReader
from owseg.text import clip_tokenizer, prompt_templates


def test_attention_and_embeddings_one_number_at_a_time() -> None:
    torch.manual_seed(0)
    images, heads, prefix, patches, width = 2, 3, 5, 4, 6
    qkv, tokens = torch.randn(images, prefix + patches, 3 * width), torch.randn(images, patches, width)
    query, key, _ = qkv.reshape(images, prefix + patches, 3, heads, -1).permute(2, 0, 3, 1, 4)
    logits = class_attention(query, key, prefix)
    found = head_embeddings(logits, tokens)
    each = width // heads
    for image in range(images):
        for head in range(heads):
            rows = slice(head * each, (head + 1) * each)
            query = qkv[image, 0, :width][rows]
            keys = [qkv[image, prefix + p, width : 2 * width][rows] for p in range(patches)]
            plain = torch.stack([0.125 * (query * key).sum() for key in keys])
            torch.testing.assert_close(logits[image, head], plain)
            weights = plain.exp() / plain.exp().sum()
            mean = sum(weight * token for weight, token in zip(weights, tokens[image], strict=True)) / patches
            torch.testing.assert_close(found[image, head], mean)


def test_an_image_keeps_the_head_of_its_own_caption_for_all_others() -> None:
    """Where each pair chose its head, the loss would be another."""
    torch.manual_seed(0)
    texts, heads = torch.randn(4, 8), torch.randn(4, 3, 8)
    unit_texts, unit_heads = F.normalize(texts, dim=-1), F.normalize(heads, dim=-1)
    own = torch.stack([unit_heads[i, (unit_heads[i] @ unit_texts[i]).argmax()] for i in range(4)])
    logits = unit_texts @ own.T / 0.07
    plain = (F.cross_entropy(logits, torch.arange(4)) + F.cross_entropy(logits.T, torch.arange(4))) / 2
    torch.testing.assert_close(caption_contrast(own, texts, official=False), plain)
    torch.testing.assert_close(caption_contrast(own, texts, official=True), plain / 16)
    best = torch.einsum("ic,jmc->ijm", unit_texts, unit_heads).amax(dim=2) / 0.07
    assert abs(F.cross_entropy(best, torch.arange(4)) - F.cross_entropy(logits, torch.arange(4))) > 0.01


def test_an_entity_matches_every_image_that_has_it_under_its_own_head() -> None:
    """Written out pair by pair: image 0 has dog and grass, image 1 dog, image 2 sea."""
    torch.manual_seed(0)
    dog, grass, sea = 5, 7, 9
    labels = torch.tensor([[dog, grass], [dog, NONE], [sea, NONE]])
    image, text = torch.randn(2, 3, 2, 8)
    places = [(0, 0), (0, 1), (1, 0), (2, 0)]
    cosine = {(a, b): F.cosine_similarity(text[a], image[b], dim=0) / 0.07 for a in places for b in places}
    losses = []
    for a in places:
        for direction in ("text", "image"):
            logits, positive = [], []
            for b in places:
                of_text, of_image = (a, b) if direction == "text" else (b, a)
                same = labels[of_text] == labels[of_image]
                has = bool((labels[of_image[0]] == labels[of_text]).any())
                if same or not has:
                    logits.append(cosine[of_text, of_image])
                    positive.append(bool(same))
            shares = torch.stack(logits).log_softmax(dim=0)
            losses.append(-shares[torch.tensor(positive)].mean())
    torch.testing.assert_close(entity_contrast(image, text, labels), torch.stack(losses).mean())
    assert entity_contrast(image, text, torch.full((3, 2), NONE)) == 0


def test_entities_of_an_image_are_its_texts() -> None:
    tokenize = clip_tokenizer(1024, 16)
    prepare = EntityPrompts(tokenize)
    found = prepare(["a dog on grass", "hm"], [["dog", "grass", "dog"], []], None, [random.Random(0), random.Random(1)])
    assert found["entity"].shape == (2, 4, 16)
    assert (found["labels"] != NONE).tolist() == [[True, True, False, False], [True, False, False, False]]
    for name in ("dog", "grass"):
        prompts = tokenize([template.format(name) for template in prompt_templates("imagenet7")]).tolist()
        assert sum(row in prompts for row in found["entity"][0, :2].tolist()) == 1
    assert found["entity"][1, 0].tolist() == tokenize("hm")[0].tolist()


def test_cleaning_treats_each_image_by_itself_and_stays_within_the_scores() -> None:
    torch.manual_seed(0)
    patches, logits, classes = torch.randn(3, 9, 8), torch.randn(3, 2, 9), F.normalize(torch.randn(5, 8), dim=-1)
    scores = (classes @ F.normalize(patches, dim=-1).transpose(1, 2)).sigmoid()
    together = cleaned(scores, logits, patches, classes, 0.2)
    alone = [cleaned(scores[i : i + 1], logits[i : i + 1], patches[i : i + 1], classes, 0.2) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))
    assert (together.amin(dim=(1, 2)) >= scores.amin(dim=(1, 2)) - 1e-6).all()
    assert (together.amax(dim=(1, 2)) <= scores.amax(dim=(1, 2)) + 1e-6).all()
    torch.testing.assert_close(cleaned(scores, logits, patches, classes, 0.0), scores)


@pytest.fixture
def method(tmp_path: Path) -> Talk2Dino:
    torch.manual_seed(0)
    return tiny.talk2dino_config().build(tiny.encoder(tmp_path)).eval()


def test_the_tower_gives_what_timm_gives(method: Talk2Dino) -> None:
    """Patches are those after the last norm, without class token and registers."""
    image = torch.randn(2, 3, 40, 24)
    seen = method.image(image)
    tokens = method.image.vit.forward_features(image)
    assert (method.image.prefix, seen.grid) == (5, (5, 3))
    torch.testing.assert_close(seen.patches, tokens[:, 5:])
    assert seen.attention.shape == (2, 2, 15)


def test_scores_with_a_background_and_without(method: Talk2Dino) -> None:
    classes = method.embed_classes(["a red wall", "something blue"])
    torch.testing.assert_close(classes.norm(dim=1), torch.ones(2))
    image = torch.randn(2, 3, 30, 44)  # no whole patches: padded, and cut again
    plain, whole = method.segment(image, classes, False), method.segment(image, classes, True)
    assert plain.shape == (2, 2, 30, 44)
    assert whole.shape == (2, 3, 30, 44)
    assert (whole[:, 0] == 0.55).all()
    assert (plain >= 0.268).all()
    assert (plain <= 0.732).all()
    torch.testing.assert_close(plain, whole[:, 1:])
    method.config = replace(method.config, clean=0.0)
    assert not torch.allclose(plain, method.segment(image, classes, False)), (
        "the evaluator draws no plane, and yet it is cleaned"
    )


def test_cleaning_is_for_the_sets_that_the_official_evaluation_cleans() -> None:
    config = tiny.talk2dino_config()
    assert [config.for_dataset(name).clean for name in ("voc21", "coco_object", "context60", "mine")] == [0.2, 0.2, 0.0, 0.0]


@pytest.mark.parametrize("head", ["caption", "entity"])
def test_only_the_map_learns_and_the_loss_falls(head: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = tiny.talk2dino_config(steps=30, head=head)
    method = config.build(tiny.encoder(tmp_path))
    before = {name: value.clone() for name, value in method.state_dict().items()}
    reader = ShardReader(tiny.write_shards(tmp_path / "shards"), entities=True)
    drawn = CaptionBatches(
        reader, method.tokenize, config.augment, normalisation=tiny.HALF, batch_size=8, seed=0, prepare=method.prepare
    )
    losses: list[float] = []
    fit(
        method,
        config.phases,
        config.optim,
        lambda groups, optim: TorchEngine(method, groups, optim),
        lambda span, step: (drawn[number] for number in range(step, span.stop)),
        seed=0,
        log_every=1,
        on_log=lambda step, found, lr, more: losses.append(found["contrast"]),
    )
    changed = {name for name, value in method.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"projection.{layer}.{kind}" for layer in ("first", "second") for kind in ("weight", "bias")}
    assert learned_state(method, config.phases).keys() == changed
    assert sum(losses[-5:]) < sum(losses[:5])


@pytest.mark.parametrize("older", [False, True], ids=["todays", "older"])
def test_released_maps_are_read_and_written_by_their_names(older: bool, tmp_path: Path, method: Talk2Dino) -> None:
    """Files are bare state dicts of the map; older ones call its second layer linear_layer2."""
    state = export_official(method)
    assert state.keys() == {f"{layer}.{kind}" for layer in ("linear_layer", "hidden_layers.0") for kind in ("weight", "bias")}
    state = {name: value + 1 for name, value in state.items()}
    names = {name: name.replace("hidden_layers.0", "linear_layer2") if older else name for name in state}
    torch.save({names[name]: value for name, value in state.items()}, tmp_path / "map.pth")
    assert recognise(read_official(tmp_path / "map.pth"), "map.pth") == ("talk2dino", {})
    load_trained(method, method.config.phases, tmp_path / "map.pth")
    assert_same(export_official(method), state)


def test_a_map_that_lacks_a_layer_or_is_of_another_width_is_told(tmp_path: Path, method: Talk2Dino) -> None:
    whole = export_official(method)
    torch.save({name: value for name, value in whole.items() if "hidden" not in name}, tmp_path / "half.pth")
    with pytest.raises(InputError, match=r"half\.pth: no official Talk2DINO checkpoint .*hidden_layers\.0\.weight is missing"):
        load_trained(method, method.config.phases, tmp_path / "half.pth")
    wide = {name: torch.zeros(*value.shape[:-1], 64) for name, value in whole.items()}
    torch.save({**whole, "linear_layer.weight": wide["linear_layer.weight"]}, tmp_path / "wide.pth")
    with pytest.raises(InputError, match=r"wide\.pth: belongs to another architecture \(linear_layer\.weight has"):
        load_trained(method, method.config.phases, tmp_path / "wide.pth")


@pytest.mark.parametrize(
    ("tower", "told"),
    [
        ("vit_medium_patch16_gap_256", "vit_medium_patch16_gap_256 has no class token"),
        ("no_such_vit", "timm cannot build 'no_such_vit'"),
        ("resnet50", "timm cannot build 'resnet50'"),
    ],
)
def test_towers_that_cannot_serve(tower: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"^method_settings\.talk2dino\.image_tower: .*({told})"):
        tiny.talk2dino_config(image_tower=tower, image_size=type(tiny.talk2dino_config().image_size)()).build(
            tiny.encoder(tmp_path)
        )


def test_weights_of_another_tower_are_refused(tmp_path: Path, method: Talk2Dino) -> None:
    other = tmp_path / "other.pth"
    torch.save({name: value for name, value in method.image.vit.state_dict().items() if "reg" not in name}, other)
    with pytest.raises(InputError, match=r"^method_settings\.talk2dino\.image_weights: .*reg_token is missing"):
        method.image.load(str(other))
    own = tmp_path / "own.pth"
    torch.save(method.image.vit.state_dict(), own)
    method.image.load(str(own))
