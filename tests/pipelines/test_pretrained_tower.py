"""An image tower that the run trains first: how settings ask for it, and a run that builds two methods on it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cluster.tracking import NullTracker
from helpers import tiny
from helpers.chain import run_well, summary
from helpers.paths import REPO
from helpers.sweeps import cells_of, works_of
from owseg import InputError, training
from owseg.checkpoint import Checkpoint, find_checkpoint, write_model
from owseg.fit import WEIGHTS, learned_state
from owseg.frozen_tower import TowerSettings
from owseg.methods.dino import DinoConfig
from owseg.predict import load
from owseg.training import TrainJob
from pipelines import export, train
from pipelines.app.checks import check_methods, check_weights
from pipelines.app.config import ConfigError
from pipelines.app.config import load as load_config
from pipelines.app.context import Context
from pipelines.app.resolve import located_model, methods_to_train
from pipelines.app.settings import Config

SIZE = "{image_size: 64, patch_size: 8, width: 32, depth: 2, heads: 2}"
ON_IT = (
    "methods=[proxyclip, talk2dino]",
    "method_settings.proxyclip={image_weights: pretrain, templates: simple}",
    "method_settings.talk2dino.image_weights=pretrain",
    "method_settings.talk2dino.phases=[{steps: 3, train: [projection.]}]",
    "method_settings.talk2dino.optim.batch_size=8",
    "method_settings.talk2dino.augment.size=64",
    f"method_settings.dino.image_size={SIZE}",
    "method_settings.dino.phases=[{steps: 3, train: [image., head.]}]",
    "method_settings.dino.optim.batch_size=8",
    "method_settings.dino.augment.size=64",
    "method_settings.dino.local_crops=1",
    "method_settings.dino.local_size=32",
    "method_settings.dino.hidden=24",
    "method_settings.dino.bottleneck=8",
    "method_settings.dino.outputs=16",
)


def settings(run_dir: Path, *overrides: str) -> Config:
    return load_config(Config, REPO / "configs" / "smoke.yaml", [f"run_dir={run_dir}", *ON_IT, *overrides])


def test_the_tower_is_trained_first_and_its_model_and_sizes_are_taken(tmp_path: Path) -> None:
    config = settings(tmp_path)
    clip, dino, talk2dino = methods_to_train(config)
    assert (clip.name, dino) == ("clip", config.method_settings.dino)
    assert isinstance(dino, DinoConfig)
    weights = str(tmp_path / "train" / "dino" / "image_tower.safetensors")
    for model in (talk2dino, located_model(config, "proxyclip")):
        tower = (model.image_tower, model.image_size, model.image_weights)  # type: ignore[attr-defined]
        assert tower == ("vit_base_patch16_224", dino.image_size, weights)
    check_methods(config)
    given = settings(tmp_path, "weights.talk2dino=map.safetensors")
    assert [job.name for job in methods_to_train(given)] == ["clip", "dino"], "the map is given, the tower is not"
    alone = settings(tmp_path, "methods=[talk2dino]", f"method_settings.talk2dino.image_size={SIZE}")
    assert [job.name for job in methods_to_train(alone)] == ["clip", "dino", "talk2dino"]
    assert config.method_settings.talk2dino.supervision(config.encoder) == "text; self-supervised images of the run"


def test_without_asking_none_is_trained(tmp_path: Path) -> None:
    config = settings(tmp_path, "method_settings.talk2dino.image_weights=/my/dino.pth", "methods=[talk2dino]")
    assert [job.name for job in methods_to_train(config)] == ["clip", "talk2dino"]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["method_settings.talk2dino.image_tower=vit_tiny_patch16_224"],
            r"^method_settings\.talk2dino\.image_tower: with image",
        ),
        (
            ["method_settings.proxyclip.image_size.width=48"],
            r"^method_settings\.proxyclip\.image_size: with image_weights=pret",
        ),
        (["method_settings.dino.local_size=30"], r"^method_settings\.dino\.local_size: 30 pixels are no whole patches of 8"),
        (["method_settings.dino.optim.batch_size=9"], r"^method_settings\.dino\.optim\.batch_size: 9 does not divide over 2"),
    ],
)
def test_what_does_not_go_together_is_told(overrides: list[str], told: str, tmp_path: Path) -> None:
    config = settings(tmp_path, *overrides)
    with pytest.raises(InputError, match=told):
        check_methods(config)


def test_a_tower_to_begin_with_is_for_runs_that_train_one(tmp_path: Path) -> None:
    (tmp_path / "dino.safetensors").touch()
    config = settings(tmp_path, f"init.dino={tmp_path / 'dino.safetensors'}", "methods=[maskclip]")
    with pytest.raises(
        InputError, match=r"^init\.dino: this run trains no image tower; set method_settings\.talk2dino\.image_w"
    ):
        check_weights(config)


def test_it_is_no_row(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"methods: unknown method 'dino'"):
        settings(tmp_path, "methods=[dino]")
    with pytest.raises(ConfigError, match=r"weights\.dino: no trainable method of that name"):
        settings(tmp_path, "weights.dino=dino.safetensors")


def test_a_sweep_trains_it_once_for_all_that_ask(tmp_path: Path) -> None:
    works = works_of(cells_of(tmp_path, "method_settings.talk2dino.optim.lr=[1e-4, 1e-3]", settings=ON_IT), tmp_path)
    names = [name.partition("-")[0] for name in works]
    assert [names.count(name) for name in ("data", "clip", "dino", "talk2dino")] == [1, 1, 1, 2]
    needs = {name.partition("-")[0]: sorted(need.partition("-")[0] for need in works[name]) for name in works}
    assert needs["talk2dino"] == ["clip", "data", "dino"]
    assert needs["dino"] == ["clip", "data"], "a row of a table is trained for: ProxyCLIP, which has a CLIP"


def built(run: Path) -> Path:
    """What a run leaves that trained a tower and a map on it, with random weights."""
    tiny.write_run(run)
    torch.manual_seed(0)
    dino = tiny.dino_config()
    tower = run / "train" / "dino" / dino.tower.file
    models = {"dino": dino, "talk2dino": tiny.talk2dino_config().with_tower(dino.image_tower, dino.image_size, tower)}
    described = find_checkpoint(run / "train" / "tcl").encoder
    for name, config in models.items():
        method = config.build(None if name == "dino" else tiny.encoder(run.parent))  # type: ignore[arg-type]
        folder = run / "train" / name
        folder.mkdir()
        state = {key: tensor.clone() for key, tensor in learned_state(method, config.phases).items()}
        save_file(state, folder / WEIGHTS)
        if name == "dino":
            prefix = dino.tower.prefix
            save_file({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}, tower)
        write_model(Checkpoint(method=config, encoder=described, view=tiny.VIEW, weights=folder / WEIGHTS))
    return run


def test_checkpoints_know_their_tower_and_modes_find_it(tmp_path: Path, photo: Path) -> None:
    run = built(tmp_path / "run")
    written = json.loads((run / "train" / "talk2dino" / "model.json").read_text())
    assert written["method"]["image_weights"] == "../dino/image_tower.safetensors"
    assert "../dino/image_tower.safetensors" in written["sha256"]
    for method in ("talk2dino", "proxyclip"):
        found = find_checkpoint(run, method).method
        assert found.image_weights == str(run / "train" / "dino" / "image_tower.safetensors")  # type: ignore[attr-defined]
        assert load(run, method=method).segment(photo, tiny.LABELS).labels.shape == (40, 56)
    with pytest.raises(InputError, match=r"which method of this run\? name one of talk2dino, tcl, chance"):
        find_checkpoint(run)
    tower = run / "train" / "dino" / "image_tower.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(tower).items()}, tower)
    with pytest.raises(InputError, match=r"image_tower\.safetensors: not the weights that .* was written for"):
        find_checkpoint(run, "talk2dino")


def test_an_export_takes_the_tower_along(tmp_path: Path, photo: Path) -> None:
    run = built(tmp_path / "run")
    expected = load(run, method="talk2dino").segment(photo, tiny.LABELS).labels
    assert export.main([str(run), str(tmp_path / "out"), "--to", "hf-folder", "--method", "talk2dino"]) == 0
    run.rename(tmp_path / "elsewhere")
    assert (load(tmp_path / "out" / "owseg").segment(photo, tiny.LABELS).labels == expected).all()
    assert "../" not in (tmp_path / "out" / "owseg" / "model.json").read_text()


@pytest.mark.parametrize("features", ["none", pytest.param("float32", marks=pytest.mark.slow)])
def test_the_map_is_trained_anew_where_its_tower_is(features: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The train stage, with training in this process instead of Ray's; features, where they are read, are made by Ray."""
    began: list[str] = []

    def train_here(job: TrainJob, *_: object) -> Path:
        began.append(job.method.name)
        return training.train(job)

    monkeypatch.setattr(train, "train", train_here)
    tiny.write_shards(tmp_path / "shards")
    (tmp_path / "run").mkdir()
    small = (f"train.shards={tmp_path / 'shards'}", "check_disk=false", f"train.features={features}")

    def trained(*more: str) -> dict[str, str]:
        began.clear()
        context = Context(settings(tmp_path / "run", *small, *more), NullTracker())
        train.ensure_trained(context)
        methods: dict[str, str] = context.stages["train"]["methods"]
        return methods

    first = trained()
    assert began == [*first] == ["clip", "dino", "talk2dino"]
    folder = tmp_path / "run" / "train"
    state, tower = (load_file(folder / "dino" / name) for name in (WEIGHTS, "image_tower.safetensors"))
    assert {f"teacher.vit.{name}" for name in tower} == {name for name in state if name.startswith("teacher.vit.")}
    assert "../dino/image_tower.safetensors" in json.loads((folder / "talk2dino" / "model.json").read_text())["sha256"]
    assert (trained(), began) == (first, [])
    again = trained("method_settings.dino.optim.lr=0.01")
    assert began == ["dino", "talk2dino"]
    assert {name for name in first if again[name] != first[name]} == {"dino", "talk2dino"}, "another tower, another map"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_trains_it_and_builds_on_it(tmp_path: Path) -> None:
    run, shards = tmp_path / "run", tmp_path / "shards"
    tiny.write_shards(shards)
    small = (*ON_IT, f"train.shards={shards}", "evaluate.datasets=[voc21]", "evaluate.limit=2", "train.workers=1")
    run_well("full", run, *small, deadline=800)
    stages = summary(run)["stages"]
    assert list(stages["train"]["methods"]) == list(stages["train"]["costs"]) == ["clip", "dino", "talk2dino"]
    assert list(stages["evaluate"]["mIoU"]) == ["proxyclip", "talk2dino"]
    mode, row = find_checkpoint(run, "proxyclip").method, located_model(settings(run, *small), "proxyclip")
    assert isinstance(mode, TowerSettings)
    assert isinstance(row, TowerSettings)
    assert (mode.image_weights, mode.image_size) == (row.image_weights, row.image_size)
