"""A child process that must not outlive its parent, however the parent ends."""

import os
import threading


def exit_with_parent() -> None:
    """End this process as soon as its standard input closes. A parent that holds the other end of a pipe closes it by
    dying, even by `kill -9`."""

    def wait() -> None:
        while os.read(0, 4096):  # not through `sys.stdin`, whose lock would outlast the interpreter
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
