"""The log of a run: lines of JSON from the driver and its workers, bounded, without secrets; and how far it is."""

import io
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster import run_log
from cluster.progress import Progress
from cluster.run_log import Ticket
from helpers.paths import REPO
from pipelines.app.masked_output import masked_output


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_what_is_printed_is_kept_with_level_stage_and_run(tmp_path: Path) -> None:
    with masked_output(), run_log.run_log(tmp_path) as log:
        log.of(run="abc", stage="filter")
        print("read: ", end="")
        print("done\nwarning: slow")
        print("error: no such file", file=sys.stderr)
        log.of(stage="train")
        assert logging.lastResort is not None  # what prints records that nobody else handles
        logging.lastResort.handle(logging.makeLogRecord({"levelname": "WARNING", "levelno": 30, "msg": "the store is away"}))
        print("\x1b[2K bar \x1b[1A", end="")
    print("after")
    found = lines(tmp_path / "logs" / "driver.jsonl")
    assert [(line["level"], line["stage"], line["message"]) for line in found] == [
        ("INFO", "filter", "read: done"),
        ("WARNING", "filter", "warning: slow"),
        ("ERROR", "filter", "error: no such file"),
        ("WARNING", "train", "the store is away"),
    ]
    assert {(line["run"], line["worker"]) for line in found} == {("abc", "driver")}


def test_no_secret_is_kept(tmp_path: Path) -> None:
    with masked_output(), run_log.run_log(tmp_path) as log:
        print("see https://user:hunter2@host/?X-Amz-Signature=hunter3")
        log.line("from https://hunter4@host")
    run_log.join(Ticket(tmp_path / "logs", "r", "s"))
    handler = logging.getLogger().handlers[-1]
    try:
        logging.getLogger("filtering").warning("s3 secret_access_key=hunter5")
    finally:
        logging.getLogger().removeHandler(handler)
    kept = "".join(path.read_text() for path in (tmp_path / "logs").glob("*.jsonl"))
    assert kept.count("***") >= 4
    assert "hunter" not in kept


def test_a_worker_keeps_its_warnings_in_a_file_of_its_own(tmp_path: Path) -> None:
    code = (
        "import logging, sys; from pathlib import Path; from cluster.run_log import Ticket, join\n"
        "join(Ticket(Path(sys.argv[1]), 'abc', 'download'))\n"
        "logging.getLogger('filtering.x').warning('the network is %s', 'dead'); logging.getLogger('x').info('no')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "logs")], cwd=REPO, check=True, capture_output=True)
    (file,) = (tmp_path / "logs").glob("*.jsonl")
    (line,) = lines(file)
    assert (line["run"], line["stage"], line["level"]) == ("abc", "download", "WARNING")
    assert line["message"] == "filtering.x: the network is dead"
    assert file.name == f"{line['node']}-{line['worker']}.jsonl"


def test_files_and_their_number_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "MOST_FILES", 3)
    file = run_log.Lines(Ticket(tmp_path, "", ""), "driver.jsonl", "driver", full=2000)
    for number in range(100):
        file.write("INFO", f"line {number}")
    sizes = [path.stat().st_size for path in tmp_path.glob("*.jsonl")]
    assert len(sizes) == 2
    assert sum(sizes) < 2 * 2300
    assert lines(tmp_path / "driver.jsonl")[-1]["message"] == "line 99"
    (tmp_path / "logs").mkdir()
    for number in range(5):
        (tmp_path / "logs" / f"{number}.jsonl").touch()
    with run_log.run_log(tmp_path):
        assert len(list((tmp_path / "logs").glob("*.jsonl"))) == 3


def test_progress_is_kept_for_those_who_look_on(tmp_path: Path) -> None:
    with run_log.run_log(tmp_path) as log:
        log.of(stage="download")
        with Progress("download", total=10, unit="images", stream=io.StringIO()) as progress:
            progress.update(4, "all well")
    state = json.loads((tmp_path / "logs" / "progress.json").read_text())
    assert {key: state[key] for key in ("stage", "label", "done", "total", "unit", "note")} == {
        "stage": "download",
        "label": "download",
        "done": 4,
        "total": 10,
        "unit": "images",
        "note": "all well",
    }


def test_what_is_said_above_a_bar_is_kept_too(tmp_path: Path) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    with run_log.run_log(tmp_path), Progress("train", total=2, unit="steps", stream=Terminal()) as progress:
        progress.say("warning: a worker was lost")
    messages = [(line["level"], line["message"]) for line in lines(tmp_path / "logs" / "driver.jsonl")]
    assert ("WARNING", "train: warning: a worker was lost") in messages
    assert any(message.startswith("train: 0/2 steps") for _, message in messages), "how it ended stays as a line"


def test_a_full_disk_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where the folder should be")
    with masked_output(), run_log.run_log(tmp_path):
        print("goes on")
