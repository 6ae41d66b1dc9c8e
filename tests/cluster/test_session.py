"""Ray sessions, progress and stage markers."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cluster import InputError
from cluster.progress import Progress
from cluster.session import SessionConfig, selector_of
from helpers.paths import REPO
from pipelines.app.stage_marker import StageMarker, read_marker, write_marker

PROBE = """
import json, os, subprocess, sys
from pathlib import Path
from cluster.session import SessionConfig, close_session, ensure_session

ensure_session(SessionConfig(num_cpus=1, object_store_mb=100))
ensure_session(SessionConfig(num_cpus=1, object_store_mb=100))  # the second call finds the first one's session
import ray

@ray.remote
def look():
    import filtering
    names = ("OMP_NUM_THREADS", "MLFLOW_DISABLE_TELEMETRY", "RAY_AUTH_MODE")
    return {"packages": filtering.__file__, **{name: os.environ.get(name) for name in names}}

listed = subprocess.run(["ps", "-ww", "-o", "args=", "--ppid", str(os.getpid())], capture_output=True, text=True, check=True)
started = {Path(word).name for word in listed.stdout.split()}
services = sorted(started & {"raylet", "monitor.py", "log_monitor.py", "dashboard.py"})
print(json.dumps({"cpus": ray.cluster_resources()["CPU"], "services": services, **ray.get(look.remote())}))
close_session()
"""


def test_a_local_session_protects_itself_and_leaves_nothing_in_the_home_folder(tmp_path: Path) -> None:
    """Ray's own default writes ~/.ray/auth_token, which breaks a later `ray job submit` by the same user.

    It also joins the cluster that a `ray start` noted down last, though that has been killed since.
    """
    home, temporary = tmp_path / "home", Path(tempfile.mkdtemp(prefix="ray"))  # short: Ray puts sockets there
    home.mkdir()
    (temporary / "ray").mkdir()
    (temporary / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "OMP_", "MLFLOW_"))}
    result = subprocess.run(
        [sys.executable, "-c", PROBE],
        env={**environment, "HOME": str(home), "RAY_TMPDIR": str(temporary)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout)
    assert seen == {
        "cpus": 1.0,
        "services": ["raylet"],
        "packages": str(REPO / "filtering" / "__init__.py"),
        "OMP_NUM_THREADS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "RAY_AUTH_MODE": "token",
    }
    assert not (home / ".ray").exists()
    shutil.rmtree(temporary)


def test_a_cluster_that_is_not_there_is_the_users_mistake(tmp_path: Path) -> None:
    code = "from cluster.session import *; ensure_session(SessionConfig(address='127.0.0.1:1'))"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    last = result.stderr.splitlines()[-1]
    assert last.startswith("cluster.InputError: session.address: no Ray cluster answers at '127.0.0.1:1' (")


def test_values_out_of_range_are_named() -> None:
    with pytest.raises(InputError, match=r"^num_cpus must be at least 1, not 0"):
        SessionConfig(num_cpus=0)
    with pytest.raises(InputError, match=r"^data_label must be key=value .* not 'role'"):
        SessionConfig(data_label="role")
    assert selector_of("role=data") == {"role": "data"}
    assert selector_of("") is None


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_progress_is_few_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("cluster.progress.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    with Progress("download", total=1000, unit="links", start=500, stream=stream) as progress:
        for _ in range(100):
            now[0] += 0.125
            progress.advance(5, note="ok 99%")
    assert stream.getvalue().splitlines() == [
        "download: 700/1000 links, 40 links/s, 0:05 so far, 0:08 left, ok 99%",
        "download: 900/1000 links, 40 links/s, 0:10 so far, 0:02 left, ok 99%",
        "download: 1000/1000 links, 40 links/s, 0:12 so far, ok 99%",
    ]


def test_the_rate_is_that_of_the_work_and_of_the_last_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("cluster.progress.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    progress = Progress("download", total=100_000, unit="links", stream=stream)
    done = 0
    for seconds, rate in ((30, 0), (40, 2000), (90, 20), (70, 0)):
        for _ in range(seconds):
            now[0] += 1.0
            done += rate
            progress.update(done, note=f"{now[0]:.0f} s")
    lines = {line.rpartition(", ")[2]: line for line in stream.getvalue().splitlines()}
    assert lines["30 s"] == "download: 0/100000 links, 0 links/s, 0:30 so far, 30 s"
    assert lines["35 s"] == "download: 10000/100000 links, 2000 links/s, 0:35 so far, 0:45 left, 35 s"
    assert lines["150 s"] == "download: 81600/100000 links, 20 links/s, 2:30 so far, 15:20 left, 150 s"
    assert lines["230 s"] == "download: 81800/100000 links, 0 links/s, 3:50 so far, 230 s"


def test_progress_that_breaks_off_says_so() -> None:
    stream = io.StringIO()
    progress = Progress("train", total=10, unit="steps", stream=stream)
    progress.update(3, note="loss 1.23")
    with pytest.raises(KeyboardInterrupt), progress:
        raise KeyboardInterrupt
    (line,) = stream.getvalue().splitlines()
    assert line.startswith("train: 3/10 steps, ")
    assert line.endswith(", loss 1.23, stopped")


def test_a_terminal_gets_a_bar() -> None:
    stream = Terminal()
    with Progress("train", total=10, unit="steps", stream=stream) as progress:
        progress.update(10, note="loss 1.23")
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert "10/10 steps" in shown
    assert "loss 1.23" in shown


def test_a_bar_that_stands_still_does_not_go_on_telling_its_old_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("cluster.progress.time.monotonic", lambda: now[0])
    stream = Terminal()
    with Progress("download", total=3000, unit="links", stream=stream) as progress:
        for done in (0, 500, 1000, *[1000] * 48):
            progress.update(done)
            now[0] += 1.0
        stream.truncate(0)
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue()).strip("\0").splitlines()[-1]
    assert "1000/3000 links 19.6/s 1:42" in " ".join(last.split())


def test_a_stage_is_complete_only_for_its_fingerprint(tmp_path: Path) -> None:
    assert read_marker(tmp_path, "filter", "f") is None
    marker = StageMarker(fingerprint="f", digest="d", seconds=1.5, result={"path": "corpus", "kept": 3})
    write_marker(tmp_path, "filter", marker)
    assert read_marker(tmp_path, "filter", "f") == marker
    assert read_marker(tmp_path, "filter", "g") is None
    (tmp_path / "filter.done.json").write_text('{"fingerprint": "f"')
    assert read_marker(tmp_path, "filter", "f") is None
