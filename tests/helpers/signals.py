"""Signals of processes that tests start."""

import signal


def plain_signals() -> None:
    """Before a child runs: SIGINT ends it, also where the tests run in a shell's background, which ignores it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
