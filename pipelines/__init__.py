"""The verbs. Importing this makes Ctrl-C one line, not a traceback, also while a verb's libraries are still being loaded."""

import os
import sys
from types import TracebackType

_told_by_python = sys.excepthook


def _told_in_a_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        _told_by_python(kind, error, trace)
        return
    print("interrupted before any work began", file=sys.stderr, flush=True)
    os._exit(130)


sys.excepthook = _told_in_a_line
