"""A child process that must not outlive its parent, however the parent ends."""

import os
import sys
import threading


def exit_with_parent() -> None:
    """End this process as soon as its standard input closes. A parent that holds the other end of a pipe closes it by
    dying, even by `kill -9`."""

    def wait() -> None:
        while sys.stdin.buffer.read(4096):
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
