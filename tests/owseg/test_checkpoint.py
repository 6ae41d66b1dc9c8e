"""Checkpoints that say themselves what they are: `model.json`, what can be named as one, and weights given to a run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import tiny
from helpers.chain import run, summary
from helpers.paths import REPO
from owseg import InputError
from owseg.checkpoint import find_checkpoint, read_model, sha256, training_free, write_model
from owseg.encoders import EncoderConfig
from owseg.fit import WEIGHTS
from owseg.methods.tcl import TclConfig
from owseg.predict import Model, load
from owseg.published import export_official
from pipelines.app.checks import check_weights
from pipelines.app.config import ConfigError, from_dict
from pipelines.app.config import load as load_config
from pipelines.app.resolve import given_weights
from pipelines.app.settings import Config


def test_model_json_makes_an_equal_method_without_any_path_of_this_machine(tiny_run: Path) -> None:
    text = (tiny_run / "train" / "tcl" / "model.json").read_text()
    written = json.loads(text)
    found = read_model(tiny_run / "train" / "tcl")
    assert found.method == tiny.tcl_config()
    assert from_dict(TclConfig, written["method"]) == tiny.tcl_config()
    assert found.view == tiny.VIEW
    assert str(tiny_run.parent) not in text
    assert written["encoder"]["pretrained"] == "../clip/encoder.safetensors"
    assert written["encoder"]["architecture"] == {**tiny.MODEL, "quick_gelu": False}
    assert written["sha256"].keys() == {WEIGHTS, "../clip/encoder.safetensors"}


def test_model_json_is_the_same_wherever_the_run_lies(tiny_run: Path, tmp_path: Path, model: Model, photo: Path) -> None:
    moved = tmp_path / "elsewhere" / "run"
    shutil.copytree(tiny_run, moved)
    assert (load(moved).segment(photo, tiny.LABELS).labels == model.segment(photo, tiny.LABELS).labels).all()
    both = [write_model(read_model(folder / "train" / "tcl")).read_bytes() for folder in (tiny_run, moved)]
    assert both[0] == both[1]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda tcl: (tcl / "model.json").unlink(), "{tcl}: holds no model.json"),
        (lambda tcl: (tcl / "model.json").write_text("{"), "{tcl}/model.json: not what the train stage writes"),
        (lambda tcl: (tcl / "model.json").write_text("[]"), "{tcl}/model.json: not what the train stage writes"),
        (lambda tcl: edit(tcl, "method", name="other"), "{tcl}/model.json: not what the train stage writes"),
        (lambda tcl: edit(tcl, "method", unheard_of=1), "{tcl}/model.json: not what the train stage writes"),
        (lambda tcl: edit(tcl, "view", window="wide"), "{tcl}/model.json: not what the train stage writes"),
        (lambda tcl: (tcl / WEIGHTS).unlink(), "{tcl}/method.safetensors is missing, which {tcl}/model.json names"),
        (lambda tcl: (tcl / WEIGHTS).write_bytes(b"other"), "{tcl}/method.safetensors: not the weights that"),
        (lambda tcl: (tcl.parent / "clip" / "encoder.safetensors").unlink(), "clip/encoder.safetensors is missing"),
        (lambda tcl: smaller(tcl), "{tcl}/method.safetensors: belongs to another architecture"),
    ],
)
def test_a_spoilt_checkpoint_is_told_in_one_line(
    tiny_run: Path, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    tcl = tmp_path / "run" / "train" / "tcl"
    spoil(tcl)
    with pytest.raises(InputError) as caught:
        load(tcl)
    assert message.format(tcl=tcl) in str(caught.value)
    assert "\n" not in str(caught.value)


def edit(tcl: Path, section: str, **values: object) -> None:
    written = json.loads((tcl / "model.json").read_text())
    written[section] |= values
    (tcl / "model.json").write_text(json.dumps(written))


def smaller(tcl: Path) -> None:
    """Weights of another architecture, in good faith."""
    state = load_file(tcl / WEIGHTS)
    save_file({name: tensor[:1].contiguous() if tensor.ndim else tensor for name, tensor in state.items()}, tcl / WEIGHTS)
    edit(tcl, "sha256", **{WEIGHTS: sha256(tcl / WEIGHTS)})


def test_weights_of_unknown_make_are_taken_for_openais(tiny_run: Path) -> None:
    """OpenAI's CLIP is the default, and of its two readings of a file the default's is meant: QuickGELU."""
    weights = str(tiny.encoder_of(tiny_run))
    assert find_checkpoint("naclip", encoder_weights=weights).encoder.quick_gelu
    assert find_checkpoint("naclip", encoder_weights=weights, encoder_model="ViT-B-16").encoder.quick_gelu is None
    assert find_checkpoint("naclip").encoder == EncoderConfig()


def test_what_can_be_named_as_a_checkpoint(tiny_run: Path, photo: Path) -> None:
    tcl = tiny_run / "train" / "tcl"
    for name in (tiny_run, str(tcl), tcl / WEIGHTS, tcl / "model.json"):
        assert find_checkpoint(name).weights == tcl / WEIGHTS
    mode = find_checkpoint(tiny_run, "maskclip")
    assert (mode.method, mode.weights) == (training_free()["maskclip"], None)
    assert load(mode).segment(photo, tiny.LABELS, background=False).labels.shape == (40, 56)
    assert find_checkpoint("naclip").encoder.pretrained == "openai"
    encoder = str(tiny_run / "train" / "clip" / "encoder.safetensors")
    assert find_checkpoint(tcl, encoder_weights=encoder).encoder.pretrained == encoder


def test_an_official_checkpoint_gives_the_same_masks(tiny_run: Path, model: Model, photo: Path, tmp_path: Path) -> None:
    torch.save(export_official(model.segmenter), tmp_path / "tcl.pth")  # type: ignore[arg-type]
    encoder = {
        "encoder_model": str(tiny_run / "train" / "tcl" / "model.json"),
        "encoder_weights": str(tiny.encoder_of(tiny_run)),
    }
    official = load(tmp_path / "tcl.pth", **encoder, view=tiny.VIEW, templates="simple")
    assert (official.segment(photo, tiny.LABELS).scores == model.segment(photo, tiny.LABELS).scores).all()
    assert official.checkpoint.describe()["sha256"].keys() >= {"tcl.pth"}


@pytest.mark.parametrize(
    ("checkpoint", "method", "message"),
    [
        ("none", "", "none: no such checkpoint; give a folder with model.json, an official .pth, or one of"),
        ("", "", "'': no such checkpoint; give a folder"),
        ("{run}", "ovsegmentor", "{run}: which method of this run? name one of tcl, chance"),
        ("{run}/train/tcl", "ovsegmentor", "ovsegmentor: {run}/train/tcl is a checkpoint of tcl"),
        ("{run}/train/clip", "", "{run}/train/clip: holds no model.json"),
        ("{run}/train/clip/encoder.safetensors", "", "encoder.safetensors: there is no model.json beside it"),
    ],
)
def test_a_checkpoint_that_is_none_is_told_with_what_there_is(
    tiny_run: Path, checkpoint: str, method: str, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        find_checkpoint(checkpoint.format(run=tiny_run), method)
    assert message.format(run=tiny_run) in str(caught.value)


def settings(*overrides: str) -> Config:
    return load_config(Config, REPO / "configs" / "smoke.yaml", overrides)


def test_given_weights_are_checked_before_any_work(tiny_run: Path, tmp_path: Path) -> None:
    own = f"encoder.model={tiny_run}/train/tcl/model.json"
    config = settings(own, f"weights.tcl={tiny_run}/train/tcl")
    assert given_weights(config) == {"tcl": tiny_run / "train" / "tcl" / WEIGHTS}
    check_weights(config)
    with pytest.raises(InputError, match=r"none\.safetensors does not exist"):
        check_weights(settings(f"weights.tcl={tmp_path}/none.safetensors"))
    with pytest.raises(InputError, match="belongs to another architecture"):
        check_weights(settings("encoder.model=configs/miniature_clip.json", f"weights.tcl={tiny_run}/train/tcl"))
    other = tmp_path / "other.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tiny.encoder(tmp_path, seed=7).clip.state_dict().items()}, other)
    with pytest.raises(InputError, match=r"other\.safetensors: not the weights that .*model\.json was written for"):
        check_weights(settings(own, f"encoder.pretrained={other}", f"weights.tcl={tiny_run}/train/tcl"))
    with pytest.raises(ConfigError, match=r"weights.tlc: no trainable method of that name \(did you mean 'tcl'\?\)"):
        settings(f"weights.tlc={tiny_run}/train/tcl")
    with pytest.raises(ConfigError, match=r"weights\.maskclip: no trainable method of that name"):
        settings(f"weights.maskclip={tiny_run}/train/tcl")


def test_a_run_with_given_weights_trains_nothing_and_scores_them(tiny_run: Path, tmp_path: Path) -> None:
    weights = tmp_path / "mine"
    shutil.copytree(tiny_run / "train" / "tcl", weights)
    arguments = (
        *("methods=[tcl]", f"weights.tcl={weights}", f"encoder.model={tiny_run}/train/tcl/model.json"),
        *(f"encoder.pretrained={tiny.encoder_of(tiny_run)}", "evaluate.datasets=[voc21]", "evaluate.limit=2"),
        *("evaluate.pictures=false", "tracking.enabled=false"),
    )
    for change, status in ((None, "done"), (None, "skipped"), ("mask_shift", "done")):
        if change:
            state = load_file(weights / WEIGHTS)
            save_file(state | {change: state[change] - 0.1}, weights / WEIGHTS)
            (weights / "model.json").unlink()  # it would tell that these are other weights
        result = run("evaluate", tmp_path / "run", *arguments)
        assert result.returncode == 0, result.stderr
        assert "train: skipped, nothing is to be trained" in result.stdout
        stages = summary(tmp_path / "run")["stages"]
        assert (list(stages), stages["evaluate"]["status"]) == (["evaluate"], status)
    assert not (tmp_path / "run" / "train").exists()
