"""docs/team.md, followed: MLflow with PostgreSQL, passwords and files of its own, and a run that it records."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

from cluster.open_tracker import open_tracker
from cluster.tracking import TrackingConfig
from helpers.chain import DEADLINE, environment, run
from helpers.paths import REPO
from helpers.postgres import ESCAPED, PASSWORD, postgres
from helpers.servers import free_port

pytestmark = pytest.mark.slow

ADMIN, ADA = "admin-password-1", "ada-password-2"


class Team(NamedTuple):
    """The server: its address, its folder of files, and all that it has said."""

    host: str
    files: Path
    log: Path
    process: int


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    folder, port = tmp_path_factory.mktemp("team"), free_port()
    with postgres() as database, (folder / "log").open("wb") as log:
        given = {
            "MLFLOW_BACKEND_STORE_URI": database,
            "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN,
            "MLFLOW_FILES": str(folder / "files"),
            "MLFLOW_PORT": str(port),
            "MLFLOW_WORKERS": "1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "TMPDIR": str(folder),
        }
        process = subprocess.Popen(
            [REPO / "deploy" / "mlflow_server.sh"],
            cwd=folder,
            env=environment() | given,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            end = time.monotonic() + DEADLINE
            while not answers(f"http://127.0.0.1:{port}/health"):
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < end, (folder / "log").read_text()
                time.sleep(0.2)
            yield Team(f"127.0.0.1:{port}", folder / "files", folder / "log", process.pid)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


@pytest.fixture(scope="module")
def ada(team: Team) -> str:
    """The server's address with the password of a user whom the page's lines have made."""
    (code,) = re.findall(r"```python\n(.*?)```", (REPO / "docs" / "team.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    names = {"ADMIN_PASSWORD": ADMIN, "SERVER": f"http://{team.host}", "USER": "ada", "PASSWORD": ADA}
    lines = "".join(f"{name} = {value!r}\n" for name, value in names.items())
    subprocess.run([sys.executable, "-c", lines + code], check=True, env=environment())
    return f"http://ada:{ADA}@{team.host}"


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a server on a busy machine."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")


def test_a_run_is_recorded_and_its_secrets_are_nowhere(
    team: Team, ada: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    settings = {"seed": 3, "tracking": {"uri": ada}}
    opened = open_tracker(TrackingConfig(uri=ada), folder, name="demo", settings=settings, digest="d" * 64)
    with opened as tracker, tracker.child("filter", stage="filter") as child:
        child.params({"links": 320, "store": ada})
        child.metrics({"kept": 270.0}, 1)
        child.table([{"reason": "too_short", "count": 50}], "dropped.json")
    assert tracker.not_recorded == {}
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", ADA)
    client = MlflowClient(f"http://{team.host}")
    stored = client.get_run(tracker.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.info.artifact_uri.startswith("mlflow-artifacts:/"), "files go through the server"
    assert list(team.files.rglob("config.yaml"))
    got = download_artifacts(
        run_id=tracker.run_id, artifact_path="config.yaml", tracking_uri=f"http://{team.host}", dst_path=str(tmp_path)
    )
    written = [Path(got), team.log, *(path for root in (folder, team.files) for path in root.rglob("*") if path.is_file())]
    assert {"mlflow.json", "config.yaml", "dropped.json", "log"} <= {path.name for path in written}
    runs = [one.to_dictionary() for one in client.search_runs([stored.info.experiment_id])]
    assert len(runs) == 2
    for secret in (ADA, ADMIN, PASSWORD, ESCAPED):
        assert [str(path) for path in written if secret.encode() in path.read_bytes()] == []
        assert secret not in str(runs)
        assert secret.encode() not in Path(f"/proc/{team.process}/cmdline").read_bytes()


def test_a_wrong_password_is_one_line_before_any_work(team: Team, ada: str, tmp_path: Path) -> None:
    result = run("filter", tmp_path / "run", f"tracking.uri={ada.replace(ADA, 'wrong-password-3')}")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: tracking.uri: MLflow cannot use http://ada:***@{team.host} (")
    assert "401" in line
    assert not (tmp_path / "run" / "corpus").exists()


def test_nobody_is_answered_without_a_password_or_under_another_name(team: Team, ada: str) -> None:
    def status(**headers: str) -> int:
        request = urllib.request.Request(f"http://{team.host}/api/2.0/mlflow/experiments/get?experiment_id=0", headers=headers)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=60)
        return refused.value.code

    assert status() == 401
    assert status(Host="evil.test") == 403
