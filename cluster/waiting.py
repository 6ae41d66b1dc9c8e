"""A word on what is being waited for, where that takes longer than a moment."""

import sys
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

FIRST_SECONDS = 2.0
SECONDS_BETWEEN = 15.0


class Waiting:
    """Says on standard error what the block waits for once it takes 2 seconds, and again with the time every 15."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tell, name="waiting", daemon=True)

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _tell(self) -> None:
        pause = FIRST_SECONDS
        while not self._over.wait(pause):
            with suppress(OSError, ValueError):  # nobody listens
                print(f"{self._what} ... {time.monotonic() - self._began:.0f} s", file=sys.stderr, flush=True)
            pause = SECONDS_BETWEEN
