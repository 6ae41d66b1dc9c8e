"""MLflow and its null twin: one parent run per folder, nothing logged twice, and an outage costs records, not the run."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run as StoredRun

from cluster import InputError, mlflow_runs, mlflow_sending
from cluster.open_tracker import open_tracker
from cluster.store_uri import sqlite_file, store_uri
from cluster.tracking import Data, NullTracker, Run, TrackingConfig
from helpers.chain import wait_for
from helpers.paths import REPO
from helpers.servers import free_port, greeter

SETTINGS = {"seed": 3, "filter": {"top_k": 20}}


def work(run_dir: Path, config: TrackingConfig | None = None, steps: int = 2500, fail: bool = False) -> str:
    """A run with a training child, as the pipelines log it; returns the parent's id."""
    with open_tracker(config or TrackingConfig(), run_dir, name="demo", settings=SETTINGS, digest="d" * 64) as tracker:
        tracker.metrics({"mIoU/average_of_8": 31.5, "mIoU/voc21": 40.25})
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
    run.dataset(Data(name="corpus", source="corpus/kept", digest="ab" * 32, profile={"kept": 7}), context="training")
    run.table([{"class": "cat", "IoU": 0.5}, {"class": "dog", "IoU": 0.75}], "per_class.json")
    picture = run_dir / "overlay.png"
    picture.write_bytes(b"png")
    run.artifact(picture, "overlays")


def child_of(client: MlflowClient, parent: str) -> StoredRun:
    experiment = client.get_run(parent).info.experiment_id
    (child,) = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    return child


def test_what_is_logged_can_be_read_back(run_dir: Path) -> None:
    run_id = work(run_dir)
    client = MlflowClient(f"sqlite:///{run_dir / 'mlflow.db'}")
    parent, child = client.get_run(run_id), child_of(client, run_id)
    assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")
    assert parent.data.metrics == {"mIoU/average_of_8": 31.5, "mIoU/voc21": 40.25}
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
    assert f"system/{socket.gethostname()}/cpu_utilization_percentage" in child.data.metrics
    assert sorted(path.name for path in run_dir.parent.iterdir()) == ["run"]  # nothing in the working directory


def test_a_resumed_run_goes_on_and_logs_nothing_twice(run_dir: Path) -> None:
    first = work(run_dir, steps=60)
    assert work(run_dir, steps=80) == first
    client = MlflowClient(f"sqlite:///{run_dir / 'mlflow.db'}")
    child = child_of(client, first)  # still one
    assert [point.step for point in client.get_metric_history(child.info.run_id, "train/loss")] == list(range(80))
    assert len(client.get_metric_history(first, "mIoU/average_of_8")) == 1
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


def test_a_process_that_ends_at_once_leaves_no_run_running(run_dir: Path) -> None:
    def runs() -> list[StoredRun]:
        client = MlflowClient(f"sqlite:///{run_dir / 'mlflow.db'}")
        known = json.loads((run_dir / "mlflow.json").read_text())
        return [client.get_run(run_id) for run_id in (known["run_id"], *known["children"].values())]

    with (
        open_tracker(TrackingConfig(), run_dir, name="demo", settings=SETTINGS, digest="d" * 64) as tracker,
        tracker.child("tcl", stage="train"),
    ):
        wait_for(lambda: len(runs()) == 2, lambda: True, "the child's run")
        tracker.abandon()
        assert [run.info.status for run in runs()] == ["KILLED", "KILLED"]


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

    assert methods(NullTracker) == methods(mlflow_runs.MlflowTracker) - {"open", "running", "close"}


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns", "/tmp/x.db", "./mlruns"])
def test_a_folder_is_refused_when_it_is_read(uri: str) -> None:
    with pytest.raises(
        InputError, match=r"^uri: MLflow keeps no runs in plain folders any more, and '.*' names one; give sqlite"
    ):
        TrackingConfig(uri=uri)


@pytest.mark.parametrize("uri", ["localhost:5000", "sqlite:mlflow.db", "ftp://host/x", "ssh://host", "uc://x"])
def test_what_is_no_store_is_refused_when_it_is_read(uri: str) -> None:
    with pytest.raises(InputError, match=f"^uri: '{uri}' is no MLflow store; give "):
        TrackingConfig(uri=uri)


@pytest.mark.parametrize("port", ["99999", "abc", "0", "-1", "80x"])
def test_a_bad_port_is_refused_when_it_is_read(port: str) -> None:
    with pytest.raises(InputError, match=r"^uri: '.*' has no host and port that can be asked; a port is a number from 1 to"):
        TrackingConfig(uri=f"http://h:{port}")


@pytest.mark.parametrize("secret", ["se/cret", "se cret", "se?cret", "se#cret"])
def test_a_password_that_is_not_escaped_is_refused_unseen(secret: str) -> None:
    with pytest.raises(InputError, match="are written as %2F") as caught:
        TrackingConfig(uri=f"http://user:{secret}@host:5000")
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        "http://user:secret@host:5000",
        "https://user:p%40ss@host/path",
        "https://token@host",
        "http://[::1]:5000",
        "postgresql://u:pw@host/db",
        "postgresql+psycopg2://u:pw@host:5432/db?sslmode=require",
        "mysql+pymysql://u:pw@host/db",
        "mssql+pyodbc://u:pw@dsn",
        "sqlite:///mlflow.db",
        "sqlite:////data/mlflow.db",
        "databricks",
        "databricks://profile",
    ],
)
def test_what_the_client_takes_is_taken(uri: str) -> None:
    assert TrackingConfig(uri=uri).uri == uri


def test_the_store_is_the_settings_the_environments_or_the_one_beside_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store_uri("", tmp_path / "runs" / "a") == f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"
    assert store_uri("", tmp_path / "50% ?" / "a") == f"sqlite:///{tmp_path}/50%25 %3F/mlflow.db"
    assert sqlite_file(store_uri("", tmp_path / "50% ?" / "a")) == tmp_path / "50% ?" / "mlflow.db"
    assert store_uri("sqlite:///~/x.db", tmp_path) == f"sqlite:///{Path.home() / 'x.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@there:5000")
    assert store_uri("", tmp_path) == "http://user:secret@there:5000"
    assert store_uri("sqlite:///x.db", tmp_path) == "sqlite:///x.db"
    assert store_uri("HTTPS://User:Secret@There/Path", tmp_path) == "https://User:Secret@There/Path"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    with pytest.raises(InputError, match=r"^MLFLOW_TRACKING_URI: MLflow keeps no runs in plain folders"):
        store_uri("", tmp_path)


def refuse(run_dir: Path, uri: str) -> str:
    with pytest.raises(InputError) as caught:
        work(run_dir, TrackingConfig(uri=uri))
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None  # nor in a traceback
    return str(caught.value)


def test_an_unreachable_server_is_told_before_any_work(run_dir: Path) -> None:
    port = free_port()
    message = refuse(run_dir, f"http://user:secret@127.0.0.1:{port}")
    assert message.startswith(
        f"tracking.uri: no MLflow server answers at http://user:***@127.0.0.1:{port} (Connection refused)"
    )
    assert "set tracking.enabled=false" in message


def test_a_host_without_an_address_is_told(run_dir: Path) -> None:
    assert "no MLflow server answers at http://u:***@nowhere.invalid (" in refuse(run_dir, "http://u:secret@nowhere.invalid")


@pytest.mark.parametrize(
    ("greeting", "reason"),
    [
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "no HTTP: SSH-2.0-OpenSSH_9.2p1"),
        (b"220 mail.test ESMTP\r\n", "no HTTP: 220 mail.test ESMTP"),
        (b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", "failed with error code 401"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "not in a valid JSON format"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "its answers are not those of an MLflow server"),
        (b"HTTP/1.1 404 Nothing\r\nContent-Length: 0\r\n\r\n", "failed with error code 404"),
        (b"", "no answer in time"),
    ],
)
def test_a_server_that_is_no_mlflow_is_told(
    run_dir: Path, greeting: bytes, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1" if not greeting else "20")
    with greeter(greeting) as port:
        message = refuse(run_dir, f"http://user:secret@127.0.0.1:{port}")
    what = "MLflow cannot use" if greeting else "no MLflow server answers at"
    assert message.startswith(f"tracking.uri: {what} http://user:***@127.0.0.1:{port} (")
    assert reason in message


def test_a_database_that_is_none_is_told(run_dir: Path) -> None:
    (run_dir / "text.db").write_text("no database " * 100)
    assert "MLflow cannot use sqlite:///" in refuse(run_dir, f"sqlite:///{run_dir / 'text.db'}")
    assert "(No such file or directory)" in refuse(run_dir, "sqlite:////proc/nowhere/mlflow.db")
    assert "its driver is not installed here: the Python package psycopg" in refuse(
        run_dir, "postgresql://user:secret@127.0.0.1:1/x"
    )


@pytest.mark.filterwarnings("ignore:Query string")
def test_secrets_are_in_no_record_and_a_new_password_goes_on(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is a SQLite file here, whose address takes any query."""
    first, second = (f"sqlite:///{run_dir / 'mlflow.db'}?password={word}" for word in ("hunter2", "hunter3"))
    with open_tracker(TrackingConfig(uri=first), run_dir, name="x", settings={"uri": first}, digest="d") as tracker:
        assert tracker.uri == first
        tracker.params({"source": "s3://AK:hunter2@bucket"})
        tracker.tags({"uri": first})
        tracker.dataset(Data(name="links", source="https://u:hunter2@h/x.tsv", digest="1"), context="filtering")
    with open_tracker(TrackingConfig(uri=second), run_dir, name="x", settings={}, digest="d") as again:
        assert again.run_id == tracker.run_id
    run = MlflowClient(f"sqlite:///{run_dir / 'mlflow.db'}").get_run(tracker.run_id)
    assert run.data.params == {"uri": f"{first.partition('?')[0]}?password=***", "source": "s3://AK:***@bucket"}
    assert json.loads(run.inputs.dataset_inputs[0].dataset.source) == {"uri": "https://u:***@h/x.tsv"}
    written = [path for path in run_dir.rglob("*") if path.is_file()]
    assert {"mlflow.db", "mlflow.json", "config.yaml"} <= {path.name for path in written}
    assert [path.name for path in written if b"hunter" in path.read_bytes()] == []


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
    monkeypatch.setattr(mlflow_sending.time, "sleep", lambda seconds: None)
    answers: list[object] = [Exception("(sqlite3.OperationalError) database is locked"), OSError("database is locked"), 7]

    def store() -> object:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert mlflow_sending.when_unlocked(store) == 7
    answers = [ValueError("no such table")]
    with pytest.raises(ValueError, match="no such table"):
        mlflow_sending.when_unlocked(store)
    monkeypatch.setattr(mlflow_sending, "LOCKED_SECONDS", -1.0)
    answers = [Exception("database is locked"), 7]
    with pytest.raises(Exception, match="locked"):
        mlflow_sending.when_unlocked(store)


def test_runs_that_write_one_store_at_once_lose_nothing(run_dir: Path) -> None:
    """Two processes, as cells of a sweep do, whose experiment the sweep has made."""
    code = (
        "import sys; from pathlib import Path\n"
        "from cluster.open_tracker import open_tracker; from cluster.tracking import TrackingConfig\n"
        "folder = Path(sys.argv[1]); folder.mkdir()\n"
        "with open_tracker(TrackingConfig(uri=sys.argv[2]), folder, name=folder.name, settings={}, digest='d') as tracker:\n"
        "    for step in range(30):\n"
        "        tracker.params({f'key{step}': step}); tracker.metrics({'loss': step}, step); tracker._records.wait(60)\n"
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
        assert "not recorded" not in told
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(TrackingConfig().experiment)
    assert experiment is not None
    runs = [run for run in client.search_runs([experiment.experiment_id]) if run.info.run_name in ("a", "b")]
    assert len(runs) == 2
    for run in runs:
        assert len(run.data.params) == 30
        assert len(client.get_metric_history(run.info.run_id, "loss")) == 30
