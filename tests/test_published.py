"""Official TCL checkpoints: names, reading without running anything, differences told, and the way back."""

import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from owseg import InputError
from owseg.encoders import EncoderConfig, build_encoder
from owseg.fit import WEIGHTS, learned_state
from owseg.methods import load_segmenter
from owseg.methods.tcl import Tcl, TclMethod
from owseg.published import export_official, import_official, main, official_names, read_official


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


def trained(folder: Path, seed: int = 3) -> TclMethod:
    """A TCL whose learned tensors are all random."""
    method = tiny.tcl_config().build(tiny.encoder(folder))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in method.named_parameters():
        if not name.startswith("clip."):
            parameter.data = torch.randn(parameter.shape, generator=generator)
    return method.eval()


def learned(method: TclMethod) -> dict[str, torch.Tensor]:
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
        method = Tcl().build(build_encoder(EncoderConfig(model="ViT-B-16")))
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
    with pytest.raises(InputError, match=r"image_proj\.proj has shape \[768, 512\], the encoder asks for \[32, 32\]"):
        import_official(method, state, "tcl.pth")


def test_the_command_line_leads_to_a_trained_folder_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method, encoder = trained(tmp_path), with_encoder(tmp_path)
    torch.save(export_official(method), tmp_path / "tcl.pth")
    given = ["--encoder-model", encoder.model, "--encoder-weights", encoder.pretrained]

    monkeypatch.setattr(sys, "argv", ["published", "import", str(tmp_path / "tcl.pth"), str(tmp_path / "folder"), *given])
    main()
    monkeypatch.setattr(sys, "argv", ["published", "export", str(tmp_path / "folder"), str(tmp_path / "again.pth")])
    main()

    for name, tensor in load_file(tmp_path / "folder" / WEIGHTS).items():
        assert torch.equal(tensor, learned(method)[name]), name
    again = read_official(tmp_path / "again.pth")
    assert again.keys() == export_official(method)["model"].keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in export_official(method)["model"].items())
