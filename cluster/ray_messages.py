"""What Ray's nodes warn of, a line each on standard error: Ray prints pages of it among our own output."""

import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

LONGEST = 200
MEMORY = "a worker was ended, as its machine runs out of memory; its work is repeated a few times"


def tell_in_a_line() -> None:
    """From here on. There is no setting for it: `log_to_driver` is about what workers print."""
    import ray._private.worker as worker

    worker.print_to_stdstream = print_warnings


def print_warnings(data: Mapping[str, Any], ignore_prefix: bool = False) -> None:
    """In place of Ray's function: `data["lines"]` are the warnings."""
    for text in data["lines"]:
        memory = "low on memory" in text or "due to oom" in text
        with suppress(OSError, ValueError):  # nobody listens
            print(f"Ray: {MEMORY if memory else ' '.join(text.split())[:LONGEST]}", file=sys.stderr, flush=True)
