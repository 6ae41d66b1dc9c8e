"""Text towers say what the models behind them say, for every position that is no padding."""

import json
import pickle
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from helpers import tiny
from helpers.bert import SIZES, WORDS, save_bert, save_tokenizer
from owseg import InputError
from owseg.encoders import Encoder
from owseg.methods.ovsegmentor.text_tower import ClipTower, bert_tower, clip_text_tower

TEXTS = ["a dog on the road.", "the [MASK], two cats", "", "[PAD] says a [PAD] 🐕 dog [PAD]", "a dog " * 60]


@pytest.fixture
def clip(tmp_path: Path) -> Encoder:
    encoder = tiny.encoder(tmp_path)
    return Encoder(encoder.clip.eval().requires_grad_(False), encoder.tokenize)


# ---- transformers


@pytest.mark.parametrize("kind", SIZES)
def test_features_are_those_of_the_transformers_model(tmp_path: Path, kind: str) -> None:
    model = save_bert(tmp_path, kind)
    tower = bert_tower(str(tmp_path)).eval()
    tower.load()
    given = transformers.AutoTokenizer.from_pretrained(tmp_path)(
        TEXTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    )

    tokens = tower.tokenize(TEXTS)
    texts = tower(tokens)

    assert torch.equal(tokens, given["input_ids"])
    assert tokens.dtype == torch.int64
    assert torch.equal(texts.real.long(), given["attention_mask"])
    expected = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).last_hidden_state
    assert torch.equal(texts.features, expected)
    assert torch.equal(texts.sentence, expected[:, 0])
    assert tower.width == 32


def test_weights_are_random_until_loaded(tmp_path: Path) -> None:
    saved = save_bert(tmp_path).state_dict()
    tower = bert_tower(str(tmp_path))
    weight = tower.state_dict()["model.encoder.layer.1.output.dense.weight"].clone()
    tower.load()
    loaded = {name.removeprefix("model."): value for name, value in tower.state_dict().items()}
    assert not torch.equal(weight, saved["encoder.layer.1.output.dense.weight"])
    assert loaded.keys() == {name for name in saved if not name.startswith("pooler.")}
    assert all(torch.equal(value, saved[name]) for name, value in loaded.items())


def test_half_precision_files_are_read_in_full_precision(tmp_path: Path) -> None:
    save_bert(tmp_path).half().save_pretrained(tmp_path)
    tower = bert_tower(str(tmp_path))
    tower.load()
    assert {tensor.dtype for tensor in tower.parameters()} == {torch.float32}


def test_heads_of_pretraining_do_not_matter(tmp_path: Path) -> None:
    model = save_bert(tmp_path)
    heads = transformers.BertForMaskedLM(model.config)
    heads.save_pretrained(tmp_path)
    tower = bert_tower(str(tmp_path))
    tower.load()
    name = "embeddings.word_embeddings.weight"
    assert torch.equal(tower.state_dict()[f"model.{name}"], heads.bert.state_dict()[name])


def test_loading_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    transformers.BertForMaskedLM(save_bert(tmp_path).config).save_pretrained(tmp_path)
    capfd.readouterr()
    bert_tower(str(tmp_path)).load()
    assert capfd.readouterr() == ("", "")


def test_the_official_model_comes_with_the_official_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_bert(tmp_path / "bert-base-uncased")
    other = tmp_path / "distilbert-base-uncased"
    save_bert(other, "distilbert")
    save_tokenizer(other, [*WORDS, "umbrella"])
    monkeypatch.chdir(tmp_path)
    assert bert_tower("bert-base-uncased").tokenize("umbrella")[0, 1] == len(WORDS)


def test_few_positions_shorten_the_context(tmp_path: Path) -> None:
    save_bert(tmp_path, max_position_embeddings=12)
    tower = bert_tower(str(tmp_path))
    tokens = tower.tokenize(TEXTS)
    assert tokens.shape == (len(TEXTS), 12)
    assert tower(tokens).features.shape == (len(TEXTS), 12, 32)


def test_the_mask_word_is_one_token(tmp_path: Path) -> None:
    save_bert(tmp_path)
    tower = bert_tower(str(tmp_path))
    tokens = tower.tokenize(f"a {tower.mask_word}, two {tower.mask_word}s")
    found = " ".join(WORDS[token] for token in tokens[0, :9])
    assert found == "[CLS] a [MASK] , two [MASK] [UNK] [SEP] [PAD]"


def test_tokenizers_travel_to_loader_processes(tmp_path: Path, clip: Encoder) -> None:
    save_bert(tmp_path / "bert")
    for tower in (bert_tower(str(tmp_path / "bert")), clip_text_tower(clip)):
        again = pickle.loads(pickle.dumps(tower.tokenize))
        assert torch.equal(again(TEXTS), tower.tokenize(TEXTS))


# ---- models that cannot serve


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as told:
        bert_tower(str(folder)).load()
    assert "\n" not in str(told.value)
    assert str(told.value).startswith("method_settings.ovsegmentor.text_tower: ")
    return str(told.value)


@pytest.mark.parametrize("broken", ["no folder", "empty", "config", "tokenizer", "weights", "damaged"])
def test_broken_folders_are_told(tmp_path: Path, broken: str) -> None:
    folder = tmp_path / "bert"
    if broken != "no folder":
        save_bert(folder)
    match broken:
        case "empty":
            for path in folder.iterdir():
                path.unlink()
        case "config":
            (folder / "config.json").write_text('{"model_type": "no such"}')
        case "tokenizer":
            for name in ("tokenizer.json", "tokenizer_config.json", "words.txt"):
                (folder / name).unlink()
        case "weights":
            (folder / "model.safetensors").unlink()
        case "damaged":
            (folder / "model.safetensors").write_bytes(b"\0" * 100)
    assert "local folder" in refusal(folder)


def test_missing_weights_are_told(tmp_path: Path) -> None:
    save_bert(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    assert "lacks weights of its text model (encoder.layer.2." in refusal(tmp_path)


def test_weights_of_another_shape_are_told(tmp_path: Path) -> None:
    save_bert(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    refusal(tmp_path)


def test_models_without_a_mask_token_are_told(tmp_path: Path) -> None:
    save_bert(tmp_path)
    model = transformers.BartConfig(vocab_size=40, d_model=32, encoder_layers=1, decoder_layers=1)
    model.save_pretrained(tmp_path)
    assert "no plain encoder" in refusal(tmp_path)


def test_a_vocabulary_beyond_the_model_is_told(tmp_path: Path) -> None:
    save_bert(tmp_path, vocab_size=10)
    assert f"knows {len(WORDS)} tokens, the model 10" in refusal(tmp_path)


# ---- CLIP


def captions(clip: Encoder) -> Tensor:
    return clip.tokenize(["a red wall", "a m and the green thing!", "", "blue " * 40])


def test_sentences_are_clips_before_its_projection(clip: Encoder) -> None:
    tokens = captions(clip)
    texts = clip_text_tower(clip)(tokens)
    expected = clip.clip.encode_text(tokens)
    torch.testing.assert_close(texts.sentence @ clip.clip.text_projection, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(texts.position, tokens.argmax(dim=1))
    assert torch.equal(texts.real.sum(dim=1), texts.position + 1)
    assert texts.real[:, 0].all()


def test_the_copy_learns_and_the_run_s_clip_does_not(clip: Encoder) -> None:
    tokens = captions(clip)
    tower = clip_text_tower(clip)
    before = clip.clip.encode_text(tokens)
    tower(tokens).sentence.square().sum().backward()
    assert all(parameter.grad is not None for parameter in tower.parameters())
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter += parameter.grad
    assert torch.equal(clip.clip.encode_text(tokens), before)


def test_clips_mask_word_is_the_official_token(clip: Encoder) -> None:
    tower = clip_text_tower(clip)
    assert tower.tokenize(f"a {tower.mask_word}")[0, 2] == 332
    assert tower.width == 32


# ---- both


@pytest.mark.parametrize("kind", ["bert", "roberta", "clip"])
def test_trimmed_texts_read_the_same(tmp_path: Path, clip: Encoder, kind: str) -> None:
    if kind != "clip":
        save_bert(tmp_path / kind, kind)
    tower = (ClipTower(clip) if kind == "clip" else bert_tower(str(tmp_path / kind))).eval()
    tokens = tower.tokenize(["a dog on the road.", "two cats", ""])
    whole = tower(tokens)
    trimmed = tower.trim(tokens)
    longest = int(whole.real.sum(dim=1).max())
    assert trimmed.shape == (3, longest)
    assert longest < tokens.shape[1]
    texts = tower(trimmed)
    assert torch.equal(texts.real, whole.real[:, :longest])
    assert torch.equal(texts.position, whole.position)
    torch.testing.assert_close(texts.features[texts.real], whole.features[whole.real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "clip"])
@pytest.mark.parametrize("count", [1, 2, 70])
def test_texts_by_length_read_the_same_in_the_same_order(tmp_path: Path, clip: Encoder, kind: str, count: int) -> None:
    if kind == "bert":
        save_bert(tmp_path / kind)
    tower = (ClipTower(clip) if kind == "clip" else bert_tower(str(tmp_path / kind))).eval()
    tokens = tower.tokenize([("a dog " * (index * 5 % 7)).strip() for index in range(count)])
    whole, texts = tower(tower.trim(tokens)), tower.forward_bucketed(tokens)
    assert torch.equal(texts.real, whole.real)
    assert torch.equal(texts.position, whole.position)
    torch.testing.assert_close(texts.features[texts.real], whole.features[whole.real], rtol=1e-5, atol=1e-5)
    assert texts.features.shape == whole.features.shape
    torch.testing.assert_close(texts.sentence, whole.sentence, rtol=1e-5, atol=1e-5)
