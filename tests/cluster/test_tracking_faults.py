"""What a store refuses, or cannot be reached for, is lost alone; what it did not answer to is sent when it answers again."""

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run as StoredRun
from PIL import Image

from cluster import outbox, system_metrics
from cluster.open_tracker import open_tracker
from cluster.tracking import Data, Model, Run, RunOf, Tracker, TrackingConfig
from helpers.servers import Fault, Proxy, mlflow_server

KILOBYTES = "x" * 9000


def child_named(client: MlflowClient, parent: str, name: str) -> StoredRun:
    experiment = client.get_run(parent).info.experiment_id
    (child,) = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}' and tags.name = '{name}'")
    return child


def opened(uri: str, run_dir: Path) -> Any:
    return open_tracker(TrackingConfig(uri=uri), run_dir, name="demo", settings={"seed": 3}, digest="d")


def record_all(tracker: Tracker, run_dir: Path) -> None:
    """Two children with some of everything."""
    Image.new("RGB", (8, 8)).save(run_dir / "picture.png")
    tracker.metrics({"mIoU/average_of_8": 31.5})
    for name in ("tcl", "vilseg"):
        with tracker.child(name, stage="train") as run:
            run.params({"lr": 1e-3})
            run.tags({"model": name})
            for step in range(20):
                run.metrics({"train/loss": float(step)}, step)
            run.dataset(Data(name="shards", source=str(run_dir), digest="1"), context="training")
            run.model(Model(name=name, digest=f"digest of {name}", kind=name), made=True)
            run.scores({"mIoU/voc21": 40.0}, model=f"digest of {name}", data=Data(name="voc21", source="", digest="2"))
            run.describe(f"[[{name}]]")
            run.tags({"self": RunOf(name)})
            run.table([{"class": "cat", "IoU": 0.5}], "per_class.json")
            run.artifact(Path(__file__))
            run.image(run_dir / "picture.png", "worst/voc21", step=7)


def assert_all_but_files(client: MlflowClient, parent: str) -> None:
    assert client.get_run(parent).info.status == "FINISHED"
    assert client.get_run(parent).data.metrics == {"mIoU/average_of_8": 31.5}
    for name in ("tcl", "vilseg"):
        child = child_named(client, parent, name)
        assert child.info.status == "FINISHED"
        assert child.data.params == {"lr": "0.001"}
        history = client.get_metric_history(child.info.run_id, "train/loss")
        assert [(point.step, point.value) for point in history] == [(step, float(step)) for step in range(20)]
        assert [item.dataset.name for item in child.inputs.dataset_inputs] == ["shards"]
        (made,) = child.outputs.model_outputs
        (model,) = client.search_logged_models([child.info.experiment_id], f"tags.digest = 'digest of {name}'")
        assert (model.model_id, model.source_run_id, model.status) == (made.model_id, child.info.run_id, "READY")
        (score,) = model.metrics
        assert (score.key, score.value, score.dataset_name, score.dataset_digest) == ("mIoU/voc21", 40.0, "voc21", "2")
        assert child.data.tags["self"] == child.info.run_id
        assert child.data.tags["mlflow.note.content"].startswith(f"[{name}](#/experiments/")


@pytest.mark.parametrize("root", ["file:///proc/nowhere", "s3://bucket/folder", "unheard-of://x"])
def test_files_without_a_place_are_lost_alone(root: str, run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    uri = f"sqlite:///{run_dir / 'mlflow.db'}"
    MlflowClient(uri).create_experiment(TrackingConfig().experiment, artifact_location=root)
    with opened(uri, run_dir) as tracker:
        record_all(tracker, run_dir)
    assert_all_but_files(MlflowClient(uri), tracker.run_id)
    assert tracker.not_recorded == {"artifacts": 7}  # the config, two tables, two files, two pictures
    told = [record.getMessage() for record in caplog.records if "not recorded" in record.getMessage()]
    assert len(told) == 2  # at the first, and with the count at the end
    assert told[0].startswith("MLflow: artifacts not recorded, work continues without: ")
    assert told[1].startswith("MLflow: 7 artifacts not recorded (")


@pytest.fixture
def unwatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """No system metrics, so that records can be counted."""
    monkeypatch.setattr(system_metrics, "KINDS", {})


@pytest.mark.usefixtures("unwatched")
def test_what_the_store_refuses_is_lost_alone(run_dir: Path) -> None:
    uri = f"sqlite:///{run_dir / 'mlflow.db'}"
    with opened(uri, run_dir) as tracker:
        tracker.params({"a": 1, "n" * 300: 2, "b": 3, "../up": 4, "odd [name]": 5, "long": KILOBYTES})
        tracker.params({"a": "another value"})
        tracker.tags({"t" * 300: "x", "long": KILOBYTES, "short": "s"})
        for step in range(5):
            tracker.metrics({"loss": float("nan") if step == 2 else step, "m" * 300: 1.0, "ünï {x}": float("inf")}, step)
        tracker.artifact(run_dir / "not there.png")
        with tracker.child('it\'s "quoted"', stage="train") as run:
            run.metrics({"x": 1.0})
    client = MlflowClient(uri)
    stored = client.get_run(tracker.run_id)
    assert {key: stored.data.params[key] for key in ("a", "b", "odd _name_")} == {"a": "1", "b": "3", "odd _name_": "5"}
    assert len(stored.data.params["long"]) == len(stored.data.tags["long"]) == 6000
    assert stored.data.tags["short"] == "s"
    assert stored.data.tags["changed.a"] == "another value"
    losses = client.get_metric_history(tracker.run_id, "loss")
    assert [point.step for point in losses] == [0, 1, 2, 3, 4]
    assert losses[2].value != losses[2].value
    assert "ünï _x_" in stored.data.metrics
    assert stored.info.status == "FINISHED"
    (child,) = client.search_runs([stored.info.experiment_id], f"tags.`mlflow.parentRunId` = '{tracker.run_id}'")
    assert (child.info.status, child.data.metrics) == ("FINISHED", {"x": 1.0})
    assert tracker.not_recorded == {
        "parameters": 2,
        "tags": 1,
        "metric points": 5,
        "artifacts": 1,
        "ends of long texts": 2,
    }


@pytest.mark.usefixtures("unwatched")
def test_a_run_that_is_deleted_meanwhile_costs_its_records(run_dir: Path) -> None:
    uri = f"sqlite:///{run_dir / 'mlflow.db'}"
    with opened(uri, run_dir) as tracker, tracker.child("tcl", stage="train") as run:
        run.metrics({"loss": 1.0}, 0)
        assert tracker._records.wait(20)
        client = MlflowClient(uri)
        client.delete_run(child_named(client, tracker.run_id, "tcl").info.run_id)
        for step in range(1, 400):
            run.metrics({"loss": 1.0}, step)
        tracker.metrics({"mIoU/average_of_8": 3.0})
    assert tracker.not_recorded == {"metric points": 399, "run status": 1}
    assert client.get_run(tracker.run_id).data.metrics == {"mIoU/average_of_8": 3.0}


def test_a_child_whose_creation_was_answered_by_nobody_is_created_once(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "FIRST_PAUSE", 0.01)
    create, lost = MlflowClient.create_run, []

    def create_and_lose(client: MlflowClient, *arguments: Any, **keywords: Any) -> Any:
        made = create(client, *arguments, **keywords)
        if "tcl" in keywords.values() and not lost:
            lost.append(made)
            raise ConnectionResetError("the answer is lost")
        return made

    monkeypatch.setattr(MlflowClient, "create_run", create_and_lose)
    uri = f"sqlite:///{run_dir / 'mlflow.db'}"
    with opened(uri, run_dir) as tracker:
        record_all(tracker, run_dir)
    assert len(lost) == 1
    assert_all_but_files(MlflowClient(uri), tracker.run_id)  # which asks for one child of each name


# ------------------------------------------------------------------------------------------------------- a real server


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "FIRST_PAUSE", 0.2)
    monkeypatch.setattr(outbox, "SECONDS_BETWEEN_LOOKS", 0.1)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture(scope="module")
def server_without_files(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Iterator[str]:
    """A server that tells clients to write files themselves, where they cannot."""
    folder = tmp_path_factory.mktemp("filesless")
    shutil.copy(template, folder / "server.db")
    with mlflow_server(folder, "--no-serve-artifacts", "--default-artifact-root", "/proc/nowhere") as address:
        yield address


@pytest.mark.slow
def test_a_server_with_an_artifact_root_out_of_reach(server_without_files: str, run_dir: Path) -> None:
    with opened(server_without_files, run_dir) as tracker:
        record_all(tracker, run_dir)
    assert_all_but_files(MlflowClient(server_without_files), tracker.run_id)
    assert tracker.not_recorded == {"artifacts": 7}


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("fault", ["closed", "hang", 500, 503, 401, 403, 429])
def test_an_outage_costs_nothing(
    fault: Fault, proxy: Proxy, server: str, run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "cluster"), opened(proxy.address(), run_dir) as tracker:
        assert tracker._records.wait(60)
        proxy.fault = fault
        began = time.monotonic()
        record_all(tracker, run_dir)
        held_up = time.monotonic() - began
        until(lambda: tracker._records.down)
        proxy.fault = "none"
        proxy.freed.set()
    assert held_up < 1  # work does not wait: it only puts things down
    assert_all_but_files(MlflowClient(server), tracker.run_id)
    assert tracker.not_recorded == {}
    files = {
        item.path
        for item in MlflowClient(server).list_artifacts(child_named(MlflowClient(server), tracker.run_id, "tcl").info.run_id)
    }
    assert files == {"per_class.json", Path(__file__).name, "images"}


@pytest.mark.slow
@pytest.mark.usefixtures("quick", "unwatched")
def test_a_server_that_is_killed_and_started_again_has_all_of_it_once(run_dir: Path, template: Path, tmp_path: Path) -> None:
    """While a training goes on, which scores checkpoints and logs pictures of them."""
    folder = tmp_path / "server"
    folder.mkdir()
    shutil.copy(template, folder / "server.db")
    options = ("--artifacts-destination", str(folder / "files"))
    picture = run_dir / "picture.png"
    Image.new("RGB", (8, 8)).save(picture)

    def train(run: Run, steps: range) -> None:
        for step in steps:
            run.metrics({"train/loss": float(step)}, step)
        run.image(picture, "tuning/voc21", steps[-1])

    with ExitStack() as servers:
        proxy = servers.enter_context(Proxy(""))
        first = mlflow_server(folder, *options)
        proxy.host = first.__enter__().removeprefix("http://")
        with opened(proxy.address(), run_dir) as tracker, tracker.child("tcl", stage="train") as run:
            train(run, range(50))
            assert tracker._records.wait(60)
            first.__exit__(None, None, None)
            train(run, range(50, 100))
            run.model(Model(name="tcl", digest="1", kind="tcl"), made=True)
            run.scores({"mIoU/voc21": 40.0}, model="1", data=Data(name="voc21", source="", digest="2"))
            until(lambda: tracker._records.down)
            proxy.host = servers.enter_context(mlflow_server(folder, *options)).removeprefix("http://")
            train(run, range(100, 150))
        client = MlflowClient(proxy.address())
        child = child_named(client, tracker.run_id, "tcl")
        history = client.get_metric_history(child.info.run_id, "train/loss")
        assert [(point.step, point.value) for point in history] == [(step, float(step)) for step in range(150)]
        (model,) = client.search_logged_models([child.info.experiment_id])
        assert [point.value for point in model.metrics] == [40.0]
        assert len(client.list_artifacts(child.info.run_id, "images")) == 6  # of three steps, whole and small
        assert child.info.status == "FINISHED"
        assert tracker.not_recorded == {}


@pytest.mark.slow
@pytest.mark.usefixtures("quick", "unwatched")
@pytest.mark.parametrize("fault", ["closed", "hang", 503])
def test_a_server_that_stays_away_holds_up_the_end_for_no_longer_than_said(
    fault: Fault, proxy: Proxy, server: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "END_SECONDS", 3.0)
    with opened(proxy.address(), run_dir) as tracker:
        assert tracker._records.wait(60)
        proxy.fault = fault
        record_all(tracker, run_dir)
    assert tracker.not_recorded["metric points"] == 43
    assert tracker.not_recorded["runs"] == 2
    proxy.fault = "none"  # back within the life of the process
    proxy.freed.set()
    client = MlflowClient(server)
    until(lambda: client.get_run(tracker.run_id).info.status == "FINISHED")
    assert_all_but_files(client, tracker.run_id)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_files_that_hang_hold_up_no_numbers(proxy: Proxy, server: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "END_SECONDS", 3.0)
    proxy.only, proxy.fault = "mlflow-artifacts", "hang"
    with opened(proxy.address(), run_dir) as tracker:
        record_all(tracker, run_dir)
    assert_all_but_files(MlflowClient(server), tracker.run_id)
    assert set(tracker.not_recorded) == {"artifacts"}


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("user", ["user:secret@", "user:p%40ss%2Fword@"])
def test_a_server_with_a_password(user: str, proxy: Proxy, server: str, run_dir: Path) -> None:
    proxy.password = {"user:secret@": "user:secret"}.get(user, "user:p@ss/word")
    with opened(proxy.address(user), run_dir) as tracker:
        record_all(tracker, run_dir)
    assert_all_but_files(MlflowClient(server), tracker.run_id)
    assert tracker.not_recorded == {}
    assert "***" in (run_dir / "mlflow.json").read_text()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
