"""`init.<method>`: a training that begins with given weights."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import tiny
from owseg import InputError
from owseg.published import export_official, load_start
from owseg.training import LoopConfig, TrainJob, build, train
from pipelines.app.checks import check_weights
from pipelines.app.config import ConfigError, load
from pipelines.app.resolve import starting_weights
from pipelines.app.settings import Config


def job(folder: Path, steps: int = 2, start: Path | None = None, out: str = "out") -> TrainJob:
    return TrainJob(
        method=tiny.clip_config(steps),
        encoder=tiny.encoder_config(folder),
        shards=tuple(sorted((folder / "shards").glob("*.tar"))),
        out=folder / out,
        start=start,
        train=LoopConfig(log_every=1),
    )


def test_a_training_begins_with_them(tmp_path: Path) -> None:
    """Its first losses are those with which the other training would have continued, and not those of fresh weights."""
    tiny.write_shards(tmp_path / "shards", samples=16)
    first = train(job(tmp_path))
    given = load_file(first)
    begun = build(job(tmp_path, start=first)).state_dict()
    assert all(torch.equal(begun[name], tensor) for name, tensor in given.items())
    fresh = build(job(tmp_path)).state_dict()
    assert any(not torch.equal(fresh[name], tensor) for name, tensor in given.items())
    second = load_file(train(job(tmp_path, start=first, out="tuned")))
    assert any(not torch.equal(second[name], tensor) for name, tensor in given.items()), "it trains on"


def test_official_weights_and_weights_of_other_phases(tmp_path: Path) -> None:
    torch.manual_seed(1)
    method = tiny.tcl_config().build(tiny.encoder(tmp_path))
    official = tmp_path / "tcl.pth"
    torch.save(export_official(method), official)
    torch.manual_seed(2)
    other = tiny.tcl_config(1, 1).build(tiny.encoder(tmp_path))
    load_start(other, other.config.phases, official)
    learned = dict(method.named_parameters())
    for name, parameter in other.named_parameters():
        if not name.startswith("clip."):
            assert torch.equal(parameter, learned[name]), name
    part = tmp_path / "part.safetensors"
    save_file({"mask_scale": torch.tensor(7.0)}, part)
    load_start(other, other.config.phases, part)
    assert other.mask_scale.item() == 7.0


def test_a_folder_is_its_weights(tmp_path: Path) -> None:
    tiny.write_shards(tmp_path / "shards", samples=16)
    given = load_file(train(job(tmp_path)))
    begun = build(job(tmp_path, start=tmp_path / "out")).state_dict()
    assert all(torch.equal(begun[name], tensor) for name, tensor in given.items())


def test_what_no_phase_trains_must_be_the_runs(tmp_path: Path) -> None:
    """Checkpoints do not hold a frozen CLIP: a decoder that is trained on another one would be scored on the run's."""
    method = tiny.tcl_config().build(tiny.encoder(tmp_path))
    state = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    save_file(state, tmp_path / "whole.safetensors")
    load_start(method, method.config.phases, tmp_path / "whole.safetensors")
    frozen = next(name for name in state if name.startswith("clip.") and name.endswith("weight"))
    save_file(state | {frozen: state[frozen] + 1}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=rf"{frozen} is another than here, and no phase trains it; give the encoder"):
        load_start(method, method.config.phases, tmp_path / "other.safetensors")
    save_file({"mask_scale": torch.tensor(torch.nan)}, tmp_path / "nan.safetensors")
    with pytest.raises(InputError, match="mask_scale is not finite"):
        load_start(tiny.tcl_config().build(tiny.encoder(tmp_path)), method.config.phases, tmp_path / "nan.safetensors")


@pytest.mark.parametrize("content", [{"strange": torch.zeros(1)}, {"mask_scale": torch.zeros(2)}, {}])
def test_weights_of_something_else_are_refused(tmp_path: Path, content: dict[str, torch.Tensor]) -> None:
    save_file(content, tmp_path / "other.safetensors")
    method = tiny.tcl_config().build(tiny.encoder(tmp_path))
    with pytest.raises(InputError, match=r"other\.safetensors: (belongs to another architecture|holds no weights that are)"):
        load_start(method, method.config.phases, tmp_path / "other.safetensors")


def test_methods_without_published_checkpoints_take_none(tmp_path: Path) -> None:
    torch.save({"model": {}}, tmp_path / "x.pth")
    method = tiny.clip_config().build(tiny.encoder(tmp_path))
    with pytest.raises(InputError, match="no published checkpoints of Clip are known"):
        load_start(method, tiny.clip_config().phases, tmp_path / "x.pth")


def test_mistakes_are_found_before_any_work(tmp_path: Path) -> None:
    shutil.copy(tiny.encoder_config(tmp_path).model, tmp_path / "clip.json")
    file = tmp_path / "run.yaml"
    file.write_text(f"encoder: {{model: {tmp_path}/clip.json, pretrained: pretrain}}\nmethods: [tcl]\n")
    with pytest.raises(InputError, match=r"init\.tcl: .*nowhere\.safetensors does not exist"):
        check_weights(load(Config, file, [f"init.tcl={tmp_path}/nowhere.safetensors"]))
    with pytest.raises(ConfigError, match=r"init\.tlc: no trainable method of that name \(did you mean 'tcl'\?\)"):
        load(Config, file, ["init.tlc=x"])
    with pytest.raises(ConfigError, match=r"init\.maskclip: no trainable method of that name"):
        load(Config, file, ["init.maskclip=x"])
    with pytest.raises(ConfigError, match=r"init\.tcl: weights\.tcl takes the place of its training; give one of the two"):
        load(Config, file, ["init.tcl=x", "weights.tcl=y"])


def test_a_runs_folder_stands_for_what_it_trained_and_an_empty_path_for_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "train" / "tcl"
    folder.mkdir(parents=True)
    save_file({"mask_scale": torch.tensor(1.0)}, folder / "method.safetensors")
    for given in (folder, folder.parents[1], folder / "method.safetensors"):
        assert starting_weights(Config(init={"tcl": str(given)})) == {"tcl": folder / "method.safetensors"}
    for section in ("init", "weights"):
        with pytest.raises(ConfigError, match=rf"{section}\.tcl: is empty; give a file or folder"):
            Config(**{section: {"tcl": ""}})  # type: ignore[arg-type]
