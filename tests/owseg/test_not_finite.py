"""Weights and scores that are no numbers are refused in one line that names the file and the tensor, whatever brings them."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from helpers import tiny
from helpers.voc import PLAIN, RandomLabels
from owseg import InputError
from owseg.checkpoint import MODEL, sha256
from owseg.encoders import load_encoder
from owseg.evaluation.inference import predict_scores
from owseg.evaluation.protocols import View
from owseg.fit import WEIGHTS
from owseg.predict import load
from owseg.published import export_official
from owseg.segmenter import load_segmenter
from owseg.vit import timm_state
from pipelines import segment

TENSOR = "mask_shift"


def spoil(state: dict[str, Tensor], name: str, value: float) -> dict[str, Tensor]:
    """The state with one number replaced."""
    tensor = state[name].clone()
    tensor.view(-1)[0] = value
    return {**state, name: tensor}


def spoiled_run(folder: Path, value: float) -> Path:
    """A run's folder as a training that lost its numbers leaves it: `model.json` was written for these very weights."""
    run = tiny.write_run(folder)
    tcl = run / "train" / "tcl"
    save_file(spoil(load_file(tcl / WEIGHTS), TENSOR, value), tcl / WEIGHTS)
    model = json.loads((tcl / MODEL).read_text())
    model["sha256"][WEIGHTS] = sha256(tcl / WEIGHTS)
    (tcl / MODEL).write_text(json.dumps(model))
    return run


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_runs_weights(tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str], value: float) -> None:
    run = spoiled_run(tmp_path / "run", value)
    assert segment.main([str(photo), "--labels", "a", "--checkpoint", str(run), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {run}/train/tcl/{WEIGHTS}: {TENSOR} is not finite; give a checkpoint from before")


def test_an_official_file(tmp_path: Path) -> None:
    run = tiny.write_run(tmp_path / "run")
    method, encoder = tiny.tcl_config(), tiny.encoder_config(run / "train" / "clip", str(tiny.encoder_of(run)))
    exported = export_official(method.build(load_encoder(encoder)))
    exported["model"] = {name: tensor + math.nan for name, tensor in exported["model"].items()}
    torch.save(exported, tmp_path / "tcl.pth")
    with pytest.raises(InputError, match=rf"{tmp_path}/tcl\.pth: \S+ is not finite \(\d+ tensors are not\); give"):
        load_segmenter(method, encoder, tmp_path / "tcl.pth")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_an_encoders_weights(tmp_path: Path, suffix: str) -> None:
    run = tiny.write_run(tmp_path / "run")
    state = spoil(load_file(tiny.encoder_of(run)), "visual.proj", -math.inf)
    file = tmp_path / f"clip{suffix}"
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    with pytest.raises(InputError, match=rf"encoder\.pretrained: {file}: visual\.proj is not finite; give"):
        load_encoder(tiny.encoder_config(run / "train" / "clip", str(file)))


def test_a_towers_file(tmp_path: Path) -> None:
    save_file({"cls_token": torch.full((1, 1, 4), math.nan)}, tmp_path / "vit.safetensors")
    with pytest.raises(InputError, match=r"image_weights: .*vit\.safetensors: cls_token is not finite"):
        timm_state("vit_tiny_patch16_224", str(tmp_path / "vit.safetensors"), tower="image_tower", file="image_weights")


class Lost(RandomLabels):
    """A method with finite weights whose scores are none for some windows."""

    def segment(self, image: Tensor, classes: Tensor, background: bool) -> Tensor:
        scores = super().segment(image, classes, background)
        scores[:, -1, 0, 0] = math.nan
        return scores


def test_scores(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view = View(short_side=32, window=32, stride=16)
    with pytest.raises(InputError, match="the method's scores are not finite numbers"):
        predict_scores(Lost(), np.zeros((40, 60, 3), np.uint8), torch.ones(3, 3), False, view, PLAIN)
    model = load(tiny_run)
    of_segment: Callable[..., Tensor] = model.segmenter.segment
    monkeypatch.setattr(model.segmenter, "segment", lambda *arguments: of_segment(*arguments) * math.inf)
    with pytest.raises(InputError, match="the method's scores are not finite numbers"):
        model.segment(tiny.blocks(40, 56), ["a", "b"])
