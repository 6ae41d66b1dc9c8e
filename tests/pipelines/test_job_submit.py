"""The chain as a submitted job: a Ray head in processes of its own, `ray job submit` with the repo as working directory."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.request import Request, urlopen

import pytest

from helpers.chain import DEADLINE, SMOKE, environment, summary
from helpers.nodes import free_ports
from helpers.paths import REPO

BIN = Path(sys.executable).parent
SMALLEST = ("methods=[maskclip]", "train.workers=1", "evaluate.datasets=[voc21, ade20k]", "evaluate.pictures=false")
"""What is left of the chain still has each stage in it."""


class Head(NamedTuple):
    address: str
    environment: dict[str, str]

    def call(self, *command: str) -> str:
        """What a client of this cluster prints; it must succeed."""
        result = subprocess.run(
            command,
            cwd=REPO,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=DEADLINE,
        )
        assert result.returncode == 0, result.stdout[-6000:]
        return result.stdout

    def submit(self, run_dir: Path) -> str:
        chain = ("python", "pipelines/full.py", "--config", SMOKE, f"run_dir={run_dir}", *SMALLEST)
        return self.call("ray", "job", "submit", "--address", self.address, "--working-dir", ".", "--", *chain)

    def actors(self) -> list[str]:
        """Class names of all actors that this cluster ever ran."""
        listed = self.call("ray", "list", "actors", "--address", self.address, "--format", "json", "--limit", "1000")
        return [actor["class_name"] for actor in json.loads(listed[listed.index("[") :])]


def answers(request: Request) -> bool:
    try:
        with urlopen(request, timeout=5):
            return True
    except OSError:
        return False


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A cluster of this machine alone, with its own ports, folder and password. Ended by its process group: `ray stop`
    would end every other Ray of this machine too."""
    folder = Path(tempfile.mkdtemp(prefix="head-", dir="/tmp"))  # short: the paths of Ray's sockets have a limit
    port, dashboard, agent, client = free_ports(4)
    address = f"http://127.0.0.1:{dashboard}"
    settings = {
        **environment(),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_API_SERVER_ADDRESS": address,
    }
    start = ["ray", "start", "--head", "--block", f"--port={port}", f"--temp-dir={folder}", "--num-cpus=2"]
    start += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    start += [f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}", f"--object-store-memory={2**28}"]
    log = folder / "head.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            start, cwd=folder, env=settings, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        end = time.monotonic() + DEADLINE
        request = Request(f"{address}/api/jobs/", headers={"Authorization": f"Bearer {settings['RAY_AUTH_TOKEN']}"})
        while not answers(request):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        yield Head(address, settings)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)  # `ray start` itself would wait half a minute for daemons that are gone
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_submitted_job_runs_on_the_clusters_workers_and_a_second_one_does_nothing(head: Head, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    output = head.submit(run_dir)
    assert "corpus funnel: 320 links →" in output
    first = summary(run_dir)
    assert {stage["status"] for stage in first["stages"].values()} == {"done"}
    assert tuple(first["stages"]["evaluate"]["mIoU"]["maskclip"]) == ("voc21", "ade20k", "average")
    actors = head.actors()
    for name in ("RayTrainWorker", "Evaluator"):
        assert name in actors, "the driver did not use the job's own cluster"

    output = head.submit(run_dir)
    second = summary(run_dir)
    for name, stage in second["stages"].items():
        assert f"{name}: skipped" in output
        assert stage["status"] == "skipped"
        assert stage["digest"] == first["stages"][name]["digest"]
    assert [name for name in head.actors() if "JobSupervisor" not in name] == [
        name for name in actors if "JobSupervisor" not in name
    ]


def test_the_submit_script_uses_a_cluster_that_is_there(head: Head, tmp_path: Path) -> None:
    output = head.call("deploy/submit.sh", str(tmp_path / "run"), "--help")
    assert "usage: python pipelines/full.py" in output
    assert "succeeded" in output
