"""Small files that others watch while work goes on: logs, counts, warnings. They travel every few seconds, from threads."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from storage import InputError
from storage.client import BRIEF_SECONDS
from storage.copies import at

SECONDS = 2.0
MOST_BYTES = 32 << 20
"""Files that are followed have at most so many bytes: no weights."""


@contextmanager
def publishing(folder: Path, *patterns: str) -> Iterator[None]:
    """While inside, and once at the end, put files of a copy's folder into the store that match a pattern and have changed.

    Hidden files and scratch, too, if a pattern says so. Nothing happens for a plain folder.
    """
    workspace = at(folder)
    if workspace is None:
        yield
        return
    with _repeated(lambda: workspace.push_files(path for pattern in patterns for path in folder.glob(pattern))):
        yield


@contextmanager
def following(folder: Path, *, without: tuple[str, ...] = ()) -> Iterator[None]:
    """While inside, and once at the end, get news of a folder from the store; what was changed here stays."""
    workspace = at(folder)
    if workspace is None:
        yield
        return
    with _repeated(lambda: workspace.pull(folder, changed=True, most=MOST_BYTES, without=without)):
        yield


@contextmanager
def _repeated(work: Callable[[], None]) -> Iterator[None]:
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(SECONDS):
            try:
                work()
            except InputError:  # the store stays away: what waits for it in earnest says so
                continue

    thread = threading.Thread(target=repeat, name="live files", daemon=True)
    thread.start()
    try:
        yield
    except Exception:
        over.set()
        thread.join(timeout=BRIEF_SECONDS)
        with suppress(InputError):  # what ended the work is to be told
            work()
        raise
    except BaseException:  # an interrupt is to end within seconds
        over.set()
        raise
    over.set()
    thread.join()
    work()
