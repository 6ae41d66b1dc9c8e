"""What a run says, kept in its folder as lines of JSON, and how far it is, for whoever looks on from outside.

    logs/driver.jsonl           what the terminal shows, with its level and stage; of bars a line a minute
    logs/<node>-<pid>.jsonl     what a worker process warns of
    logs/progress.json          how far the stage under way is, some seconds old at most

Each line has time (UTC), level, run (its id in MLflow, where it has one), stage, node, worker and message. Secrets are masked,
and files are bounded: the older half of a full one is kept beside it as `<name>.1.jsonl`, and the oldest go.
"""

import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cluster import progress
from cluster.metrics import of_run, show_progress
from filtering.files import write_json
from filtering.secrets import masked
from storage import InputError
from storage.copies import at, with_urls

FOLDER = "logs"
DRIVER, PROGRESS = "driver.jsonl", "progress.json"
FULL_BYTES = 4 * 2**20
"""Of a file, of which there are two at most; a worker's has a quarter of it."""
MOST_FILES = 200
LONGEST = 4000
"""Letters of a message."""
SECONDS_BETWEEN_LOOKS = 2.0
SECONDS_BETWEEN_PUSHES = 15.0
SECONDS_BETWEEN_LINES = 60.0
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\r")


@dataclass(frozen=True)
class Ticket:
    """What a worker needs to write its own file."""

    folder: Path
    run: str
    stage: str


class Lines:
    """A file of JSON lines of a bounded size. What cannot be written, as on a full disk, is left out."""

    def __init__(self, ticket: Ticket, name: str, worker: str, full: int = FULL_BYTES) -> None:
        self.ticket, self.path, self.full = ticket, ticket.folder / name, full
        self._who = {"node": socket.gethostname(), "worker": worker}
        self._lock = threading.Lock()

    def write(self, level: str, message: str) -> None:
        """Append a line."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        told = masked(with_urls(" ".join(message.split())))[:LONGEST]
        line = {
            "time": now,
            "level": level,
            "run": self.ticket.run,
            "stage": self.ticket.stage,
            **self._who,
            "message": told,
        }
        with self._lock, suppress(OSError):
            if self.path.exists() and self.path.stat().st_size > self.full:
                os.replace(self.path, self.path.with_suffix(".1.jsonl"))
            with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


class RunLog:
    """The log of the run that this process drives."""

    def __init__(self, run_dir: Path) -> None:
        self.ticket = Ticket(run_dir / FOLDER, "", "")
        self._lines = Lines(self.ticket, DRIVER, "driver")
        self._level, self._lock = threading.local(), threading.Lock()
        self._begun: dict[str, str] = {}
        self._written = self._pushed = self._told = 0.0

    def of(self, *, run: str | None = None, stage: str | None = None) -> None:
        """From now on lines are of this run and this stage."""
        self.ticket = replace(
            self.ticket,
            run=self.ticket.run if run is None else run,
            stage=self.ticket.stage if stage is None else stage,
        )
        self._lines.ticket = self.ticket

    def heard(self, text: str, stream: str) -> None:
        """What was printed on a stream, in pieces that need not be lines. A bar that is drawn again is no line."""
        if "\x1b" in text:
            return
        with self._lock:  # threads print, too
            *whole, begun = (self._begun.pop(stream, "") + text).split("\n")
            self._begun[stream] = begun[-LONGEST:]
        for line in filter(str.strip, whole):
            self.line(line)

    def line(self, text: str) -> None:
        """One line that people were told."""
        level = getattr(self._level, "now", None) or _level_of(text)
        self._lines.write(level, _CONTROL.sub("", text))

    def at_level(self, record: logging.LogRecord, emit: Any) -> None:
        """Let `emit` print a logging record, whose level its line has."""
        self._level.now = record.levelname
        try:
            emit(record)
        finally:
            self._level.now = None

    def see(self, state: progress.State, *, final: bool) -> None:
        """How far along a piece of work is."""
        now = time.monotonic()
        if now - self._written >= SECONDS_BETWEEN_LOOKS or final:
            self._written = now
            told = {**asdict(state), "stage": self.ticket.stage, "time": time.time(), "pid": os.getpid()}
            show_progress(state)
            with suppress(OSError):
                write_json(self.ticket.folder / PROGRESS, {**told, "node": socket.gethostname()})
        if state.on_bar and (now - self._told >= SECONDS_BETWEEN_LINES or final):
            self._told = now
            self._lines.write("INFO", str(state))
        if at(self.ticket.folder) and now - self._pushed >= SECONDS_BETWEEN_PUSHES:
            self._pushed = now
            threading.Thread(target=_push, args=(self.ticket.folder / PROGRESS,), name="progress", daemon=True).start()


_current: RunLog | None = None


def heard(text: str, stream: str) -> None:
    """`RunLog.heard` of the run that this process drives; nothing where it drives none."""
    if _current:
        _current.heard(text, stream)


def current() -> RunLog | None:
    """The log of the run that this process drives."""
    return _current


@contextmanager
def run_log(run_dir: Path) -> Iterator[RunLog]:
    """Keep what this process says in the folder of its run while inside."""
    global _current
    log, last_resort = RunLog(run_dir), logging.lastResort
    with suppress(OSError):
        log.ticket.folder.mkdir(parents=True, exist_ok=True)
        _drop_oldest(log.ticket.folder)
    before, _current = _current, log
    of_run(run_dir.name)
    progress.watchers.append(log)
    if last_resort is not None:
        logging.lastResort = _Both(log, last_resort)
    try:
        yield log
    finally:
        logging.lastResort = last_resort
        progress.watchers.remove(log)
        _current = before


def ticket() -> Ticket | None:
    """For the workers of the run that this process drives."""
    return _current.ticket if _current else None


def join(given: Ticket | None) -> None:
    """In a worker: keep what it warns of in the folder of its run, from now on."""
    if given:
        logging.getLogger().addHandler(_Keep(given))


class _Keep(logging.Handler):
    """Warnings of a worker, whoever of it warns."""

    def __init__(self, given: Ticket) -> None:
        super().__init__(logging.WARNING)
        with suppress(OSError):
            given.folder.mkdir(parents=True, exist_ok=True)
        self._lines = Lines(given, f"{socket.gethostname()}-{os.getpid()}.jsonl", str(os.getpid()), FULL_BYTES // 4)

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.write(record.levelname, f"{record.name}: {record.getMessage()}")
        if not record.name.startswith("storage"):  # which warns of a store that stays away
            _push(self._lines.path)


class _Both(logging.Handler):
    """Python's own way with records that nobody handles, which keeps their levels."""

    def __init__(self, log: RunLog, last_resort: logging.Handler) -> None:
        super().__init__(last_resort.level)
        self._log, self._last_resort = log, last_resort

    def emit(self, record: logging.LogRecord) -> None:
        self._log.at_level(record, self._last_resort.emit)


def _level_of(text: str) -> str:
    if text.startswith("error: "):
        return "ERROR"
    return "WARNING" if re.match(r"([\w ]+: )?warning: ", text) else "INFO"


def _push(file: Path) -> None:
    """Bring a file to the store that its folder is a copy of, where that answers."""
    if copy := at(file):
        with suppress(InputError, OSError):
            replace(copy, store=copy.store.brief).push_files([file])


def _drop_oldest(folder: Path) -> None:
    """Leave room for the files of further workers."""
    files = sorted(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime)
    for path in files[: max(0, len(files) - MOST_FILES)]:
        path.unlink(missing_ok=True)
