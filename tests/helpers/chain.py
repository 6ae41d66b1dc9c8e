"""Runs the verbs as a user does: as processes of their own, in the smallest size of the whole chain."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from helpers.paths import REPO

SMOKE = "configs/smoke.yaml"
DEADLINE = 400.0
"""Seconds after which a test that waits for a process gives up; far above what a quiet machine needs."""


PLANTED = {
    "AWS_ACCESS_KEY_ID": "AKIA0planted0key",
    "AWS_SECRET_ACCESS_KEY": "planted/secret+of+a+store",
    "DATABASE_URL": "postgresql://owner:planted0password@db.test/runs",
    "HF_TOKEN": "hf_planted0token",
    "SERVICE_PASSWORD": "planted.word",
}
"""Secrets in the environment of the chain, as people's shells have them."""


class Chain(NamedTuple):
    """A complete run."""

    folder: Path
    output: str
    summary: dict[str, Any]


def command(verb: str, run_dir: Path, *settings: str, config: str | Path = SMOKE) -> list[str]:
    return [sys.executable, f"pipelines/{verb}.py", "--config", str(config), f"run_dir={run_dir}", *settings]


def environment() -> dict[str, str]:
    """A plain shell's: no cluster, no Ray settings of the tests' own."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}


def run(
    verb: str, run_dir: Path, *settings: str, config: str | Path = SMOKE, deadline: float = DEADLINE
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(verb, run_dir, *settings, config=config),
        cwd=REPO,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=deadline,
    )


ONE_AFTER_ANOTHER = """
import json, os, runpy, sys, tempfile

def call(verb, argv):
    sys.argv = [f"pipelines/{verb}.py", *argv]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        return end.code or 0

results, kept = [], (os.dup(1), os.dup(2))
for verb, argv in json.load(sys.stdin):
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        for file, number in ((out, 1), (err, 2)):
            os.dup2(file.fileno(), number)
        code = call(verb, argv)
        for stream, number, original in ((sys.stdout, 1, kept[0]), (sys.stderr, 2, kept[1])):
            stream.flush()
            os.dup2(original, number)
        results.append([code, *(file.seek(0) or file.read() for file in (out, err))])
print(json.dumps(results))
"""


def run_each(calls: Sequence[Sequence[str]]) -> list[subprocess.CompletedProcess[str]]:
    """Verbs with their arguments, from the script on, one after another in one process, so that libraries load once."""
    given = json.dumps([[Path(script).stem, argv] for script, *argv in calls])
    process = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_ANOTHER],
        cwd=REPO,
        env=environment() | {"PYTHONPATH": str(REPO)},
        input=given,
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE,
    )
    results = json.loads(process.stdout.splitlines()[-1])
    return [subprocess.CompletedProcess(list(call), *result) for call, result in zip(calls, results, strict=True)]


def run_well(verb: str, run_dir: Path, *settings: str, config: str | Path = SMOKE, deadline: float = DEADLINE) -> str:
    """Run a verb that must succeed; what it printed to stdout."""
    result = run(verb, run_dir, *settings, config=config, deadline=deadline)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-6000:]
    return result.stdout


def summary(run_dir: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return loaded


def kill_when(ready: Callable[[], bool], verb: str, run_dir: Path, *settings: str, group: bool) -> int:
    """Start a verb and `kill -9` it at the moment that `ready` says: the driver alone, or its whole process group.

    Returns its process id, which also is that of its session.
    """
    log = run_dir.with_suffix(".log")
    with log.open("w") as output:
        process = subprocess.Popen(
            command(verb, run_dir, *settings),
            cwd=REPO,
            env=environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own, as a shell gives to a command
        )
    try:
        wait_for(ready, lambda: process.poll() is None, f"the moment to kill {verb}: {log}")
    finally:
        (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
        process.wait()
    return process.pid


def processes_of_session(session: int, name: str = "") -> list[str]:
    """Command lines (those with `name` in them) of what still runs of a session, whatever process group it is in by now."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, of = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(of) == session and state != "Z":
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return [line for line in found if name in line]


def wait_for(ready: Callable[[], bool], alive: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not ready():
        assert alive(), f"the process ended before {what}"
        assert time.monotonic() < end, f"gave up waiting for {what}"
        time.sleep(0.02)
