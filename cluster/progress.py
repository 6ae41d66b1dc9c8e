"""How far along: a bar on a terminal, and now and then a plain line where the output goes to a file."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self, TextIO

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
)
from rich.progress import Progress as Bar
from rich.text import Text

SECONDS_BETWEEN_LINES = 5.0
RECENT_SECONDS = 60.0
"""The rate and the time left are those of the last minute: what came before tells little of what comes."""


@dataclass(frozen=True)
class State:
    """How far along a piece of work is, at one moment."""

    label: str
    done: int
    total: int
    unit: str
    rate: float
    """Units in a second, of the last minute."""
    seconds: float
    """Since it began."""
    left: float | None
    """Seconds that it still takes at that rate; None where that cannot be told."""
    note: str
    on_bar: bool
    """Whether the terminal shows it as a bar, of which no line stays."""

    def __str__(self) -> str:
        parts = [
            f"{self.label}: {self.done}/{self.total} {self.unit}",
            f"{_number(self.rate)} {self.unit}/s",
            f"{duration(self.seconds)} so far",
        ]
        parts += [f"{duration(self.left)} left"] if self.left is not None else []
        return ", ".join([*parts, *filter(None, [self.note])])


class Watcher(Protocol):
    """Who looks on."""

    def see(self, state: State, *, final: bool) -> None:
        """How far a piece of work is now; `final` when it ends. Called often, from whatever thread does the work."""

    def line(self, text: str) -> None:
        """A line that stays on the terminal above a bar."""


watchers: list[Watcher] = []
"""Of all progress in this process."""


class Progress:
    """Shows `done` of `total` units with the rate and the time left. `note` is a word on the latest ("loss 1.23").

    `start` is what earlier runs have done already; it does not count towards the rate.
    """

    def __init__(self, label: str, *, total: int, unit: str, start: int = 0, stream: TextIO | None = None) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done, self.note = start, ""
        self._start = start
        self._told: tuple[int, str] | None = None
        self._stream = stream or sys.stderr
        self._began = self._last_line = time.monotonic()
        self._recent = deque([(self._began, start)])
        self._bar = self._make_bar() if self._stream.isatty() else None
        self._task = self._bar.add_task(label, total=total, completed=start, unit=unit, note="") if self._bar else None

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._show_watchers(final=True)
        if self._bar:
            self._bar.stop()
        elif error is not None or (self.done, self.note) != self._told:
            self._print("" if error is None else "stopped")

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` more units are done."""
        self.update(self.done + count, note)

    def update(self, done: int, note: str = "") -> None:
        """`done` units are done in all."""
        self.done, self.note = done, note or self.note
        now = time.monotonic()
        if done == self._start:
            self._recent = deque([(now, done)])  # the time until work begins tells nothing of its rate
        elif now - self._recent[-1][0] >= 1.0:
            self._recent.append((now, done))
        while len(self._recent) > 1 and now - self._recent[1][0] >= RECENT_SECONDS:
            self._recent.popleft()
        self._show_watchers(final=False)
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=done, note=self.note)
        elif now - self._last_line >= SECONDS_BETWEEN_LINES and (self.done, self.note) != self._told:
            self._print("")

    def expect(self, total: int) -> None:
        """There are `total` units in all, as is known by now."""
        if total != self.total:
            self.total = total
            if self._bar and self._task is not None:
                self._bar.update(self._task, total=total)

    def say(self, line: str) -> None:
        """A line that stays."""
        line = f"{self.label}: {line}"
        if self._bar:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
            for watcher in watchers:
                watcher.line(line)
        else:
            print(line, file=self._stream, flush=True)

    def _print(self, ending: str) -> None:
        now = time.monotonic()
        self._last_line, self._told = now, (self.done, self.note)
        print(", ".join(filter(None, [str(self._state(now)), ending])), file=self._stream, flush=True)

    def _state(self, now: float) -> State:
        return State(
            label=self.label,
            done=self.done,
            total=self.total,
            unit=self.unit,
            rate=self._rate(now),
            seconds=now - self._began,
            left=self._left(now),
            note=self.note,
            on_bar=self._bar is not None,
        )

    def _show_watchers(self, *, final: bool) -> None:
        for watcher in watchers:
            watcher.see(self._state(time.monotonic()), final=final)

    def _rate(self, now: float) -> float:
        since, before = (self._began, self._start) if self.done >= self.total else self._recent[0]
        return max(self.done - before, 0) / (now - since) if now > since else 0.0

    def _left(self, now: float) -> float | None:
        """The seconds left; None if there is nothing to tell it from, or nothing left."""
        rate = self._rate(now)
        return (self.total - self.done) / rate if rate > 0 and self.done < self.total else None

    def _make_bar(self) -> "_Bar":
        def rate(now: float) -> str:
            return f"{_number(self._rate(now))}/s"

        def time_left(now: float) -> str:
            left = now - self._began if self.done >= self.total else self._left(now)
            return "" if left is None else duration(left)

        return _Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            _Timed(rate, "progress.data.speed"),
            _Timed(time_left, "progress.remaining"),
            console=Console(file=self._stream),
        )


class _Bar(Bar):
    """The bar, and below it the note."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        for task in self.tasks:
            if task.fields["note"]:
                yield Text(f"  {task.fields['note']}", no_wrap=True, overflow="ellipsis")


class _Timed(ProgressColumn):
    """Text that changes with the time, though nothing gets done."""

    def __init__(self, told: Callable[[float], str], style: str) -> None:
        super().__init__()
        self._told, self._style = told, style

    def render(self, task: Task) -> Text:
        return Text(self._told(time.monotonic()), style=self._style)


def _number(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
