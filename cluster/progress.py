"""How far along: a bar on a terminal, and now and then a plain line where the output goes to a file."""

import sys
import time
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Shows `done` of `total` units with the rate and the time left. `note` is a word on the latest ("loss 1.23").

    `start` is what earlier runs have done already; it does not count towards the rate.
    """

    def __init__(self, label: str, *, total: int, unit: str, start: int = 0, stream: TextIO | None = None) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done, self.note = start, ""
        self._start = start
        self._told = -1
        self._stream = stream or sys.stderr
        self._began = self._last_line = time.monotonic()
        self._bar = _bar(self._stream) if self._stream.isatty() else None
        self._task = self._bar.add_task(label, total=total, completed=start, unit=unit, note="") if self._bar else None

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()
        elif error is not None or self.done != self._told:
            self._print("" if error is None else "stopped")

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` more units are done."""
        self.update(self.done + count, note)

    def update(self, done: int, note: str = "") -> None:
        """`done` units are done in all."""
        self.done, self.note = done, note or self.note
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=done, note=self.note)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._print("")

    def _print(self, ending: str) -> None:
        now = time.monotonic()
        self._last_line, self._told = now, self.done
        elapsed = now - self._began
        rate = (self.done - self._start) / elapsed if elapsed > 0 else 0.0
        parts = [
            f"{self.label}: {self.done}/{self.total} {self.unit}",
            f"{rate:.3g} {self.unit}/s",
            f"{_duration(elapsed)} so far",
        ]
        if rate > 0 and self.done < self.total:
            parts.append(f"{_duration((self.total - self.done) / rate)} left")
        parts += filter(None, [self.note, ending])
        print(", ".join(parts), file=self._stream, flush=True)


def _bar(stream: TextIO) -> Bar:
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(show_speed=True),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}"),
        console=Console(file=stream),
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
