"""`owseg status`: what it tells of a run in each state, and that it only looks."""

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.chain import Chain
from helpers.s3 import s3_server
from pipelines import status
from pipelines.app.run_files import RunFiles
from pipelines.status import main
from storage.client import StorageConfig, Store
from storage.errors import refused
from storage.lease import leased

HOLD = """
import fcntl, os, sys
lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.lockf(lock, fcntl.LOCK_EX)
os.pwrite(lock, b"process 77 on host\\n", 0)
print("held", flush=True)
sys.stdin.read()
"""


def told(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    assert main([str(folder), "--json"]) == 0
    state: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert main([str(folder)]) == 0
    return state, capsys.readouterr().out


def contents(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def write(file: Path, content: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that was killed while it downloaded."""
    write(
        tmp_path / "filter.done.json",
        {"seconds": 60.0, "result": {"links": 10, "kept": 7, "entities": 3, "dropped": {"short": 3}}},
    )
    for shard, counts in (("00000", {"status/success": 2, "status/http_404": 1}), ("00001", {"status/timeout": 1})):
        write(tmp_path / "shards" / "_done" / f"{shard}.done.json", {"counts": counts})
    progress = {"stage": "download", "label": "download", "done": 4, "total": 7, "unit": "images", "rate": 2.0, "left": 90.0}
    write(tmp_path / "logs" / "progress.json", {**progress, "note": "57% obtained", "time": time.time()})
    (tmp_path / "config.yaml").write_text("method_settings: {tcl: {phases: [{steps: 30}, {steps: 10}]}}\n")
    return tmp_path


def test_of_a_killed_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(run)
    state, text = told(run, capsys)
    assert {name: stage["status"] for name, stage in state["stages"].items()} == {
        "filter": "done",
        "download": "interrupted",
        "train": "not begun",
        "evaluate": "not begun",
    }
    assert state["stages"]["download"]["counts"] == {"links": 4, "images": 2}
    assert state["stages"]["download"]["failures"] == {"http_404": 1, "timeout": 1}
    assert "no process is at work" in text
    assert "in 1:00; 10 links, 7 kept, 3 entities; without 3 short" in text
    assert not state["complete"]
    assert contents(run) == before


def test_of_a_run_that_goes_on(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(run / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        state, text = told(run, capsys)
        assert state["held_by"] == "process 77 on host"
        assert state["stages"]["download"]["status"] == "running"
        assert "download: 4 of 7 images, 2 images/s, 1:30 left, 57% obtained" in text
        with pytest.raises(BlockingIOError), (run / ".lock").open("r+b") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        holder.communicate()
    lock = os.open(run / ".lock", os.O_RDWR)
    fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody holds it: neither did the verb
    os.close(lock)


def test_trainings_and_checkpoints(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training = run / "train" / "tcl"
    for name, step in (("checkpoint_2026-01-01", 10), ("checkpoint_2026-01-02", 20)):
        write(training / "checkpoints" / name / "position.json", {"step": step})
    line = json.dumps({"step": 25, "loss/total": 1.25, "samples_per_second": 64.0})
    (training / "metrics.jsonl").write_text(f'{line}\n{{"step": 26, "loss')
    state, text = told(run, capsys)
    assert state["stages"]["train"]["trainings"]["tcl"] == {"step": 25, "steps": 40, "loss": 1.25, "images_per_second": 64.0}
    assert state["checkpoints"]["tcl"]["step"] == 20
    assert state["checkpoints"]["tcl"]["folder"].endswith("checkpoint_2026-01-02")
    assert "tcl                 step 25 of 40, loss 1.250, 64 images/s" in text
    assert state["disk"]["bytes"]["train"] == sum(path.stat().st_size for path in training.rglob("*") if path.is_file())


def test_of_an_empty_folder_and_of_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state, _ = told(tmp_path, capsys)
    assert {stage["status"] for stage in state["stages"].values()} == {"not begun"}
    assert main([str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'none'}: there is no such folder")


def test_damaged_records_are_as_good_as_none(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("filter.done.json", "config.yaml", "logs/progress.json", "shards/_done/00000.done.json", "mlflow.json"):
        (run / name).write_text("{[")
    state, _ = told(run, capsys)
    assert state["stages"]["download"]["counts"] == {"links": 1, "images": 0}


DEEP = "[" * 100_000
WRONG = ("null", "[]", "5", '"x"', "NaN", "{", DEEP, "")
OF_RESULTS = {
    "filter": ('{"links": 1}', '{"links": 1, "kept": 1, "entities": "x", "dropped": {}}', "5", '"x"', "[]", '{"a": 1}'),
    "download": ('{"by_status": {"success": "x"}}', '{"by_status": [1]}', "7"),
    "features": ('{"a": 1}',),
    "evaluate": ('{"images": {}}', '{"images": {}, "mIoU": {"tcl": {}}}', '{"images": {}, "mIoU": {"tcl": {"average": null}}}'),
}


def damages() -> Iterator[tuple[str, str]]:
    """Files of a run, each with what this program does not write there."""
    for name in ("filter.done.json", "mlflow.json", "train/tcl/checkpoints/checkpoint_1/position.json"):
        yield from ((name, text) for text in WRONG)
    yield from (
        (f"{stage}.done.json", f'{{"seconds": 1, "result": {text}}}') for stage in OF_RESULTS for text in OF_RESULTS[stage]
    )
    yield from (
        ("filter.done.json", f'{{"seconds": {text}, "result": {{}}}}') for text in ("null", "NaN", "Infinity", '"x"', "[]")
    )
    yield from (("mlflow.json", f'{{"run_id": {text}}}') for text in ("{}", "5"))
    yield from (("shards/_done/00000.done.json", f'{{"counts": {text}}}') for text in ("5", "[1]", '{"status/success": "x"}'))
    yield from (("train/tcl/checkpoints/checkpoint_1/position.json", f'{{"step": {text}}}') for text in ('"x"', "NaN", "[]"))
    yield from (("config.yaml", text) for text in ("[]", "x", "{[", "[" * 1100, ""))


def test_files_of_wrong_kinds_are_named_and_take_no_more_with_them(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever a file holds, the state of the rest is told, as numbers that JSON has."""
    write(run / "features" / "tcl" / "sizes.json", {})
    for name, text in damages():
        file = run / name
        before = file.read_bytes() if file.is_file() else None
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        assert main([str(run), "--json"]) == 0, (name, text[:40], capsys.readouterr().err)
        state = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
        assert [line for line in state["damaged"] if line.startswith(f"{file}: is damaged (")], (name, text[:40])
        assert state["stages"]["train"]["status"] == ("interrupted" if "train/" in name else "not begun")
        assert main([str(run)]) == 0, (name, text[:40])
        assert f"{file}: is damaged (" in capsys.readouterr().out
        file.unlink() if before is None else file.write_bytes(before)
        if "train/" in name:
            shutil.rmtree(run / "train")


def test_what_a_killed_process_told_last(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """progress.json is read while somebody works on the run; of a log with lines that are none the others count."""
    log = run / "train" / "tcl" / "metrics.jsonl"
    log.parent.mkdir(parents=True)
    log.write_bytes(b'{"step": 3, "loss/total": NaN}\n{"step": "x"}\n[]\n' + DEEP.encode() + b"\n\xff\n")
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(run / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        good = json.loads((run / "logs" / "progress.json").read_text())
        for key, value in (("rate", "x"), ("left", []), ("done", None), ("time", "x"), ("note", 5), ("label", {})):
            write(run / "logs" / "progress.json", good | {key: value})
            state, _ = told(run, capsys)
            assert "progress" not in state["stages"]["download"]
            [line] = state["damaged"]
            assert line.startswith(f"{run / 'logs' / 'progress.json'}: is damaged ({key} is of another kind")
            assert state["stages"]["train"]["trainings"]["tcl"] == {
                "step": 3,
                "steps": 40,
                "loss": None,
                "images_per_second": None,
            }
    finally:
        holder.communicate()


@pytest.mark.parametrize("name", ["", "file://", "~nobody-here/run", "x" * 5000])
def test_what_can_be_no_folder(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name]) == 2
    error = capsys.readouterr().err
    assert "no folder" in error
    assert error.count("\n") == 1


def test_of_a_run_in_an_object_store(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        store = Store(f"{server.make_bucket('bucket')}/run")
        for path in run.rglob("*.*"):
            if path.is_file():
                store.put(path.relative_to(run).as_posix(), path)
        with leased(store):
            assert main([store.url, "--json"]) == 0
        state = json.loads(capsys.readouterr().out)
        assert state["held_by"] == f"process {os.getpid()} on {socket.gethostname()}"
        assert state["stages"]["download"]["counts"] == {"links": 4, "images": 2}
        assert state["stages"]["download"]["status"] == "running"
        assert main([store.url]) == 0
        assert "download  interrupted" in capsys.readouterr().out
        assert main([f"{store.url}/none"]) == 2
        assert "there is no such folder" in capsys.readouterr().err


def test_what_a_store_refuses_is_said_of_the_options(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[StorageConfig] = []

    def refuse(folder: str, storage: StorageConfig) -> RunFiles:
        asked.append(storage)
        told = "status code: 301" if storage.anonymous else "MissingCredentials"
        mistake = refused(folder, OSError(told), "read")
        assert mistake is not None
        raise mistake

    monkeypatch.setattr(status, "run_files", refuse)
    assert status.main(["s3://bucket/run"]) == 2
    assert capsys.readouterr().err.endswith("and a key), or --anonymous\n")
    assert status.main(["s3://bucket/run", "--anonymous", "--region", "eu-1"]) == 2
    assert "set --region (or AWS_REGION)" in capsys.readouterr().err
    assert asked[1] == StorageConfig(anonymous=True, region="eu-1")


def test_of_a_complete_run(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    state, text = told(chain.folder, capsys)
    assert state["complete"]
    assert f"{chain.folder}: complete" in text
    for name, stage in chain.summary["stages"].items():
        assert state["stages"][name]["seconds"] == round(stage["seconds"], 1)
    assert state["mlflow"]["run_id"] == chain.summary["mlflow"]["run_id"]
    assert state["stages"]["evaluate"]["mIoU"].keys() == chain.summary["stages"]["evaluate"]["mIoU"].keys()
    lines = [json.loads(line) for line in (chain.folder / "logs" / "driver.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in lines} >= {"filter", "download", "train", "evaluate"}
    assert {line["run"] for line in lines} >= {chain.summary["mlflow"]["run_id"]}
    assert all(line.keys() == {"time", "level", "run", "stage", "node", "worker", "message"} for line in lines)
    assert any(line["message"].startswith("zero-shot mIoU") for line in lines)
