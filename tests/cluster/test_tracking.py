"""MLflow and its null twin: one parent run per folder, nothing logged twice, and an outage costs records, not the run."""

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run as StoredRun

from cluster import InputError, mlflow_runs
from cluster.open_tracker import open_tracker
from cluster.tracking import NullTracker, Run, TrackingConfig
from helpers.paths import REPO

SETTINGS = {"seed": 3, "filter": {"top_k": 20}}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh MLflow database: making one takes seconds, copying it none."""
    folder = tmp_path_factory.mktemp("mlflow")
    MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_experiments()
    return folder / "mlflow.db"


@pytest.fixture
def run_dir(tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(template, folder / "mlflow.db")
    return folder


def work(run_dir: Path, config: TrackingConfig | None = None, steps: int = 2500, fail: bool = False) -> str:
    """A run with a training child, as the pipelines log it; returns the parent's id."""
    with open_tracker(config or TrackingConfig(), run_dir, name="demo", settings=SETTINGS, digest="d" * 64) as tracker:
        tracker.metrics({"average/mIoU": 31.5, "voc21/mIoU": 40.25})
        with tracker.child("tcl", stage="train") as run:
            log(run, run_dir, steps)
            if fail:
                raise RuntimeError("a bug")
        return tracker.run_id


def log(run: Run, run_dir: Path, steps: int) -> None:
    run.params({"lr": 1e-3, "long": "x" * 7000})
    run.tags({"digest": "abc"})
    for step in range(steps):
        run.metrics({"train/loss": 1 / (step + 1)}, step)
    run.dataset("corpus", source="corpus/kept", digest="ab" * 32, context="training")
    run.table([{"class": "cat", "IoU": 0.5}, {"class": "dog", "IoU": 0.75}], "per_class.json")
    picture = run_dir / "overlay.png"
    picture.write_bytes(b"png")
    run.artifact(picture, "overlays")
    run.flush()


def child_of(client: MlflowClient, parent: str) -> StoredRun:
    experiment = client.get_run(parent).info.experiment_id
    (child,) = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    return child


def test_what_is_logged_can_be_read_back(run_dir: Path) -> None:
    run_id = work(run_dir)
    client = MlflowClient(f"sqlite:///{run_dir / 'mlflow.db'}")
    parent, child = client.get_run(run_id), child_of(client, run_id)
    assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")
    assert parent.data.metrics == {"average/mIoU": 31.5, "voc21/mIoU": 40.25}
    assert parent.data.tags["config_digest"] == "d" * 64
    assert parent.info.run_name == "demo"
    assert client.get_experiment(parent.info.experiment_id).name == "open-world-segmentation"
    assert child.data.tags["stage"] == "train"
    assert child.data.params["lr"] == "0.001"
    assert len(child.data.params["long"]) == 6000
    history = client.get_metric_history(child.info.run_id, "train/loss")
    assert [point.step for point in history] == list(range(2500))
    dataset = child.inputs.dataset_inputs[0]
    assert (dataset.dataset.name, dataset.dataset.digest) == ("corpus", ("ab" * 32)[:36])
    assert dataset.tags[0].value == "training"
    files = run_dir / "mlartifacts" / child.info.run_id / "artifacts"
    assert json.loads((files / "per_class.json").read_text())["data"] == [["cat", 0.5], ["dog", 0.75]]
    assert (files / "overlays" / "overlay.png").read_bytes() == b"png"
    settings = run_dir / "mlartifacts" / run_id / "artifacts" / "config.yaml"
    assert "top_k: 20" in settings.read_text()
    assert sorted(path.name for path in run_dir.parent.iterdir()) == ["run"]  # nothing in the working directory


def test_a_resumed_run_goes_on_and_logs_nothing_twice(run_dir: Path) -> None:
    first = work(run_dir, steps=60)
    assert work(run_dir, steps=80) == first
    client = MlflowClient(f"sqlite:///{run_dir / 'mlflow.db'}")
    child = child_of(client, first)  # still one
    assert [point.step for point in client.get_metric_history(child.info.run_id, "train/loss")] == list(range(80))
    assert len(client.get_metric_history(first, "average/mIoU")) == 1
    assert len(child.inputs.dataset_inputs) == 1
    table = run_dir / "mlartifacts" / child.info.run_id / "artifacts" / "per_class.json"
    assert len(json.loads(table.read_text())["data"]) == 2


def test_a_failure_is_recorded_and_taken_up_again(run_dir: Path) -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        work(run_dir, fail=True, steps=5)
    client = MlflowClient(f"sqlite:///{run_dir / 'mlflow.db'}")
    run_id = json.loads((run_dir / "mlflow.json").read_text())["run_id"]
    assert client.get_run(run_id).info.status == child_of(client, run_id).info.status == "FAILED"
    assert work(run_dir, steps=5) == run_id
    assert client.get_run(run_id).info.status == child_of(client, run_id).info.status == "FINISHED"


def test_a_lost_store_or_another_one_begins_a_new_run(run_dir: Path, template: Path) -> None:
    first = work(run_dir, steps=1)
    shutil.copy(template, run_dir / "mlflow.db")
    second = work(run_dir, steps=1)
    other = run_dir.parent / "other.db"
    shutil.copy(template, other)
    third = work(run_dir, TrackingConfig(uri=f"sqlite:///{other}"), steps=1)
    assert len({first, second, third}) == 3


def test_the_null_twin_keeps_nothing(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(run_dir.iterdir())
    assert work(run_dir, TrackingConfig(enabled=False)) == ""
    assert sorted(run_dir.iterdir()) == sorted([*before, run_dir / "overlay.png"])


def test_the_twins_have_the_same_methods() -> None:
    def methods(cls: type) -> set[str]:
        return {name for name in dir(cls) if not name.startswith("_") and callable(getattr(cls, name))}

    assert methods(NullTracker) == methods(mlflow_runs.MlflowTracker) - {"open", "running"}


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns", "/tmp/x.db", "postgresql://db/x", "localhost:5000"])
def test_a_bad_uri_is_refused_when_it_is_read(uri: str) -> None:
    with pytest.raises(InputError, match=r"^uri must be http\(s\)://server:port, sqlite:///file or empty"):
        TrackingConfig(uri=uri)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def refuse(run_dir: Path, uri: str) -> str:
    with pytest.raises(InputError) as caught:
        work(run_dir, TrackingConfig(uri=uri))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_unreachable_server_is_told_before_any_work(run_dir: Path) -> None:
    uri = f"http://127.0.0.1:{free_port()}"
    message = refuse(run_dir, uri)
    assert message.startswith(f"tracking.uri: no MLflow server answers at {uri} (")
    assert "set tracking.enabled=false" in message


def test_a_server_that_never_answers_is_told(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.open_tracker.REACHABILITY_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert "no MLflow server answers" in refuse(run_dir, f"http://127.0.0.1:{silent.getsockname()[1]}")


def test_a_server_that_is_no_mlflow_is_told(run_dir: Path) -> None:
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(run_dir)],
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/", server)
        assert "tracking.uri: MLflow cannot use http://127.0.0.1" in refuse(run_dir, f"http://127.0.0.1:{port}")
    finally:
        server.kill()
        server.wait()


def test_a_database_that_is_none_is_told(run_dir: Path) -> None:
    (run_dir / "text.db").write_text("no database " * 100)
    assert "MLflow cannot use sqlite:///" in refuse(run_dir, f"sqlite:///{run_dir / 'text.db'}")
    assert "MLflow cannot use sqlite:///" in refuse(run_dir, "sqlite:////proc/nowhere/mlflow.db")


def wait_for(url: str, process: "subprocess.Popen[bytes]") -> None:
    while process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"the server ended with {process.returncode}")


@pytest.fixture
def server(tmp_path: Path, template: Path) -> Iterator[Any]:
    """A real MLflow server: call it to start it (again)."""
    port, started = free_port(), []
    shutil.copy(template, tmp_path / "server.db")
    store = ["--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}", "--artifacts-destination", str(tmp_path / "files")]

    def start() -> tuple[str, "subprocess.Popen[bytes]"]:
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1", *store]
        process = subprocess.Popen(
            command, cwd=tmp_path, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        started.append(process)
        wait_for(f"http://127.0.0.1:{port}/health", process)
        return f"http://127.0.0.1:{port}", process

    yield start
    for process in started:
        stop(process)


def stop(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_an_outage_is_told_once_and_no_metric_is_lost(
    run_dir: Path, server: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mlflow_runs, "SECONDS_AFTER_OUTAGE", 0.0)
    uri, process = server()
    settings = TrackingConfig(uri=uri)
    with (
        caplog.at_level(logging.WARNING, "cluster"),
        open_tracker(settings, run_dir, name="demo", settings=SETTINGS, digest="d") as tracker,
        tracker.child("tcl", stage="train") as run,
    ):
        run.metrics({"train/loss": 0.0}, 0)
        run.flush()
        stop(process)
        for step in range(1, 4):
            run.metrics({"train/loss": float(step)}, step)
            run.flush()
        run.artifact(Path(__file__), "code")
        with tracker.child("lost", stage="train") as lost:
            lost.metrics({"x": 1.0})
        assert len([record for record in caplog.records if record.name == "cluster.mlflow_runs"]) == 1
        server()
        run.metrics({"train/loss": 4.0}, 4)
    client = MlflowClient(uri)
    child = child_of(client, tracker.run_id)
    assert [point.value for point in client.get_metric_history(child.info.run_id, "train/loss")] == [0, 1, 2, 3, 4]
    assert child.info.status == "FINISHED"


def test_a_run_may_be_shown_below_another(run_dir: Path) -> None:
    """Also one that was begun without: a resumed run belongs to the sweep that resumes it."""
    uri = f"sqlite:///{run_dir / 'mlflow.db'}"
    parent = work(run_dir, TrackingConfig(uri=uri), steps=1)
    cell = run_dir / "cell"
    cell.mkdir()
    alone = work(cell, TrackingConfig(uri=uri), steps=1)
    client = MlflowClient(uri)
    assert "mlflow.parentRunId" not in client.get_run(alone).data.tags
    assert work(cell, TrackingConfig(uri=uri, parent=parent), steps=1) == alone
    assert client.get_run(alone).data.tags["mlflow.parentRunId"] == parent
    assert child_of(client, alone).info.run_name == "tcl"


def test_a_locked_store_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_runs.time, "sleep", lambda seconds: None)
    answers: list[object] = [Exception("(sqlite3.OperationalError) database is locked"), OSError("database is locked"), 7]

    def store() -> object:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert mlflow_runs.when_unlocked(store) == 7
    answers = [ValueError("no such table")]
    with pytest.raises(ValueError, match="no such table"):
        mlflow_runs.when_unlocked(store)
    monkeypatch.setattr(mlflow_runs, "LOCKED_SECONDS", -1.0)
    answers = [Exception("database is locked"), 7]
    with pytest.raises(Exception, match="locked"):
        mlflow_runs.when_unlocked(store)


def test_runs_that_write_one_store_at_once_lose_nothing(run_dir: Path) -> None:
    """Two processes, as cells of a sweep do, whose experiment the sweep has made."""
    code = (
        "import sys; from pathlib import Path\n"
        "from cluster.open_tracker import open_tracker; from cluster.tracking import TrackingConfig\n"
        "folder = Path(sys.argv[1]); folder.mkdir()\n"
        "with open_tracker(TrackingConfig(uri=sys.argv[2]), folder, name=folder.name, settings={}, digest='d') as tracker:\n"
        "    for step in range(30):\n"
        "        tracker.params({f'key{step}': step}); tracker.metrics({'loss': step}, step); tracker.flush()\n"
    )
    uri = f"sqlite:///{run_dir / 'mlflow.db'}"
    names = ("a", "b", "c")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(run_dir / name), uri],
            cwd=REPO,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in names
    ]
    for process in processes:
        _, told = process.communicate(timeout=300)
        assert process.returncode == 0, told
        assert "MLflow cannot be reached" not in told
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(TrackingConfig().experiment)
    assert experiment is not None
    runs = [run for run in client.search_runs([experiment.experiment_id]) if run.info.run_name in ("a", "b")]
    assert len(runs) == 2
    for run in runs:
        assert len(run.data.params) == 30
        assert len(client.get_metric_history(run.info.run_id, "loss")) == 30
