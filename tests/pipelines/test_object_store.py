"""Runs whose folder lies in an object store: the same bytes as in a plain folder, through faults and kills."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from helpers.chain import DEADLINE, SMOKE, Chain, environment, run_each, wait_for
from helpers.nodes import nodes
from helpers.paths import REPO
from helpers.s3 import KEY, S3, SECRET, Fault, s3_server
from storage.client import Store
from storage.lease import NAME

RUN = "s3://bucket/runs/one"


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    with s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        server.make_bucket("bucket")
        yield server


def start(verb: str, scratch: Path, *settings: str, log: Path | None = None) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        f"pipelines/{verb}.py",
        "--config",
        SMOKE,
        f"run_dir={RUN}",
        f"storage.scratch={scratch}",
        *settings,
    ]
    output: Any = log.open("w") if log else subprocess.PIPE
    return subprocess.Popen(
        command, cwd=REPO, env=environment(), stdout=output, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def run(verb: str, scratch: Path, *settings: str, code: int = 0) -> str:
    """What a verb prints, which ends with the code."""
    process = start(verb, scratch, *settings)
    output, _ = process.communicate(timeout=3 * DEADLINE)
    assert process.returncode == code, output[-6000:]
    return output


def stored(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(Store(RUN).get(name) or b"{}")
    return loaded


def digests(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Of all that a run makes."""
    stages = summary["stages"]
    return {
        **{name: stage["digest"] for name, stage in stages.items()},
        **stages["train"]["methods"],
        **stages["evaluate"]["mIoU"],
    }


def no_secret_in(*folders: Path) -> None:
    """Neither in what lies in the store, nor in files here."""
    contents = {entry.name: Store("s3://bucket").get(entry.name) or b"" for entry in Store("s3://bucket").entries()}
    contents |= {str(path): path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}
    for name, content in contents.items():
        assert SECRET.encode() not in content, name
        assert KEY.encode() not in content, name


REFUSED = {
    "nowhere": (None, "there is no such bucket; create it, or correct the name"),
    "denied": (Fault(status=403, code="AccessDenied"), "access is denied; the credentials need the right to write"),
    "elsewhere": (
        Fault(status=400, code="AuthorizationHeaderMalformed"),
        "the bucket is in another region; set storage.region",
    ),
    "expired": (Fault(status=400, code="ExpiredToken"), "the credentials have expired; get new ones"),
    "unknown": (Fault(status=403, code="InvalidAccessKeyId"), "the credentials are not valid there"),
}
"""Buckets, what becomes of requests to them, and what is said."""


def test_what_a_store_refuses_is_one_line(s3: S3, tmp_path: Path) -> None:
    s3.faults = lambda method, path, number: REFUSED.get(path.split("/")[1].partition("?")[0], (None, ""))[0]
    Store("s3://bucket/held").put(NAME, b'{"host": "node7", "pid": 12}')
    told = {f"s3://{bucket}/run": line for bucket, (_, line) in REFUSED.items()}
    told["s3://bucket/held"] = "is in use by process 12 on node7; wait for it"
    settings = [f"storage.scratch={tmp_path}", "storage.patience=0"]
    calls = [["pipelines/filter.py", "--config", SMOKE, f"run_dir={url}", *settings] for url in told]
    calls.append(["pipelines/filter.py", "--config", "s3://bucket/no.yaml"])
    calls.append(["pipelines/filter.py", "--config", SMOKE, f"run_dir={RUN}", *settings, "download.target=s3://bucket/x"])
    calls.append(["pipelines/filter.py", "--config", SMOKE, f"run_dir={RUN}", *settings, "evaluate.root=s3://bucket/empty"])
    calls.append(
        ["pipelines/filter.py", "--config", SMOKE, f"run_dir={RUN}", *settings, "filter.source.path=s3://nowhere/l.tsv"]
    )
    expected = [
        f"error: {'run_dir: ' if 'in use' in line else ''}{url}{'' if 'in use' in line else ':'} {line}"
        for url, line in told.items()
    ]
    expected += [
        "error: --config s3://bucket/no.yaml: there is no such object",
        "error: command line: download.target: the shards lie in an object store already",
        "error: evaluate.root: there is nothing at s3://bucket/empty",
        "error: filter.source.path: s3://nowhere: there is no such bucket",
    ]
    for result, line in zip(run_each(calls), expected, strict=True):
        assert result.returncode == 2, result.stderr
        assert result.stderr.startswith(line), result.stderr
        assert result.stderr.count("\n") == 1
        assert not any(secret in result.stderr for secret in (KEY, SECRET))


@pytest.mark.slow
def test_the_chain_through_faults_makes_what_it_makes_in_a_folder(s3: S3, chain: Chain, tmp_path: Path) -> None:
    def faults(method: str, path: str, number: int) -> Fault | None:
        kinds = {7: Fault(status=503, code="SlowDown"), 11: Fault(status=500, code="InternalError"), 13: Fault(seconds=1.0)}
        return kinds.get(number % 40) or (Fault(cut=True) if number % 40 == 17 and method == "GET" else None)

    s3.faults = faults
    output = run("full", tmp_path / "scratch")
    assert digests(stored("summary.json")) == digests(chain.summary)
    assert stored("summary.json")["run_dir"] == RUN
    assert str(tmp_path) not in output
    assert SECRET not in output
    assert RUN in output
    assert Store(RUN).get(NAME) is None
    no_secret_in(tmp_path)
    shutil.rmtree(tmp_path / "scratch")  # another machine has none of it
    again = run("full", tmp_path / "scratch")
    stages = {"filter": "corpus", "filter-report": "corpus/report.html", "download": "shards", "train": "train"}
    assert [line.partition(", stage")[0] for line in again.splitlines() if "skipped" in line] == [
        f"{stage}: skipped, complete already ({RUN}/{output})" for stage, output in {**stages, "evaluate": "evaluate"}.items()
    ]
    small = sum(path.stat().st_size for path in (tmp_path / "scratch").rglob("*") if path.is_file())
    assert small < 2 << 20, "what stays on the machine"


@pytest.mark.slow
def test_kills_and_another_machine_end_with_the_same(s3: S3, chain: Chain, tmp_path: Path) -> None:
    def killed_when(ready: Callable[[], bool], verb: str, scratch: Path) -> None:
        process = start(verb, scratch, log=tmp_path / "log")
        wait_for(ready, lambda: process.poll() is None, f"the moment to kill {verb}: {tmp_path / 'log'}")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(1)  # Ray's processes follow

    store = Store(RUN)
    killed_when(lambda: store.head("corpus/_build/mark/_done/00000.done.json") is not None, "filter", tmp_path / "one")
    killed_when(lambda: store.head("shards/_done/00000.done.json") is not None, "download", tmp_path / "two")
    killed_when(
        lambda: store.head("train/clip/checkpoints/checkpoint_manager_snapshot.json") is not None, "train", tmp_path / "one"
    )
    run("full", tmp_path / "two")
    assert digests(stored("summary.json")) == digests(chain.summary)
    no_secret_in(tmp_path)


@pytest.mark.slow
def test_a_submitted_job_on_nodes_that_share_nothing_but_the_bucket(s3: S3, chain: Chain, tmp_path: Path) -> None:
    """Each node has a scratch folder of its own at the same path, in a mount namespace of its own; the head has the third."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with nodes(jobs=True) as cluster:
        for _ in range(2):
            cluster.add(cpus=1, own_folder=scratch)
        settings = [f"run_dir={RUN}", f"storage.scratch={scratch}", "session.num_cpus=null", "session.data_workers=2"]
        job = ["python", "pipelines/full.py", "--config", SMOKE, *settings]
        submit = ["ray", "job", "submit", "--address", cluster.api, "--working-dir", ".", "--", *job]
        done = subprocess.run(
            submit, cwd=REPO, env=cluster.environment, capture_output=True, text=True, check=False, timeout=3 * DEADLINE
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert digests(stored("summary.json")) == digests(chain.summary)
    no_secret_in(tmp_path)
