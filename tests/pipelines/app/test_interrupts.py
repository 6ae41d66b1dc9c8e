"""Ctrl-C and its like, met by a verb: one line that says how to resume, the exit code, an end at once the second time."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from helpers.paths import REPO
from helpers.signals import plain_signals
from pipelines.app import cli, interrupts
from pipelines.app.interrupts import Interrupted
from pipelines.app.settings import Config

CALM = """
    try:
        print(config.run_dir, flush=True)
        time.sleep(60)
    finally:
        print('put away', flush=True)
"""
DEAF = """
    told = config.run_dir
    while True:
        try:
            print(told, flush=True)
            time.sleep(60)
        except BaseException:
            told = 'no'
"""
LAST = """
    with at_the_last() as act:
        act(lambda: print('killed', flush=True))
        told = config.run_dir
        while True:
            try:
                print(told, flush=True)
                time.sleep(60)
            except BaseException:
                told = 'no'
"""
VERB = """
import sys, time
from pipelines.app.interrupts import at_the_last
from pipelines.app.cli import main

def run(config):
    {work}

sys.exit(main(run, doc="Waits."))
"""


@pytest.fixture(autouse=True)
def _not_in_the_background() -> Iterator[None]:
    """In a shell's background these tests would be started with SIGINT ignored."""
    before = {number: signal.getsignal(number) for number in interrupts.SIGNALS}
    plain_signals()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text("seed: 3\n")
    return tmp_path


def call(*argv: str, number: int) -> int:
    """A verb that sends a signal to its own process."""

    def run(config: Config) -> None:
        os.kill(os.getpid(), number)
        raise AssertionError("it went on")

    return cli.main(run, doc="Does a thing.", argv=argv)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_in_one_line_and_the_shells_exit_code(
    folder: Path, capfd: pytest.CaptureFixture[str], number: int, code: int
) -> None:
    before = signal.getsignal(number)
    assert call("--config", "tiny.yaml", "seed=4", number=number) == code
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("interrupted, stopping")
    assert line.endswith(f" --config tiny.yaml seed=4 run_dir={folder}/runs/tiny")
    assert signal.getsignal(number) == before


def test_a_folder_that_was_named_is_named_once_and_quoted(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert call("--config=tiny.yaml", "run_dir=my run", number=signal.SIGINT) == 130
    assert capfd.readouterr().err.endswith(" --config=tiny.yaml 'run_dir=my run'\n")


def test_an_interrupt_that_no_signal_raised_ends_alike(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def run(config: Config) -> None:
        raise KeyboardInterrupt

    assert cli.main(run, doc="Does a thing.", argv=["--config=tiny.yaml"]) == 130
    (line,) = capfd.readouterr().err.splitlines()
    assert line.endswith(f" --config=tiny.yaml run_dir={folder}/runs/tiny")


def test_what_is_ignored_from_outside_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with interrupts.interruptible(lambda: ""):
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_end_that_hangs_is_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    gone, codes = threading.Event(), []
    monkeypatch.setattr(interrupts, "GRACE_SECONDS", 0.01)
    monkeypatch.setattr(os, "_exit", lambda code: (codes.append(code), gone.set()))

    def hang() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            assert gone.wait(10)

    with interrupts.interruptible(lambda: ""), pytest.raises(Interrupted):
        hang()
    assert codes == [143]


@pytest.mark.parametrize(
    ("work", "sent", "code", "printed"),
    [
        (CALM, [signal.SIGINT], 130, ["put away"]),
        (DEAF, [signal.SIGINT, signal.SIGINT], 130, ["no"]),
        (LAST, [signal.SIGINT, signal.SIGINT], 130, ["no", "killed"]),
    ],
    ids=["once", "twice", "twice, with a last act"],
)
def test_a_real_process(folder: Path, work: str, sent: Sequence[int], code: int, printed: list[str]) -> None:
    (folder / "verb.py").write_text(VERB.format(work=work))
    command = [sys.executable, "verb.py", "--config", "tiny.yaml"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=plain_signals)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == str(folder / "runs" / "tiny")
    told = []
    for number in sent:
        process.send_signal(number)
        told += [process.stdout.readline().strip()] if len(told) < len(printed) else []
    _, err = process.communicate(timeout=60)
    assert (process.returncode, told) == (code, printed)
    assert err == (
        "interrupted, stopping (once more ends it at once); resume with: "
        f"python verb.py --config tiny.yaml run_dir={folder}/runs/tiny\n"
    )


def test_last_acts_have_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    never = threading.Event()
    monkeypatch.setattr(interrupts, "LAST_SECONDS", 0.01)
    monkeypatch.setattr(os, "_exit", codes.append)
    with interrupts.interruptible(lambda: ""), interrupts.at_the_last() as act:
        act(lambda: never.wait(60) and None)
        for _ in range(2):
            with contextlib.suppress(Interrupted):
                os.kill(os.getpid(), signal.SIGINT)
    never.set()
    assert codes == [130]
    assert not interrupts._last_acts


def test_while_libraries_are_loaded() -> None:
    code = "import pipelines, os, signal; os.kill(os.getpid(), signal.SIGINT)"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=False, preexec_fn=plain_signals
    )
    assert (ended.returncode, ended.stderr) == (130, "interrupted before any work began\n")
