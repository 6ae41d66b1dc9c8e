"""Official checkpoints: names, reading without running anything, differences told, and the way back."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from helpers import tiny
from helpers.bert import save_tokenizer
from helpers.tensors import assert_same
from owseg import InputError
from owseg.checkpoint import read_model
from owseg.encoders import EncoderConfig, build_encoder
from owseg.fit import WEIGHTS, learned_state
from owseg.methods.ovsegmentor import OvSegmentor, OvSegmentorConfig
from owseg.methods.ovsegmentor.grouping import GroupingEncoder
from owseg.methods.ovsegmentor.text_tower import bert_tower
from owseg.methods.tcl import Tcl, TclConfig
from owseg.published import export_official, import_official, load_trained, official_names, read_official, recognise
from owseg.segmenter import load_segmenter
from pipelines import export
from pipelines.official import main
from references import ovsegmentor as plain


class Settings:
    """Stands for the config that official checkpoints pickle."""

    def __init__(self, **values: Any) -> None:
        self.values, self.kind, self.parent = values, int, self


class Command:
    """Unpickled in the ordinary way, it runs a program."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def trained(folder: Path, seed: int = 3) -> Tcl:
    """A TCL whose learned tensors are all random."""
    method = tiny.tcl_config().build(tiny.encoder(folder))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in method.named_parameters():
        if not name.startswith("clip."):
            parameter.data = torch.randn(parameter.shape, generator=generator)
    return method.eval()


def learned(method: Tcl) -> dict[str, torch.Tensor]:
    return learned_state(method, method.config.phases)


def with_encoder(folder: Path) -> EncoderConfig:
    """The tiny encoder's config, with weights in a file."""
    save_file(tiny.encoder(folder).clip.state_dict(), folder / "clip.safetensors")
    return EncoderConfig(model=str(folder / "model.json"), pretrained=str(folder / "clip.safetensors"))


def test_names_are_the_official_ones(tmp_path: Path) -> None:
    """As the release lists them; the copied block keeps the index of the tower's last block."""
    names = official_names(trained(tmp_path))
    assert names["block.attn.in_proj_weight"] == "masker.image_encoder.backbone.transformer.resblocks.1.attn.in_proj_weight"
    assert names["decoder.stages.0.0.gate"] == "masker.image_encoder.decoder.decoder.net.0.conv.gate.gate"
    assert names["decoder.stages.1.1.norm.bias"] == "masker.image_encoder.decoder.decoder.net.1.conv2.norm.bias"
    assert names["decoder.stages.1.0.conv.weight"] == "masker.image_encoder.decoder.decoder.net.1.conv.conv.weight"
    assert names["projection.proj"] == "masker.image_encoder.decoder.image_proj.proj"
    assert (names["mask_scale"], names["mask_shift"]) == ("masker.sim2mask.w", "masker.sim2mask.b")
    assert (names["tcl_v_scale"], names["tcl_f_scale"]) == ("tcli_loss.logit_scale", "tclf_loss.logit_scale")
    assert names["clip.visual.ln_post.bias"] == "clip_image_encoder.clip_proj.ln.bias"
    assert names["clip.visual.conv1.weight"] == "clip_image_encoder.clip_visual.conv1.weight"
    assert names["clip.token_embedding.weight"] == "clip_text_encoder.token_embedding.weight"
    assert len(set(names.values())) == len(names)


def test_the_papers_model_has_the_released_ones_size() -> None:
    """ViT-B/16: 28,725,512 numbers that learn, block 12 (index 11) among them."""
    with torch.device("meta"):
        method = TclConfig().build(build_encoder(EncoderConfig(model="ViT-B-16")))
    names, state = official_names(method), method.state_dict()
    assert sum(state[name].numel() for name in names if not name.startswith("clip.")) == 28_725_512
    assert names["block.ln_1.weight"] == "masker.image_encoder.backbone.transformer.resblocks.11.ln_1.weight"


def test_out_and_back(tmp_path: Path) -> None:
    method = trained(tmp_path)
    torch.save(export_official(method), tmp_path / "tcl.pth")
    other = tiny.tcl_config().build(tiny.encoder(tmp_path))

    differences = import_official(other, read_official(tmp_path / "tcl.pth"), "tcl.pth")

    assert differences == ([], [])
    for name, tensor in learned(method).items():
        assert torch.equal(learned(other)[name], tensor), name


def test_frozen_clip_in_the_file_takes_the_encoders_place(tmp_path: Path) -> None:
    method = trained(tmp_path)
    state = {official: method.state_dict()[name] for name, official in official_names(method).items()}
    other = tiny.tcl_config().build(tiny.encoder(tmp_path, seed=9))
    assert import_official(other, state, "tcl.pth") == ([], [])
    image, classes = torch.randn(1, 3, 32, 32), torch.randn(2, 32)
    assert torch.equal(other.eval().segment(image, classes, False), method.segment(image, classes, False))


def test_it_serves_wherever_trained_weights_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file as the release is: a pickled config beside the weights, no temperatures, something of another module."""
    method, encoder = trained(tmp_path), with_encoder(tmp_path)
    state = export_official(method)["model"]
    del state["tcli_loss.logit_scale"], state["tclf_loss.logit_scale"]
    file = {
        "model": state | {"extra.weight": torch.zeros(2)},
        "config": Settings(a=1),
        "step": 50000,
        "optimizer": {"state": {}},
    }
    torch.save(file, tmp_path / "tcl.pth")

    with caplog.at_level(logging.INFO):
        segmenter = load_segmenter(method.config, encoder, tmp_path / "tcl.pth")

    assert "missing: tcli_loss.logit_scale, tclf_loss.logit_scale" in caplog.text
    assert "left over: extra.weight" in caplog.text
    image, classes = torch.randn(1, 3, 32, 32), torch.randn(2, 32)
    assert torch.equal(segmenter.segment(image, classes, True), method.segment(image, classes, True))


@pytest.mark.parametrize("dangerous", [False, True])
def test_nothing_in_a_file_is_run(tmp_path: Path, dangerous: bool) -> None:
    """Not even where the weights themselves are fine."""
    proof, path = tmp_path / "it_ran", tmp_path / "tcl.pth"
    config: object = Command(proof) if dangerous else Settings(a=1)
    torch.save({"model": export_official(trained(tmp_path))["model"], "config": config}, path)
    if dangerous:
        with pytest.raises(InputError, match=r"re-save it .*torch\.save") as told:
            read_official(path)
        assert "\n" not in str(told.value)
    else:
        read_official(path)
    assert not proof.exists()
    if dangerous:  # and it would have
        torch.load(path, weights_only=False)
        assert proof.exists()


@pytest.mark.parametrize("content", ["text", "truncated", "no model", "a tensor"])
def test_a_foreign_file_is_told_in_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tcl.pth"
    torch.save(export_official(trained(tmp_path)), path)
    if content == "text":
        path.write_text("not a checkpoint")
    elif content == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
    elif content == "no model":
        torch.save({"weights": {}}, path)
    else:
        torch.save(torch.zeros(3), path)
    with pytest.raises(InputError, match=r"tcl\.pth") as told:
        read_official(path)
    assert "\n" not in str(told.value)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    method = trained(tmp_path)
    state = export_official(method)["model"]
    deeper = {name.replace("resblocks.1.", "resblocks.11."): tensor for name, tensor in state.items()}
    with pytest.raises(InputError, match=r"resblocks\.1\..* is missing; it has .*resblocks\.11\."):
        import_official(method, deeper, "tcl.pth")
    state["masker.image_encoder.decoder.image_proj.proj"] = torch.zeros(768, 512)
    with pytest.raises(InputError, match=r"image_proj\.proj has shape \[768, 512\], this TCL asks for \[32, 32\]"):
        import_official(method, state, "tcl.pth")


def test_the_command_line_leads_to_a_trained_folder_and_back(tmp_path: Path) -> None:
    method, encoder = trained(tmp_path), with_encoder(tmp_path)
    torch.save(export_official(method), tmp_path / "tcl.pth")
    given = ["--encoder-model", encoder.model, "--encoder-weights", encoder.pretrained]

    assert main(["import", str(tmp_path / "tcl.pth"), str(tmp_path / "folder"), *given]) == 0
    assert export.main([str(tmp_path / "folder"), str(tmp_path / "again.pth"), "--to", "official"]) == 0

    for name, tensor in load_file(tmp_path / "folder" / WEIGHTS).items():
        assert torch.equal(tensor, learned(method)[name]), name
    again = read_official(tmp_path / "again.pth")
    assert_same(again, export_official(method)["model"])


# ---- OVSegmentor

SIZES = {"tokens": 12, "groups": 4, "hidden": 24, "joint": 16}


def ovsegmentor(folder: Path, seed: int = 0) -> OvSegmentor:
    """Random, small, with a BERT of width 24 beside an image tower of width 32."""
    save_tokenizer(folder / "bert", ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog"])
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 8}
    transformers.BertConfig(**sizes, max_position_embeddings=80).save_pretrained(folder / "bert")
    torch.manual_seed(seed)
    tower = GroupingEncoder(width=32, depths=(2, 1), heads=8, grid=(4, 4), tokens=12, groups=4)
    return OvSegmentor(OvSegmentorConfig(**SIZES), tower, bert_tower(str(folder / "bert"))).eval()


def released(folder: Path) -> dict[str, torch.Tensor]:
    """A state dict as a second-stage release has it: a text tower of some name with its pooler, entries that nothing reads."""
    torch.manual_seed(7)
    state = plain.random_weights(width=32, depths=(2, 1), **SIZES, side=4)
    bert = transformers.BertModel(transformers.BertConfig.from_pretrained(folder / "bert"))
    text = {f"text_encoder.transformer.{name}": tensor for name, tensor in bert.state_dict().items()}
    return state | text | {"text_encoder.transformer.embeddings.position_ids": torch.arange(80)[None]}


def test_names_are_ovsegmentors_official_ones(tmp_path: Path) -> None:
    names = official_names(ovsegmentor(tmp_path))
    assert names["encoder.positions"] == "img_encoder.pos_embed"
    assert names["momentum.late.0.attn.qkv.weight"] == "img_encoder_momentum.layers.1.blocks.0.attn.qkv.weight"
    assert names["encoder.grouping.mlp_inter.fc2.bias"] == "img_encoder.layers.0.downsample.mlp_inter.fc2.bias"
    assert names["encoder.norm.weight"] == "img_encoder.norm.weight"
    assert names["image_head.hidden.weight"] == "img_projector.linear_hidden.0.weight"
    assert names["text_head.norm.running_var"] == "text_projector.linear_hidden.1.running_var"
    assert names["answer_head.out.bias"] == "bridge_projector.linear_out.bias"
    assert names["completion.post_attn.attn.qkv.bias"] == "multimodal_groupingblock.blocks.0.post_attn.attn.qkv.bias"
    assert names["log_scale"] == "logit_scale"
    assert len(set(names.values())) == len(names) == len(ovsegmentor(tmp_path).state_dict())


def test_an_ovsegmentor_out_and_back(tmp_path: Path) -> None:
    method, other = ovsegmentor(tmp_path), ovsegmentor(tmp_path, seed=1)
    torch.save(export_official(method), tmp_path / "best.pth")
    state = read_official(tmp_path / "best.pth")

    assert import_official(other, state, "best.pth") == ([], [])

    assert state["img_projector.linear_out.weight"].shape == (16, 24, 1)
    assert state["img_encoder.pos_embed"].shape == (16, 32)
    for name, tensor in method.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def test_a_release_is_read_to_the_last_tensor(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A pickled config beside it, counters left out; then towers and heads compute what they do under the official names."""
    method, state = ovsegmentor(tmp_path), released(tmp_path)
    lean = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    torch.save({"model": lean, "config": Settings(a=1), "epoch": 29, "optimizer": {"state": {}}}, tmp_path / "best.pth")

    with caplog.at_level(logging.INFO):
        load_trained(method, method.config.phases, tmp_path / "best.pth")

    assert "left over: nothing" in caplog.text
    assert "missing: img_projector.linear_hidden.1.num_batches_tracked" in caplog.text
    image, tokens = torch.randn(2, 3, 64, 64), torch.tensor([[2, 5, 3]])
    bert = transformers.BertModel(transformers.BertConfig.from_pretrained(tmp_path / "bert")).eval()
    bert.load_state_dict({name: state[f"text_encoder.transformer.{name}"] for name in bert.state_dict()})
    with torch.no_grad():
        for tower, name in ((method.encoder, "img_encoder"), (method.momentum, "img_encoder_momentum")):
            features = tower(image).features
            torch.testing.assert_close(features, plain.encode(state, name, image)["features"], rtol=0.0, atol=1e-5)
        for head, name in ((method.text_head, "text_projector"), (method.answer_head, "bridge_projector")):
            torch.testing.assert_close(head(features), plain.head(state, name, features), rtol=0.0, atol=1e-5)
        assert torch.equal(method.text(tokens).features, bert(input_ids=tokens).last_hidden_state)
    assert recognise(state, "best.pth") == ("ovsegmentor", SIZES)


def test_a_first_stage_file_gives_the_momentum_encoder_the_encoders_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    method, state = ovsegmentor(tmp_path), released(tmp_path)
    first = {name: tensor for name, tensor in state.items() if "momentum" not in name}
    with caplog.at_level(logging.INFO):
        assert import_official(method, first, "best.pth") == ([], [])
    assert "no img_encoder_momentum.*" in caplog.text
    assert method.momentum is not None
    for name, tensor in method.encoder.state_dict().items():
        assert torch.equal(method.momentum.state_dict()[name], tensor), name
    assert torch.equal(method.momentum.positions, state["img_encoder.pos_embed"][0])


def test_what_is_no_whole_ovsegmentor_is_told(tmp_path: Path) -> None:
    method, state = ovsegmentor(tmp_path), released(tmp_path)
    textless = {name: tensor for name, tensor in state.items() if not name.startswith("text_encoder.")}
    with pytest.raises(InputError, match=r"best\.pth: .*no text tower.*word_embeddings\.weight"):
        import_official(method, textless, "best.pth")
    with pytest.raises(InputError, match=r"best\.pth: several text towers \(text_encoder\.transformer\.\*, other\.\*\)"):
        import_official(method, state | {"other.embeddings.word_embeddings.weight": torch.zeros(8, 32)}, "best.pth")
    with pytest.raises(InputError, match=r"no official OVSegmentor .*layer\.0\.output\.dense\.bias is missing"):
        import_official(method, {name: x for name, x in state.items() if not name.endswith("0.output.dense.bias")}, "best.pth")
    with pytest.raises(InputError, match=r"pos_embed has shape \[1, 196, 32\], this OVSegmentor asks for \[16, 32\]"):
        import_official(method, state | {"img_encoder.pos_embed": torch.zeros(1, 196, 32)}, "best.pth")
    wide = torch.zeros(16, 24, 3)
    with pytest.raises(InputError, match=r"linear_out.weight has shape \[16, 24, 3\], .* asks for \[16, 24, 1\]"):
        import_official(method, state | {"img_projector.linear_out.weight": wide}, "best.pth")


@pytest.mark.parametrize("spoil", [Tensor.to_sparse, lambda x: x + 0j, Tensor.tolist])
def test_what_is_no_plain_tensor_is_told(tmp_path: Path, spoil: Callable[[Tensor], Any]) -> None:
    method, state = ovsegmentor(tmp_path), released(tmp_path)
    with pytest.raises(InputError, match=r"best\.pth: .*img_encoder\.norm\.weight has shape None"):
        import_official(method, state | {"img_encoder.norm.weight": spoil(state["img_encoder.norm.weight"])}, "best.pth")


def test_one_methods_file_is_not_taken_for_the_others(tmp_path: Path) -> None:
    tcl, method = trained(tmp_path), ovsegmentor(tmp_path)
    tcls, its = (export_official(one)["model"] for one in (tcl, method))
    with pytest.raises(InputError, match=r"official checkpoint of TCL, not of OVSegmentor"):
        import_official(method, tcls, "tcl.pth")
    with pytest.raises(InputError, match=r"official checkpoint of OVSegmentor, not of TCL"):
        import_official(tcl, its, "best.pth")
    assert recognise(tcls, "tcl.pth") == ("tcl", {})
    with pytest.raises(InputError, match=r"some\.pth: .*TCL \(masker\.\*\) or OVSegmentor"):
        recognise({"weight": torch.zeros(3)}, "some.pth")
    with pytest.raises(InputError, match=r"not all of one .*group_token"):
        recognise({"img_encoder.norm.bias": torch.zeros(3)}, "part.pth")


def test_an_ovsegmentor_of_clip_towers_serves_and_goes_through_the_command_line(tmp_path: Path) -> None:
    encoder = with_encoder(tmp_path)
    method = tiny.ovsegmentor_config().build(tiny.encoder(tmp_path, seed=5)).eval()
    file, again = tmp_path / "best.pth", tmp_path / "again.pth"
    torch.save(export_official(method), file)

    segmenter = load_segmenter(method.config, encoder, file)
    image, classes = torch.randn(1, 3, 32, 32), torch.randn(2, 16)
    assert torch.equal(segmenter.segment(image, classes, True), method.segment(image, classes, True))

    given = ["--encoder-model", encoder.model, "--encoder-weights", encoder.pretrained]
    given += ["--method", "ovsegmentor", "--image-tower", "clip", "--text-tower", "clip"]
    assert main(["import", str(file), str(tmp_path / "folder"), *given]) == 0
    assert export.main([str(tmp_path / "folder"), str(again), "--to", "official"]) == 0

    config = read_model(tmp_path / "folder").method
    assert isinstance(config, OvSegmentorConfig)
    assert (config.tokens, config.groups, config.hidden, config.joint) == (6, 3, 24, 16)
    before, after = read_official(file), read_official(again)
    assert_same(after, before)
