"""Ctrl-C in every stage of a real run: a line, an end within seconds, 130, MLflow's KILLED, and the next start goes on."""

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.chain import command, environment, run_well, wait_for
from helpers.files import count_lines
from helpers.paths import REPO
from helpers.signals import plain_signals
from helpers.tracked import runs_of

SECONDS = 45.0
"""An orderly end takes some; Ray's own handler took up to 85 on this project's machines."""
SETTINGS = (
    "methods=[maskclip,tcl]",
    "method_settings.clip.phases.0.steps=16",
    "evaluate.datasets=[voc21,ade20k]",
    "download.fetch.concurrency=2",
    "session.data_workers=1",
)


def interrupt(ready: Callable[[str], bool], verb: str, run_dir: Path, *settings: str, number: int = signal.SIGINT) -> str:
    """Start a verb, send a signal when `ready` says so of what it has printed; returns all that it printed."""
    log = run_dir.with_suffix(".log")
    with log.open("w") as output:
        process = subprocess.Popen(
            command(verb, run_dir, *settings),
            cwd=REPO,
            env=environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=plain_signals,
        )
    try:
        wait_for(lambda: ready(log.read_text()), lambda: process.poll() is None, f"the moment to interrupt {verb}: {log}")
        process.send_signal(number)
        process.wait(SECONDS)
    finally:
        process.kill()
    text = log.read_text()
    assert process.returncode == 128 + number, text[-3000:]
    assert "Traceback" not in text
    assert text.count("interrupted, stopping") == 1
    assert f"resume with: python pipelines/{verb}.py --config configs/smoke.yaml run_dir={run_dir} " in text
    return text


def statuses(run_dir: Path) -> dict[str, str]:
    """Of the runs of a folder, by name."""
    return {name: run.info.status for name, run in runs_of(run_dir).items()}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_in_every_stage_and_after_a_training(tmp_path: Path) -> None:
    run = tmp_path / "run"
    interrupt(lambda _: (run / "corpus").is_dir(), "full", run, *SETTINGS)
    assert statuses(run) == {"run": "KILLED", "filter": "KILLED"}
    requests = run / "world" / "requests.log"
    interrupt(lambda _: count_lines(requests) > 20, "full", run, *SETTINGS)
    assert statuses(run) == {"run": "KILLED", "filter": "FINISHED", "download": "KILLED"}
    steps = run / "train" / "clip" / "metrics.jsonl"
    interrupt(lambda _: count_lines(steps) > 3, "full", run, *SETTINGS)
    assert statuses(run)["train clip"] == statuses(run)["run"] == "KILLED"
    # In a process that has trained: Ray Train leaves a handler behind that ignores Ctrl-C.
    interrupt(lambda told: "train-tcl: started" in told, "full", run, *SETTINGS, number=signal.SIGTERM)
    told = interrupt(lambda told: "evaluate: started" in told, "full", run, *SETTINGS)
    assert "train-tcl: done" in told
    assert statuses(run)["run"] == "KILLED"
    assert {name: status for name, status in statuses(run).items() if name != "run"} == {
        "filter": "FINISHED",
        "download": "FINISHED",
        "train clip": "FINISHED",
        "train tcl": "FINISHED",
    }
    run_well("full", run, *SETTINGS)
    assert set(statuses(run).values()) == {"FINISHED"}


@pytest.mark.slow
def test_in_a_sweep_its_cells_are_recorded_as_killed_too(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    steps = ("method_settings.clip.phases.0.steps=200", "methods=[maskclip]", "evaluate.datasets=[voc21]")
    logs = "shared/clip-*/train/clip/metrics.jsonl"
    interrupt(lambda _: any(count_lines(log) > 3 for log in sweep.glob(logs)), "sweep", sweep, *steps)
    found = statuses(sweep)
    assert found["sweep"] == found["train clip"] == "KILLED"
    assert "RUNNING" not in found.values()
