"""What Ray's nodes warn of, a line each on standard error: Ray prints pages of it among our own output."""

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

LONGEST = 200
MEMORY = "a worker was ended, as its machine runs out of memory; its work is repeated a few times"


def tell_in_a_line() -> None:
    """From here on. There is no setting for it: `log_to_driver` is about what workers print."""
    import ray._private.worker as worker

    worker.print_to_stdstream = print_warnings


LEVEL = "RAY_BACKEND_LOG_LEVEL"


@contextmanager
def without_native_lines() -> Iterator[None]:
    """A driver that connects in this block prints no lines of Ray's C++ code ("core_worker.cc:2465: ..."), which tear bars.

    They go past `sys.stderr`, and the one setting for them is read from the environment when the driver connects, and by every
    process of Ray when it starts; so it is set while the driver does the former. Who has set it keeps them.
    """
    import ray._private.worker as worker

    connect = worker.connect

    def connect_quietly(*arguments: Any, **settings: Any) -> Any:
        os.environ[LEVEL] = "fatal"
        try:
            with _without_line(f"environment variable {LEVEL}"):  # which it tells, too
                return connect(*arguments, **settings)
        finally:
            del os.environ[LEVEL]

    if LEVEL not in os.environ:
        worker.connect = connect_quietly
    try:
        yield
    finally:
        worker.connect = connect


@contextmanager
def _without_line(part: str) -> Iterator[None]:
    """What is written to descriptor 2 in the block comes after it, without the lines that hold `part`."""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            with suppress(OSError):
                os.write(2, b"".join(line for line in file if part.encode() not in line))


def print_warnings(data: Mapping[str, Any], ignore_prefix: bool = False) -> None:
    """In place of Ray's function: `data["lines"]` are the warnings."""
    for text in data["lines"]:
        memory = "low on memory" in text or "due to oom" in text
        with suppress(OSError, ValueError):  # nobody listens
            print(f"Ray: {MEMORY if memory else ' '.join(text.split())[:LONGEST]}", file=sys.stderr, flush=True)
