"""What all verbs share: options, exit codes, one-line mistakes, and a run folder that belongs to one run at a time."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from cluster import InputError
from cluster.session import SessionConfig
from pipelines.app import cli
from pipelines.app.config import from_dict, to_dict
from pipelines.app.outcome import explain
from pipelines.app.run_dir import digest_of_run
from pipelines.app.settings import Config
from pipelines.app.stage_marker import StageMarker, write_marker

VERB = """
import os, sys, time
from pathlib import Path
from pipelines.app.cli import main

def run(config):
    print(config.run_dir, flush=True)
    if "--wait" in os.environ.get("TEST_VERB", ""):
        time.sleep(60)

sys.exit(main(run, doc="Waits."))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text("seed: 3\n")
    return tmp_path


def call(*argv: str, run: Callable[[Config], None] = lambda config: None) -> int:
    return cli.main(run, doc="Does a thing.", argv=argv)


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_run_gets_the_settings_with_an_absolute_run_dir(folder: Path) -> None:
    seen: list[Config] = []
    assert call("--config", "tiny.yaml", "session.num_cpus=2", run=seen.append) == 0
    assert seen == [replace(from_dict(Config, {"seed": 3, "session": {"num_cpus": 2}}), run_dir=str(folder / "runs" / "tiny"))]
    written = yaml.safe_load((folder / "runs" / "tiny" / "config.yaml").read_text())
    assert from_dict(Config, written) == seen[0]


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--config", "none.yaml"], "error: none.yaml: no such file"),
        (["--config"], "error: --config needs a file"),
        (["--configs=tiny.yaml"], "error: unknown option '--configs=tiny.yaml'; the options are --config FILE and --help"),
        (["--config=tiny.yaml", "seeds=1"], "error: command line: unknown key 'seeds'; did you mean 'seed'?"),
        (["--config=tiny.yaml", "session.num_cpus=0"], "error: command line: session.num_cpus must be at least 1"),
        (["--config=tiny.yaml", "tracking.uri=mlruns"], "error: command line: tracking.uri: MLflow keeps no runs in plain"),
        (["--config=tiny.yaml", "run_dir=tiny.yaml"], "error: run_dir: "),
        (["--config=tiny.yaml", "run_dir=/proc/nowhere"], "error: run_dir: /proc/nowhere cannot be written"),
    ],
)
def test_mistakes_exit_2_with_one_line(folder: Path, capsys: pytest.CaptureFixture[str], argv: list[str], line: str) -> None:
    assert call(*argv) == 2
    assert error_line(capsys).startswith(line)


def test_a_folder_of_another_run_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--config=tiny.yaml", "seed=5") == 0
    assert call("--config=tiny.yaml") == 0  # no stage is complete yet: nothing is lost
    write_marker(folder / "runs" / "tiny", "filter", StageMarker(fingerprint="", digest="", seconds=0.0))
    assert call("--config=tiny.yaml", "session.num_cpus=1", "tracking.enabled=false") == 0  # where, not what
    assert (
        call("--config=tiny.yaml", "download.fetch.timeout=9", "download.fetch.max_bytes=1000") == 0
    )  # how links are asked for
    assert call("--config=tiny.yaml", "download.image.min_side=9", "download.shard_size=10") == 0  # as the report advises
    assert call("--config=tiny.yaml", "methods=[maskclip]") == 0  # other rows of the table, of the same corpus
    assert call("--config=tiny.yaml", "seed=4") == 2
    line = error_line(capsys)
    assert f"{folder / 'runs' / 'tiny'} holds a run of another config: 'seed' was 3 and is now 4" in line
    assert "run_dir=FOLDER" in line
    assert call("--config=tiny.yaml", "seed=4", "run_dir=other") == 0


def test_the_digest_of_a_run_is_of_what_not_where() -> None:
    here, there = Config(run_dir="a"), Config(run_dir="b", session=SessionConfig(num_cpus=1))
    assert digest_of_run(here) == digest_of_run(there)
    assert digest_of_run(here) != digest_of_run(replace(here, seed=1))
    image = replace(here.download.image, min_side=9)
    assert digest_of_run(here) != digest_of_run(replace(here, download=replace(here.download, image=image)))


def test_a_submitted_job_writes_outside_the_copy_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "working_dir_files" / "_ray_pkg_0"
    copy.mkdir(parents=True)
    (copy / "tiny.yaml").write_text("seed: 3\n")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(copy)
    assert call("--config=tiny.yaml") == 0
    assert (tmp_path / "home" / "runs" / "tiny" / "config.yaml").exists()
    assert call("--config=tiny.yaml", f"run_dir={tmp_path / 'absolute'}") == 0
    assert (tmp_path / "absolute" / "config.yaml").exists()


def test_a_broken_config_in_the_run_folder_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "runs" / "tiny").mkdir(parents=True)
    (folder / "runs" / "tiny" / "config.yaml").write_text("a: [")
    write_marker(folder / "runs" / "tiny", "filter", StageMarker(fingerprint="", digest="", seconds=0.0))
    assert call("--config=tiny.yaml") == 2
    assert "' was absent and is now " in error_line(capsys)


def test_a_fault_of_the_program_exits_1_with_its_traceback_in_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(config: Config) -> None:
        raise RuntimeError("a\nbug")

    log = folder / "runs" / "tiny" / "error.log"
    assert call("--config=tiny.yaml", run=run) == 1
    assert (
        error_line(capsys)
        == f"error: RuntimeError: a bug (a fault of this program, not of what you gave it; its traceback is in {log})"
    )
    assert call("--config=tiny.yaml", run=run) == 1
    assert log.read_text().count("Traceback (most recent call last)") == 2, "one below the other"
    assert log.read_text().count("RuntimeError: a\nbug\n") == 2


def test_a_mistake_found_while_running_exits_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(config: Config) -> None:
        try:
            raise InputError("links.tsv: no such file;\ngive another")
        except InputError as error:
            raise RuntimeError("wrapped") from error

    assert call("--config=tiny.yaml", run=run) == 2
    assert error_line(capsys) == "error: links.tsv: no such file; give another"


def test_ray_wraps_a_mistake_and_it_is_found() -> None:
    from ray.exceptions import RayTaskError

    wrapped = RayTaskError("f", "Traceback ...", InputError("x: wrong")).as_instanceof_cause()
    assert isinstance(wrapped, InputError)
    assert str(wrapped) != "x: wrong"
    assert explain(wrapped) == "x: wrong"
    assert explain(RayTaskError("f", "Traceback ...", RuntimeError("bug")).as_instanceof_cause()) is None


def test_help_needs_no_config_and_no_run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("--help") == 0
    assert list(tmp_path.iterdir()) == []


def test_a_flag_of_a_verb_runs_instead_of_it_and_holds_no_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def check(config: Config) -> None:
        """look at things"""
        seen.append(config)

    def run(config: Config) -> None:
        raise AssertionError

    seen: list[Config] = []
    for argv in (["--check", "--config=tiny.yaml"], ["--config", "tiny.yaml", "--check"]):
        assert cli.main(run, doc="Does a thing.", argv=argv, flags={"--check": check}) == 0
    assert [(config.seed, config.run_dir) for config in seen] == [(3, str(folder / "runs" / "tiny"))] * 2
    assert not (folder / "runs").exists()
    assert cli.main(run, doc="Does a thing.", argv=["--help"], flags={"--check": check}) == 0
    assert "\n  --check        look at things\n  --config FILE" in capsys.readouterr().out
    assert call("--check") == 2
    assert "unknown option '--check'" in error_line(capsys)


RETRY = {"--retry": cli.Choice(("none", "transient", "permanent"), "what to ask for again")}


@pytest.mark.parametrize(
    ("argv", "chosen"),
    [
        ([], "the default"),
        (["--retry", "permanent"], "permanent"),
        (["--retry=none"], "none"),
        (["seed=5", "--retry", "transient", "--config=tiny.yaml"], "transient"),
        (["--retry", "none", "--retry", "transient"], "transient"),
    ],
)
def test_a_choice_reaches_the_verb(folder: Path, argv: list[str], chosen: str) -> None:
    def run(config: Config, retry: str = "the default") -> None:
        seen.append((retry, config.seed))

    seen: list[tuple[str, int]] = []
    assert cli.main(run, doc="Does a thing.", argv=["--config=tiny.yaml", *argv], flags=RETRY) == 0
    assert seen == [(chosen, 5 if "seed=5" in argv else 3)]


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (
            ["--retry", "permanant"],
            "--retry: unknown value 'permanant' (did you mean 'permanent'?); choose from none, transient, permanent",
        ),
        (["--retry", "seed=5"], "--retry: unknown value 'seed=5'; choose from none, transient, permanent"),
        (["--retry"], "--retry needs a value; choose from none, transient, permanent"),
        (["--retry="], "--retry needs a value; choose from none, transient, permanent"),
        (
            ["--retr=none"],
            "unknown option '--retr=none'; the options are --config FILE, --retry none|transient|permanent and --help",
        ),
    ],
)
def test_a_wrong_choice_is_told_with_the_right_ones(
    folder: Path, capsys: pytest.CaptureFixture[str], argv: list[str], line: str
) -> None:
    def run(config: Config, retry: str = "") -> None:
        raise AssertionError

    assert cli.main(run, doc="Does a thing.", argv=argv, flags=RETRY) == 2
    assert error_line(capsys).startswith(f"error: {line}")
    assert not (folder / "runs").exists()


def test_help_names_the_choices(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(lambda config: None, doc="Does a thing.", argv=["--help"], flags=RETRY) == 0
    help_text = capsys.readouterr().out
    assert " [--retry none|transient|permanent] [--config FILE] [key=value ...]\n" in help_text
    assert "\n  --retry none|transient|permanent  what to ask for again\n" in help_text


def test_help_into_a_closed_pipe_is_no_error(folder: Path) -> None:
    (folder / "verb.py").write_text(VERB)
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        command = [sys.executable, "verb.py", "--help"]
        result = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_every_default_round_trips() -> None:
    assert from_dict(Config, to_dict(Config())) == Config()


def test_one_process_at_a_time_and_a_kill_frees_the_folder(folder: Path) -> None:
    verb = folder / "verb.py"
    verb.write_text(VERB)
    command = [sys.executable, str(verb), "--config", "tiny.yaml"]
    first = subprocess.Popen(command, env={**os.environ, "TEST_VERB": "--wait"}, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout is not None
        assert first.stdout.readline().strip() == str(folder / "runs" / "tiny")
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        assert second.returncode == 2
        assert second.stderr.startswith(f"error: run_dir: {folder / 'runs' / 'tiny'} is in use by process {first.pid} on ")
        assert second.stderr.count("\n") == 1
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
