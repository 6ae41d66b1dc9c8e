"""Ctrl-C and its like: a line at once that says how to resume, an orderly end, and an end at once the second time."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from filtering.secrets import masked
from pipelines import end_before_work

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_SECONDS = 30.0
"""How long an orderly end may take: what holds it up, such as a server that does not answer, is then left alone."""

LAST_SECONDS = 3.0
"""What a second signal leaves for last acts."""

Act = Callable[[], None]
_last_acts: list[Act] = []


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = code_of(number)


def code_of(number: int) -> int:
    """The exit code of a process that a signal ended, as shells give it: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + number


@contextmanager
def interruptible(again: Callable[[], str]) -> Iterator[None]:
    """Within the block SIGINT, SIGTERM and SIGHUP raise `Interrupted` after one line on stderr; a second one ends the process.

    again: the command that resumes. What is ignored from outside (nohup, a shell's background job) stays ignored; in other
    threads than the main one nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()
    over = threading.Event()
    asked: list[int] = []

    def end_if_it_hangs() -> None:
        if not over.wait(GRACE_SECONDS):
            _act_last()
            _tell("stopped before all was put away, as that took too long")
            os._exit(code_of(asked[0]))

    def handle(number: int, _: FrameType | None) -> None:
        if os.getpid() != process:  # a forked worker: it ends as if this had not been set
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        asked.append(number)
        if len(asked) == 2:
            _act_last()
        if len(asked) > 1:
            os._exit(code_of(number))
        _tell(f"interrupted, stopping (once more ends it at once); resume with: {again()}")
        threading.Thread(target=end_if_it_hangs, daemon=True).start()
        raise Interrupted(number)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    if before[signal.SIGINT] is end_before_work:  # which is over
        before[signal.SIGINT] = signal.default_int_handler
    taken = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in taken:
        signal.signal(number, handle)
    try:
        yield
    finally:
        over.set()
        for number in taken:
            signal.signal(number, before[number] or signal.SIG_DFL)


@contextmanager
def at_the_last() -> Iterator[Callable[[Act], None]]:
    """Yields a function that takes an act: within the block a second signal does not end the process before it is done."""
    acts: list[Act] = []

    def add(act: Act) -> None:
        acts.append(act)
        _last_acts.append(act)

    try:
        yield add
    finally:
        for act in acts:
            _last_acts.remove(act)


def _act_last() -> None:
    """Do what is still to be done, for a bounded time. In a thread: the main one may hold whatever it waits for."""

    def work() -> None:
        for act in list(_last_acts):
            act()

    acting = threading.Thread(target=work, name="last acts", daemon=True)
    acting.start()
    acting.join(LAST_SECONDS)


def _tell(line: str) -> None:
    """Straight to stderr: what a signal cuts off may hold the buffers of `print`."""
    with suppress(OSError):
        os.write(2, f"{masked(line)}\n".encode(errors="surrogateescape"))
