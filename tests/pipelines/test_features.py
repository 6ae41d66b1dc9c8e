"""The features stage: made once, resumed after `kill -9` without computing a finished tar again, read by each training."""

import json
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cluster import features as work
from cluster.train_config import RayTrainJob
from filtering.link_set import LinkSet, write_forgotten
from filtering.shards import run_local
from helpers import tiny
from helpers.chain import run_each
from helpers.s3 import s3_server
from helpers.tensors import assert_same
from owseg import InputError, training
from pipelines import features
from pipelines import train as verb
from pipelines.app import feature_stage
from pipelines.app.config import override
from pipelines.app.context import open_context
from pipelines.app.dry_run import dry_run
from pipelines.app.forecast import forecasts
from pipelines.app.measured import Measured
from pipelines.app.own_shards import own_shards
from pipelines.app.read_run import config_of
from pipelines.app.resolve import methods_to_train, planned_stages, resolve_encoder_paths
from pipelines.app.run_files import LocalRun
from pipelines.app.run_state import state_of
from pipelines.app.stage_marker import StageMarker, write_marker
from storage.client import Store

TARS = 5
FILES = [f"{number:05}.safetensors" for number in range(TARS)]
FOLDER = Path("features") / "talk2dino"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder that holds nothing but its settings: talk2dino on tars of its own, between towers in files."""
    tiny.write_shards(tmp_path / "tars", samples=16 * TARS)
    encoder = tiny.encoder(tmp_path)
    save_file({name: value.contiguous() for name, value in encoder.clip.state_dict().items()}, tmp_path / "clip.safetensors")
    settings = {
        "encoder": {"model": str(tmp_path / "model.json"), "pretrained": str(tmp_path / "clip.safetensors")},
        "normalisation": {"mean": [0.5] * 3, "std": [0.5] * 3},
        "methods": ["talk2dino"],
        "method_settings": {
            "talk2dino": {
                "image_tower": "vit_small_patch14_reg4_dinov2.lvd142m",
                "image_size": {"image_size": 32, "patch_size": 8, "width": 32, "depth": 2, "heads": 2},
                "image_weights": tiny.write_tower(tmp_path),
                "phases": [{"steps": 6, "train": ["projection."]}],
                "optim": {"batch_size": 8},
                "augment": {"size": 32},
            }
        },
        "train": {"shards": str(tmp_path / "tars"), "features": "float32", "log_every": 1},
        "session": {"num_cpus": 2},
        "tracking": {"enabled": False},
    }
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


@pytest.fixture
def train_here(run: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """The stages up to train without Ray, with settings changed; returns what became of each."""

    def plain(job: RayTrainJob, session: object, observe: object) -> Path:
        return training.train(job)

    monkeypatch.setattr(feature_stage, "runner_of", lambda *_: run_local)
    monkeypatch.setattr(verb, "train", plain)

    def act(*settings: str, verify: bool = False) -> dict[str, Any]:
        config = override(config_of(run), settings)
        with open_context(config, verify=verify) as context:
            verb.run_train(context, own_shards(config))
        return context.stages

    return act


def written(run: Path) -> list[int]:
    """When each tar's features were written."""
    return [(run / FOLDER / name).stat().st_mtime_ns for name in FILES]


def test_trainings_read_what_is_made_once(run: Path, train_here: Callable[..., dict[str, Any]]) -> None:
    stages = train_here()
    made = stages["features"]["methods"]["talk2dino"]
    assert [*stages] == ["features", "train"]
    assert (made["images"], made["unreadable"], made["shards"]) == (16 * TARS, 0, TARS)
    assert made["bytes_per_image"] > 4 * (2 * 32 + 8)  # float32: two heads of 32, and the image's share of four texts
    assert min(made["images_per_second"], made["images_per_second_and_worker"]) > 0
    weights, times = load_file(run / "train" / "talk2dino" / "method.safetensors"), written(run)

    assert train_here()["train"]["status"] == "skipped"
    again = train_here("method_settings.talk2dino.optim.lr=1e-2")
    assert (again["features"]["status"], again["train"]["status"]) == ("skipped", "done")
    assert written(run) == times

    on_pixels = train_here("train.features=none")
    assert "features" not in on_pixels
    for name, tensor in load_file(run / "train" / "talk2dino" / "method.safetensors").items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-5, atol=1e-6)


def test_a_finished_training_needs_none_and_a_lost_file_is_made_again(
    run: Path, train_here: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    train_here()
    (run / FOLDER / FILES[1]).unlink()
    assert "features" not in train_here()
    capsys.readouterr()
    before = written_but(run, 1)
    train_here("method_settings.talk2dino.optim.lr=1e-2")
    assert (
        "features-talk2dino: 1 of 5 files missing (features/talk2dino/00001.safetensors): made again" in capsys.readouterr().out
    )
    assert written_but(run, 1) == before


def test_what_names_and_sizes_do_not_tell_is_made_anew_with_verify(
    run: Path, train_here: Callable[..., dict[str, Any]]
) -> None:
    """The cure that the message names."""
    train_here()
    file = run / FOLDER / FILES[1]
    size, tensors = file.stat().st_size, load_file(file)
    with safe_open(file, framework="pt") as opened:
        told = opened.metadata()
    save_file({**tensors, "image": tensors["image"] * torch.nan}, file, told)
    assert file.stat().st_size == size
    with pytest.raises(
        InputError, match=r"00001\.safetensors holds numbers that are not finite; .* \(owseg features \.\.\. --verify"
    ):
        train_here("method_settings.talk2dino.optim.lr=1e-2")
    others = written_but(run, 1)
    stages = train_here("method_settings.talk2dino.optim.lr=1e-2", verify=True)
    assert (stages["features"]["status"], stages["train"]["status"]) == ("done", "done")
    assert_same(load_file(file), tensors)
    assert written_but(run, 1) == others


def written_but(run: Path, number: int) -> list[int]:
    return [(run / FOLDER / name).stat().st_mtime_ns for name in FILES if name != FILES[number]]


def test_what_is_forgotten_is_in_no_file_any_more(run: Path, train_here: Callable[..., dict[str, Any]]) -> None:
    """Its tar alone is gone through again."""
    train_here()
    before = written_but(run, 2)
    write_forgotten(run, LinkSet(("00000035",)))
    made = train_here()["features"]["methods"]["talk2dino"]
    assert made["images"] == 16 * TARS - 1
    assert written_but(run, 2) == before
    assert b"00000035" not in (run / FOLDER / FILES[2]).read_bytes()
    assert b"00000034" in (run / FOLDER / FILES[2]).read_bytes()


def killed_in_the_third_tar(run: Path) -> None:
    """What a start leaves that ends by `kill -9` while it makes the features of the third tar."""
    child = os.fork()
    if child:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        return
    try:
        torch.set_num_threads(1)  # those of the parent are not there

        def die_in_the_third(file: Path, _: object) -> None:
            if file.parent.name == "00002":
                os.kill(os.getpid(), signal.SIGKILL)

        work.write_json = die_in_the_third
        config = config_of(run)
        (method,) = methods_to_train(config)
        plan = work.plan_features(verb.job_of(config, method, resolve_encoder_paths(config), run))
        plan.make(run / FOLDER, run_local)
    finally:
        os._exit(1)


def test_kill_9_and_again(run: Path, train_here: Callable[..., dict[str, Any]]) -> None:
    """Finished tars stay as they are, and the others are made."""
    killed_in_the_third_tar(run)
    there = [name for name in FILES if (run / FOLDER / name).exists()]
    assert there == FILES[:2]
    times = {name: (run / FOLDER / name).stat().st_mtime_ns for name in there}
    assert state_of(LocalRun(run))["stages"]["features"]["status"] == "interrupted"
    assert train_here()["features"]["images"] == 16 * TARS
    assert {name: (run / FOLDER / name).stat().st_mtime_ns for name in there} == times
    assert written(run)
    assert state_of(LocalRun(run))["stages"]["features"]["counts"] == {"images": 16 * TARS}


def test_stages_and_plans_know_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of(run)
    assert planned_stages(config) == ("features", "train", "evaluate")
    assert planned_stages(replace(config, methods=("maskclip",))) == ("train", "evaluate")
    linked = override(config, ["train.shards="])
    assert planned_stages(linked) == ("filter", "download", "features", "train", "evaluate")
    (show,) = dry_run("train").values()
    show(config)
    told = capsys.readouterr().out
    assert "1 features  the images of train.shards for talk2dino" in told
    assert "2 train     talk2dino 6 steps" in told
    write_marker(run, "download", StageMarker(fingerprint="", digest="", seconds=0.0, result={"success": 1000}))
    (_, plan) = forecasts(linked, ("download", "features"), Measured(str(run)))
    assert plan.work == "1000 images for talk2dino"
    assert plan.bytes == 1000 * 4 * (2 * 32 + 32)  # two heads of 32 channels and a text of 32, in float32


def test_a_run_whose_methods_read_none(run: Path) -> None:
    with pytest.raises(InputError, match=r"^features: none of methods=\[maskclip\] reads any; talk2dino does, with "):
        features.run(override(config_of(run), ["methods=[maskclip]"]))


@pytest.mark.slow
def test_the_verb_and_two_trainings_on_ray(run: Path) -> None:
    """Progress is told; the trainings make none again."""

    def command(verb: str, *settings: str) -> Sequence[str]:
        return [verb, "--config", str(run / "config.yaml"), f"run_dir={run}", *settings]

    calls = [command("features"), command("train"), command("train", "method_settings.talk2dino.optim.lr=1e-2", "--restart")]
    made, first, second = run_each(calls)
    assert made.returncode == 0, made.stderr
    assert f"features talk2dino: {16 * TARS} images, " in made.stdout
    assert f"features talk2dino: {16 * TARS}/{16 * TARS} images" in made.stderr
    result = json.loads((run / "features-talk2dino.done.json").read_text())["result"]
    assert (result["images"], result["shards"]) == (16 * TARS, TARS)
    times = written(run)
    for one in (first, second):
        assert one.returncode == 0, one.stderr
        assert "features: skipped, complete already" in one.stdout
        assert "train-talk2dino: done" in one.stdout
    assert written(run) == times


@pytest.mark.slow
def test_in_an_object_store(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files go to the store, and training fetches them."""
    url, at = "s3://bucket/runs/one", f"storage.scratch={tmp_path / 'scratch'}"
    with s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        server.make_bucket("bucket")
        verbs = ("features", "train")
        calls = [[verb, "--config", str(run / "config.yaml"), f"run_dir={url}", at] for verb in verbs]
        for done in run_each(calls):
            assert done.returncode == 0, done.stderr
        there = {entry.name for entry in Store(url).entries()}
    assert {f"features/talk2dino/{name}" for name in FILES} <= there
    assert {"features.done.json", "features/talk2dino/_done/00004.done.json", "train/talk2dino/method.safetensors"} <= there
    assert "features: skipped, complete already" in done.stdout
