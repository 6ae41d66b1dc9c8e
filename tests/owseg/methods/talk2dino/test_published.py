"""Released maps through the command line and back, exports that move, and weights and windows that do not fit: files that
the tests write."""

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import tiny
from helpers.paths import REPO
from helpers.tensors import assert_same
from owseg import InputError
from owseg.checkpoint import Checkpoint, read_model, write_model
from owseg.encoders import EncoderConfig
from owseg.evaluation.inference import refuse_window
from owseg.fit import WEIGHTS, learned_state
from owseg.methods.talk2dino import Talk2Dino, Talk2DinoConfig
from owseg.published import export_official, import_official, load_trained, read_official
from owseg.vit import VitSize
from pipelines import export, official, segment
from pipelines.app.checks import check_methods, check_weights
from pipelines.app.config import load
from pipelines.app.settings import Config

TOWER = "vit_tiny_patch16_224"
"""Its maps are 192 wide."""


def encoder(folder: Path) -> EncoderConfig:
    """The tiny CLIP with its weights in a file."""
    weights = folder / "clip.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tiny.encoder(folder).clip.state_dict().items()}, weights)
    return tiny.encoder_config(folder, str(weights))


def released(width: int = 192, text: int = 32) -> dict[str, torch.Tensor]:
    """A map as it is released, for a tower so wide and texts of the tiny CLIP."""
    torch.manual_seed(1)
    shapes = {"linear_layer.weight": (width, text), "linear_layer.bias": (width,)}
    shapes |= {"hidden_layers.0.weight": (width, width), "hidden_layers.0.bias": (width,)}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("older", [False, True], ids=["todays", "older"])
def test_a_released_map_becomes_a_trained_folder_and_goes_back(older: bool, tmp_path: Path) -> None:
    clip, state = encoder(tmp_path), released()
    given = {name.replace("hidden_layers.0", "linear_layer2") if older else name: value for name, value in state.items()}
    torch.save(given, tmp_path / "map.pth")
    options = ["--encoder-model", clip.model, "--encoder-weights", clip.pretrained, "--image-tower", TOWER]
    assert official.main(["import", str(tmp_path / "map.pth"), str(tmp_path / "folder"), *options]) == 0
    method = read_model(tmp_path / "folder").method
    assert isinstance(method, Talk2DinoConfig)
    assert method.image_tower == TOWER
    assert load_file(tmp_path / "folder" / WEIGHTS).keys() == {
        f"projection.{layer}.{kind}" for layer in ("first", "second") for kind in ("weight", "bias")
    }
    assert export.main([str(tmp_path / "folder"), str(tmp_path / "again.pth"), "--to", "official"]) == 0
    assert_same(read_official(tmp_path / "again.pth"), state)
    assert "Talk2DINO" in (tmp_path / "again.pth.md").read_text() or "talk2dino" in (tmp_path / "again.pth.md").read_text()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"hidden_layers.0.bias": None}, r"no official Talk2DINO checkpoint .*\(hidden_layers\.0\.bias is missing\)"),
        (
            released(text=64),
            r"linear_layer\.weight has shape \[192, 64\], this Talk2DINO asks for \[192, 32\]\); give the towers",
        ),
        (released(width=768), r"linear_layer\.weight has shape \[768, 32\], this Talk2DINO asks for \[192, 32\]"),
        (
            {"hidden_layers.1.weight": torch.zeros(192, 192)},
            r"has hidden_layers\.1\.weight: a map of more layers is another model",
        ),
        ({"linear_layer.bias": torch.full((192,), torch.nan)}, r"projection\.first\.bias is not finite"),
        ({"linear_layer.weight": torch.zeros(192, 32, dtype=torch.complex64)}, r"linear_layer\.weight has shape None"),
    ],
    ids=["lacks a tensor", "texts of another CLIP", "patches of another tower", "deeper", "not finite", "no plain tensor"],
)
def test_a_map_that_does_not_fit_is_one_line(
    change: dict[str, torch.Tensor | None], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = encoder(tmp_path)
    state = {name: value for name, value in {**released(), **change}.items() if value is not None}
    torch.save(state, tmp_path / "map.pth")
    options = ["--encoder-model", clip.model, "--encoder-weights", clip.pretrained, "--image-tower", TOWER]
    assert official.main(["import", str(tmp_path / "map.pth"), str(tmp_path / "folder"), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'map.pth'}: ")
    assert re.search(told, line), line


@pytest.fixture
def method(tmp_path: Path) -> Talk2Dino:
    torch.manual_seed(0)
    return tiny.talk2dino_config().build(tiny.encoder(tmp_path)).eval()


def test_what_a_map_has_besides_is_told(method: Talk2Dino) -> None:
    """The untaken branches of the released code have tensors of their own."""
    state = export_official(method)
    found = import_official(method, state | {"visual_linear.weight": torch.zeros(3)}, "map.pth")
    assert found == ([], ["visual_linear.weight"])


def test_a_map_of_another_methods_name_is_told(tmp_path: Path, method: Talk2Dino) -> None:
    torch.save({"model": {"masker.sim2mask.w": torch.zeros(())}}, tmp_path / "tcl.pth")
    with pytest.raises(InputError, match=r"tcl\.pth: an official checkpoint of TCL, not of Talk2DINO"):
        load_trained(method, method.config.phases, tmp_path / "tcl.pth")


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A trained folder whose image tower's weights lie in a file elsewhere."""
    clip, config = encoder(tmp_path), tiny.talk2dino_config(image_weights=tiny.write_tower(tmp_path))
    method = config.build(tiny.encoder(tmp_path))
    (tmp_path / "trained").mkdir()
    weights = tmp_path / "trained" / WEIGHTS
    save_file({name: tensor.clone() for name, tensor in learned_state(method, config.phases).items()}, weights)
    write_model(Checkpoint(method=config, encoder=clip, view=tiny.VIEW, normalisation=tiny.HALF, weights=weights))
    return weights.parent


@pytest.mark.parametrize("form", ["hf-folder", "open_clip"])
def test_an_export_holds_both_towers_and_moves(form: str, trained: Path, tmp_path: Path, photo: Path) -> None:
    from owseg.predict import load as load_model

    assert export.main([str(trained), str(tmp_path / "out"), "--to", form]) == 0
    expected = load_model(trained).segment(photo, tiny.LABELS).scores
    moved = tmp_path / "moved"
    shutil.move(tmp_path / "out", moved)
    (tmp_path / "vit.safetensors").unlink()
    assert (load_model(moved / "owseg").segment(photo, tiny.LABELS).scores == expected).all()
    assert (moved / "image_tower").is_dir() == (form == "hf-folder")


def test_the_way_back_that_an_export_prints(
    trained: Path, tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No official file tells the tower's sizes, the view or the normalisation."""
    from owseg.predict import load as load_model

    assert export.main([str(trained), str(tmp_path / "map.pth"), "--to", "official"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "the way back: " in line)
    program, verb, *arguments = shlex.split(line.partition("the way back: ")[2])
    assert (program, verb) == ("owseg", "official")
    again = tmp_path / "again"
    assert official.main([str(again) if one == "FOLDER" else one for one in arguments]) == 0
    before, after = read_model(trained), read_model(again)
    assert after == replace(before, weights=after.weights, encoder=after.encoder)
    assert (
        load_model(again).segment(photo, tiny.LABELS).scores == load_model(trained).segment(photo, tiny.LABELS).scores
    ).all()


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("image_weights", "none.safetensors", r"none\.safetensors does not exist; --set image_weights=\.\.\. gives another"),
        ("image_tower", "/etc/passwd", r"timm cannot build '/etc/passwd' \([^.]*\); see timm\.list_models"),
        ("image_tower", "vit_tiny_r_s16_p8_224", r"vit_tiny_r_s16_p8_224.*; --set image_tower=\.\.\. gives another"),
        ("image_tower", 3, r"timm cannot build 3 "),
    ],
)
def test_a_tower_that_a_checkpoint_names_wrongly_is_said_of_its_file(
    key: str, value: object, told: str, trained: Path, tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = trained / "model.json"
    model = json.loads(file.read_text())
    model["method"][key] = value
    file.write_text(json.dumps(model))
    asked = [str(photo), "--labels", "a, b", "--checkpoint", str(trained), "--out", str(tmp_path / "out")]
    assert segment.main(asked) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(rf"error: {file}: {key}: {told}", line), line
    assert export.main([str(trained), str(tmp_path / "exported"), "--to", "hf-folder"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {file}: {key}: ")
    assert "--set" not in line
    assert (
        segment.main([*asked, "--set", "image_weights=mine.pth", "--set", f"image_tower={tiny.talk2dino_config().image_tower}"])
        == 2
    )
    assert "error: --set image_weights: mine.pth does not exist" in capsys.readouterr().err


def test_sizes_can_be_given_one_by_one(trained: Path, tmp_path: Path) -> None:
    config = read_model(trained)
    assert export.main([str(trained), str(tmp_path / "map.pth"), "--to", "official"]) == 0
    options = ["--encoder-model", f"{trained}/model.json", "--encoder-weights", config.encoder.pretrained]
    sizes = ("image_size=32", "patch_size=8", "width=32", "depth=2", "heads=2")
    options += [text for size in sizes for text in ("--set", f"image_size.{size}")]
    options += ["--set", f"image_weights={tmp_path / 'vit.safetensors'}", "--set", "augment.size=32"]
    assert official.main(["import", str(tmp_path / "map.pth"), str(tmp_path / "again"), *options]) == 0
    found = read_model(tmp_path / "again").method
    assert isinstance(found, Talk2DinoConfig)
    assert found.image_size == tiny.talk2dino_config().image_size
    assert found.image_weights == str(tmp_path / "vit.safetensors")


@pytest.mark.parametrize("form", ["import", "export"])
def test_nothing_is_overwritten_and_no_place_is_none(
    form: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(released(32), tmp_path / "map.pth")
    (tmp_path / "u.pth.md").write_text("mine")

    def act(target: str) -> int:
        if form == "import":
            return official.main(["import", str(tmp_path / "map.pth"), target, "--like", str(trained)])
        return export.main([str(trained), target, "--to", "official"])

    taken = str(trained) if form == "import" else str(tmp_path / "u.pth")
    for target, told in (
        (taken, "is there already; give a new name, or move it away"),
        ("", "'' names no place"),
        ("/proc/x/y", "/proc/x/y: cannot be written"),
        ("x" * 300, "x: cannot be written (File name too long)"),
    ):
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert act(target) == 2, target
        (line,) = capsys.readouterr().err.splitlines()
        assert told in line
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def run_of(trained: Path, *overrides: str) -> Config:
    """The smallest run, with the trained folder's method and encoder."""
    where = (
        f"weights.talk2dino={trained}",
        f"encoder.model={trained}/model.json",
        f"method_settings.talk2dino.image_tower={tiny.talk2dino_config().image_tower}",
    )
    size = "method_settings.talk2dino.image_size={image_size: 32, patch_size: 8, width: 32, depth: 2, heads: 2}"
    tower = f"method_settings.talk2dino.image_weights={trained.parent}/vit.safetensors"
    crops = "method_settings.talk2dino.augment.size=32"
    return load(Config, REPO / "configs" / "smoke.yaml", ("methods=[talk2dino]", *where, size, tower, crops, *overrides))


def test_windows_that_are_no_whole_patches_are_told_before_any_work(trained: Path) -> None:
    check_weights(run_of(trained))
    with pytest.raises(InputError, match=r"^evaluate\.window: 100 pixels are no whole patches of 8; give 96 or 104$"):
        check_weights(run_of(trained, "evaluate.window=100"))


def test_patch_14_takes_448_and_not_96(tmp_path: Path) -> None:
    """The protocol's windows fit both DINOv2's patches and DINOv3's."""
    size = VitSize(image_size=28, patch_size=14, width=32, depth=1, heads=2)
    settings = {"image_size": size, "augment": replace(tiny.AUGMENT, size=28)}
    method = tiny.talk2dino_config(**settings).build(tiny.encoder(tmp_path))
    refuse_window(method, replace(tiny.VIEW, window=448))
    with pytest.raises(InputError, match=r"evaluate\.window: 96 pixels are no whole patches of 14; give 84 or 98"):
        refuse_window(method, replace(tiny.VIEW, window=96))
    with pytest.raises(InputError, match=r"evaluate\.window: 8 pixels are no whole patches of 14; give 14$"):
        refuse_window(method, replace(tiny.VIEW, window=8, stride=8))
    with pytest.raises(InputError, match=r"^method_settings\.talk2dino\.augment\.size: 32 pixels are no whole patches of 14"):
        tiny.talk2dino_config(image_size=size).build(tiny.encoder(tmp_path))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda state: None, "does not exist"),
        (
            lambda state: {name: value for name, value in state.items() if name != "cls_token"},
            "does not fit .*cls_token is missing",
        ),
        (lambda state: state | {"norm.weight": torch.ones(64)}, r"does not fit .*norm\.weight is \[64\] and not \[32\]"),
        (lambda state: state | {"norm.weight": torch.full((32,), torch.inf)}, r"norm\.weight is not finite"),
    ],
    ids=["missing", "lacks a tensor", "another width", "not finite"],
)
def test_image_weights_that_do_not_fit_are_told_before_any_work(spoil, told: str, trained: Path) -> None:  # type: ignore[no-untyped-def]
    file = trained.parent / "vit.safetensors"
    state = spoil(load_file(file))
    file.unlink()
    if state is not None:
        save_file(state, file)
    with pytest.raises(InputError, match=rf"^method_settings\.talk2dino\.image_weights: .*{told}"):
        check_weights(run_of(trained))
    training = replace(run_of(trained, "encoder.pretrained=" + str(trained.parent / "clip.safetensors")), weights={})
    with pytest.raises(InputError, match=rf"^method_settings\.talk2dino\.image_weights: .*{told}"):
        check_methods(training)
