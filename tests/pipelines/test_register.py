"""A run's best method in the registry, and what people do with it: segment by its name, serve it."""

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from cluster import InputError
from filtering.files import digest_of_file
from helpers import tiny
from helpers.chain import environment, run_each
from helpers.paths import REPO
from helpers.servers import free_port
from helpers.tracked import METRIC, scored
from owseg.evaluation.datasets import BENCHMARKS
from owseg.fit import WEIGHTS
from pipelines import register
from pipelines.app.registered import checkpoint_here

LABELS = ["cat", "sky", "wooden table"]
SECONDS = 300


@pytest.fixture
def run_dir(tmp_path: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run, as far as the registry is concerned."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "runs" / "a"
    shutil.copytree(tiny_run, folder)
    weights = folder / "train" / "tcl" / WEIGHTS
    scored(folder, digest_of_file(weights), ade=30, voc=20, weights=weights)
    table = {name: dict.fromkeys([*BENCHMARKS, "average"], miou) for name, miou in (("maskclip", 40.0), ("tcl", 25.0))}
    (folder / "summary.json").write_text(json.dumps({"stages": {"evaluate": {"mIoU": table}}}))
    return folder


def test_mistakes_are_told_in_a_line(tmp_path: Path, run_dir: Path) -> None:
    shutil.copytree(run_dir, tmp_path / "unrecorded", ignore=shutil.ignore_patterns("mlflow.json"))
    calls = {
        "holds no finished evaluation": (str(tmp_path / "nothing"),),
        "nothing of it is recorded in MLflow": (str(tmp_path / "unrecorded"),),
        "names no folder": ("",),
        "--method: ": (str(run_dir), "--method", "tlc"),
        "no weights of it are recorded": (str(run_dir), "--method", "maskclip"),
    }
    for (told, _), result in zip(calls.items(), run_each([("register", *given) for given in calls.values()]), strict=True):
        assert result.returncode == 2, result.stdout + result.stderr
        assert told in result.stderr
        assert "Traceback" not in result.stderr


def test_a_store_that_is_not_there_is_told_at_once_and_not_made(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow would make a database, and ask a closed port for a minute."""
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    for given, told in (
        (f"sqlite:///{tmp_path}/none/x.db", f"--tracking-uri: there is no MLflow store at {tmp_path}/none/x.db; give "),
        (f"http://u:s3cret@127.0.0.1:{free_port()}", "owseg: MLflow does not register it in http://u:***@127.0.0.1:"),
        ("ftp://somewhere", "--tracking-uri: 'ftp://somewhere' is no MLflow store"),
    ):
        assert register.main([str(run_dir), "--tracking-uri", given]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert told in line
        assert "s3cret" not in line
    assert not (tmp_path / "none").exists()
    uri = f"sqlite:///{run_dir.parent / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(InputError, match=r"^models:/owseg@chmpion: .* not found; looked for in sqlite:"):
        checkpoint_here("models:/owseg@chmpion")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_champion_is_served_and_gives_the_masks_that_segment_gives(run_dir: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.fromarray(tiny.blocks(40, 56)).save(photo)
    uri = f"sqlite:///{run_dir.parent / 'mlflow.db'}"
    given = environment() | {"PYTHONPATH": str(REPO), "MLFLOW_TRACKING_URI": uri}

    def verb(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=REPO, env=given, capture_output=True, text=True, timeout=SECONDS, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    told = verb("pipelines/register.py", str(run_dir))
    assert f"registered: tcl of {run_dir}, {METRIC} 25.0, is version 1 of owseg" in told
    assert str(MlflowClient(uri).get_model_version_by_alias("owseg", "champion").version) == "1"
    out = tmp_path / "out"
    verb(
        "pipelines/segment.py",
        str(photo),
        "--labels",
        ",".join(LABELS),
        "--checkpoint",
        "models:/owseg@champion",
        f"--out={out}",
    )

    port = free_port()
    command = ["-m", "mlflow", "models", "serve", "--env-manager", "local", "--port", str(port), "--workers", "1"]
    log = (tmp_path / "server.log").open("w")
    server = subprocess.Popen(
        [sys.executable, *command, "--model-uri", "models:/owseg@champion"],
        cwd=tmp_path,
        env=given | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", server, tmp_path / "server.log")
        row = {"image": base64.b64encode(photo.read_bytes()).decode(), "labels": LABELS}
        (answer,) = ask(port, {"dataframe_records": [row]})["predictions"]
        with (
            Image.open(io.BytesIO(base64.b64decode(answer["mask"]))) as served,
            Image.open(out / "photo.mask.png") as segmented,
        ):
            assert (np.asarray(served) == np.asarray(segmented)).all()
        assert answer["labels"] == LABELS
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(port, {"dataframe_records": [row | {"image": base64.b64encode(b"no picture").decode()}]})
        assert refused.value.code == 400
    finally:
        os.killpg(server.pid, 15)
        server.wait(60)
        log.close()


def ask(port: int, body: dict[str, object]) -> dict[str, list[dict[str, str]]]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, list[dict[str, str]]] = json.load(answer)
    return found


def wait_for(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"the server does not answer: {log.read_text()}")
