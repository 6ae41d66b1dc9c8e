"""LoggedModels, the registry, and whose run a folder's is: what people look for across runs."""

import base64
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.pyfunc import load_model
from PIL import Image

from cluster import InputError
from cluster.mlflow_registry import located, register_best
from cluster.open_tracker import open_tracker
from cluster.store_uri import DATABASE, MEMORY, artifacts_here, of_folder, pages, store_uri
from cluster.tracking import Tracker, TrackingConfig
from filtering.files import digest_of_file
from helpers.tracked import METRIC, scored
from owseg.fit import WEIGHTS
from owseg.predict import load


@pytest.fixture
def runs(tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of run folders with an empty store beside them."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "runs"
    folder.mkdir()
    shutil.copy(template, folder / DATABASE)
    return folder


def reopened(folder: Path) -> Tracker:
    with open_tracker(TrackingConfig(), folder, name=folder.name, settings={}, digest="d") as tracker:
        return tracker


def test_the_best_on_a_dataset_across_runs_is_one_search(runs: Path) -> None:
    scored(runs / "a", "1", ade=10, voc=50)
    best = scored(runs / "b", "2", ade=30, voc=20)
    scored(runs / "c", "3", ade=20, voc=40)
    client = MlflowClient(store_uri("", runs / "a"))
    experiment = client.get_run(best).info.experiment_id
    found = client.search_logged_models([experiment], order_by=[{"field_name": "metrics.mIoU/ade20k", "ascending": False}])
    assert [model.tags["digest"] for model in found] == ["2", "3", "1"]
    on_ade = client.search_logged_models(
        [experiment], "metrics.`mIoU/ade20k` > 15", datasets=[{"dataset_name": "ade20k", "dataset_digest": "ade"}]
    )
    assert {model.tags["digest"] for model in on_ade} == {"2", "3"}
    source = client.get_run(found[0].source_run_id)
    assert (source.info.run_name, source.data.tags["mlflow.parentRunId"]) == ("train tcl", best)
    assert {(point.key, point.dataset_name) for point in found[0].metrics} == {
        ("mIoU/ade20k", "ade20k"),
        ("mIoU/voc21", "voc21"),
        (METRIC, None),
    }


def test_a_model_is_one_however_often_it_is_scored(runs: Path) -> None:
    run_id = scored(runs / "a", "1", ade=10, voc=50)
    assert scored(runs / "a", "1", ade=12, voc=50) == run_id
    client = MlflowClient(store_uri("", runs / "a"))
    (model,) = client.search_logged_models([client.get_run(run_id).info.experiment_id])
    assert sorted(point.value for point in model.metrics if point.key == "mIoU/ade20k") == [10, 12]
    again = client.get_run(json.loads((runs / "a" / MEMORY).read_text())["children"]["evaluate/evaluate tcl"])
    assert [one.model_id for one in again.inputs.model_inputs] == [model.model_id]
    assert [item.dataset.name for item in again.inputs.dataset_inputs] == ["ade20k", "voc21"]


def test_a_model_that_was_deleted_is_made_again(runs: Path) -> None:
    run_id = scored(runs / "a", "1", ade=10, voc=50)
    client = MlflowClient(store_uri("", runs / "a"))
    experiment = client.get_run(run_id).info.experiment_id
    (first,) = client.search_logged_models([experiment])
    client.delete_logged_model(first.model_id)
    scored(runs / "a", "1", ade=12, voc=50)
    (second,) = client.search_logged_models([experiment])
    assert second.model_id != first.model_id
    assert {point.value for point in second.metrics if point.key == "mIoU/ade20k"} == {12}


def test_a_model_is_found_where_its_weights_lie_now(runs: Path, tiny_run: Path) -> None:
    weights = trained(tiny_run, runs / "a")
    digest = digest_of_file(weights)
    scored(runs / "a", digest, ade=10, voc=50, weights=weights)
    shutil.move(runs / "a", runs / "moved")
    moved = runs / "moved" / "train" / "tcl" / WEIGHTS
    run_id = scored(runs / "moved", digest, ade=10, voc=50, weights=moved)
    (model,) = MlflowClient(store_uri("", runs / "any")).search_logged_models([experiment_of(runs, run_id)])
    assert model.tags["weights"] == str(moved)


def experiment_of(runs: Path, run_id: str) -> str:
    return str(MlflowClient(store_uri("", runs / "any")).get_run(run_id).info.experiment_id)


def test_a_copied_folder_gets_a_run_of_its_own_and_a_moved_one_keeps_its(runs: Path) -> None:
    first = reopened(made(runs / "a")).run_id
    shutil.copytree(runs / "a", runs / "copy")
    copy = reopened(runs / "copy")
    assert copy.run_id != first
    tags = MlflowClient(copy.uri).get_run(copy.run_id).data.tags
    assert (tags["copied_from.run"], tags["copied_from.folder"]) == (first, str(runs / "a"))
    assert reopened(runs / "copy").run_id == copy.run_id
    assert reopened(runs / "a").run_id == first
    shutil.move(runs / "a", runs / "moved")
    assert reopened(runs / "moved").run_id == first
    assert "copied_from.run" not in MlflowClient(copy.uri).get_run(first).data.tags


def test_a_copy_at_the_same_path_on_another_machine_is_told_by_its_token(runs: Path) -> None:
    first = reopened(made(runs / "a")).run_id
    memory = (runs / "a" / MEMORY).read_text()
    for _ in range(2):  # the original goes on, here
        assert reopened(runs / "a").run_id == first
    (runs / "a" / MEMORY).write_text(memory)  # as it was when it was copied
    assert reopened(runs / "a").run_id != first


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_tree_of_runs_that_moves_keeps_runs_and_files(runs: Path) -> None:
    first = scored(runs / "a", "1", ade=10, voc=50)
    moved = runs.parent / "elsewhere"
    shutil.move(runs, moved)
    assert of_folder(str(moved / "a")) == f"sqlite:///{moved / DATABASE}"
    client = MlflowClient(f"sqlite:///{moved / DATABASE}")
    assert [item.path for item in client.list_artifacts(first)] == ["config.yaml"]
    assert reopened(moved / "a").run_id == first


def test_where_runs_are_recorded_by_default(runs: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reopened(made(runs / "a")).uri == reopened(made(runs / "b")).uri == f"sqlite:///{runs / DATABASE}"
    own = made(runs / "older")
    shutil.copy(template, own / DATABASE)
    assert reopened(own).uri == f"sqlite:///{own / DATABASE}"
    away = runs.parent / "away"
    away.mkdir()
    shutil.move(runs / "a", away / "a")  # from among the others: it stays in their store
    assert store_uri("", away / "a") == f"sqlite:///{runs / DATABASE}"
    monkeypatch.setattr("cluster.store_uri.os.access", lambda *arguments: False)
    assert store_uri("", runs / "new") == f"sqlite:///{runs / 'new' / DATABASE}"


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        ("", "RUN_DIR: no run of .* is recorded yet"),
        ('{"tracking_uri": "http://u:***@host:5000"}', r"RUN_DIR: the runs of .* are recorded in http://u:\*\*\*@host:5000"),
    ],
)
def test_make_up_says_what_it_cannot_open(memory: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    if memory:
        (tmp_path / "run" / MEMORY).write_text(memory)
    with pytest.raises(SystemExit, match=message):
        of_folder(str(tmp_path / "run"))


def test_links_lead_past_the_pages_for_language_models_and_hold_no_secret() -> None:
    found = pages("http://user:secret@host:5000/", "3", "abc")
    assert found["runs"] == "http://host:5000/#/experiments/3/runs?workflowType=machine_learning"
    assert found["run"] == "http://host:5000/#/experiments/3/runs/abc?workflowType=machine_learning"
    assert pages("sqlite:///x.db", "3", "abc") == {}


def test_pictures_have_the_names_that_the_viewer_reads_and_replace_each_other(runs: Path) -> None:
    picture = runs / "picture.png"
    for shade in (10, 200):
        Image.new("RGB", (8, 8), (shade,) * 3).save(picture)
        with open_tracker(TrackingConfig(), runs, name="x", settings={}, digest="d") as tracker:
            tracker.image(picture, "worst/voc21", step=7)
    client = MlflowClient(tracker.uri)
    ours = {item.path: item for item in client.list_artifacts(tracker.run_id, "images")}
    assert len(ours) == 2
    whole = next(path for path in ours if path.endswith(".png"))
    with Image.open(client.download_artifacts(tracker.run_id, whole)) as kept:
        assert kept.getpixel((0, 0)) == (200, 200, 200)
    client.log_image(tracker.run_id, np.zeros((8, 8, 3), np.uint8), key="worst/voc21", step=7, synchronous=True)
    theirs = {item.path for item in client.list_artifacts(tracker.run_id, "images")} - ours.keys()

    def shape(paths: set[str]) -> set[str]:
        return {re.sub(r"(timestamp\+)\d+\+[\w-]+?(?=\+compressed|\.png)", r"\1", path) for path in paths}

    assert shape(theirs) == shape({*ours})
    assert client.get_run(tracker.run_id).data.tags["mlflow.loggedImages"] == "True"


# ---------------------------------------------------------------------------------------------------------- the registry


def trained(tiny_run: Path, folder: Path) -> Path:
    """A copy of a trained run's folder, to be registered; returns its weights."""
    shutil.copytree(tiny_run, folder, dirs_exist_ok=True)
    return folder / "train" / "tcl" / WEIGHTS


def models_of(folder: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((folder / MEMORY).read_text())["models"]
    return found


def test_the_champion_is_the_best_version_and_serves_the_masks_of_its_weights(runs: Path, tiny_run: Path) -> None:
    uri = store_uri("", runs / "a")
    for name, ade in (("a", 30.0), ("b", 20.0)):
        weights = trained(tiny_run, runs / name)
        if name == "b":  # other bytes, the same tensors: the header of a safetensors file may hold spaces
            tensors = weights.read_bytes()
            header = int.from_bytes(tensors[:8], "little")
            weights.write_bytes((header + 8).to_bytes(8, "little") + tensors[8 : 8 + header] + b" " * 8 + tensors[8 + header :])
        scored(runs / name, digest_of_file(weights), ade=ade, voc=20, weights=weights)
    _, first = register_best(uri, models_of(runs / "a"), ["chance", "tcl"], "owseg", METRIC)
    _, second = register_best(uri, models_of(runs / "b"), ["tcl"], "owseg", METRIC)
    assert ((first.version, first.champion), (second.version, second.champion)) == (("1", True), ("2", False))
    assert register_best(uri, models_of(runs / "a"), ["tcl"], "owseg", METRIC)[1] == first  # once
    weights = runs / "a" / "train" / "tcl" / WEIGHTS
    assert located("models:/owseg@champion", uri) == located("models:/owseg/1", uri) == weights

    photo = np.random.default_rng(0).integers(0, 255, (40, 56, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "PNG")
    (version,) = MlflowClient(uri).search_model_versions("name = 'owseg' and version_number = 1")
    (path,) = (runs / "mlartifacts").glob(f"models/{version.source.removeprefix('models:/')}/artifacts")
    rows = pd.DataFrame([{"image": file.getvalue(), "labels": ["cat", "sky", "wooden table"], "background": False}])
    (answer,) = load_model(str(path)).predict(rows)
    with Image.open(io.BytesIO(base64.b64decode(answer["mask"]))) as mask:
        expected = load(weights).segment(photo, ["cat", "sky", "wooden table"], background=False)
        assert (np.asarray(mask) == expected.labels + 1).all()
    assert answer["shares"] == [*expected.shares().values()]

    weights.write_bytes(weights.read_bytes() + b" ")
    with pytest.raises(InputError, match=r"models:/owseg@champion: .* holds other weights than were registered"):
        located("models:/owseg@champion", uri)
    weights.unlink()
    with pytest.raises(InputError, match=r"models:/owseg@champion: its weights are not at .* any more"):
        located("models:/owseg@champion", uri)


@pytest.mark.parametrize("name", ["models:/nobody@champion", "models:/nobody/3", "models:/m-0"])
def test_a_model_that_is_not_registered_is_told(name: str, runs: Path) -> None:
    with pytest.raises(InputError, match=f"^{name}: .*; looked for in sqlite:///"):
        located(name, store_uri("", runs / "a"))


def test_a_training_free_mode_is_not_registered(runs: Path) -> None:
    scored(runs / "a", "1", ade=10, voc=50)
    with pytest.raises(InputError, match="no weights of it are recorded"):
        register_best(store_uri("", runs / "a"), models_of(runs / "a"), ["tcl"], "owseg", METRIC)


def test_a_store_keeps_files_that_lie_elsewhere_on_purpose(runs: Path) -> None:
    elsewhere = runs.parent / "files" / "mlartifacts"
    elsewhere.mkdir(parents=True)
    client = MlflowClient(store_uri("", runs / "a"))
    experiment = client.create_experiment("x", artifact_location=elsewhere.as_uri())
    artifacts_here(runs / DATABASE)
    assert client.get_experiment(experiment).artifact_location == elsewhere.as_uri()
