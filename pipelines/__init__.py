"""The verbs. Importing this makes Ctrl-C one line, not a traceback, also while a verb's libraries are still being loaded."""

import os
import sys
from types import FrameType, TracebackType

_told_by_python = sys.excepthook
_LINE = b"interrupted before any work began\n"
_INTERRUPTED = 130


def end_before_work(number: int, frame: FrameType | None) -> None:
    """A signal's handler while libraries are loaded: some of them make an error of their own of a KeyboardInterrupt."""
    os.write(2, _LINE)
    os._exit(_INTERRUPTED)


def _told_in_a_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        end_before_work(0, None)
    _told_by_python(kind, error, trace)


sys.excepthook = _told_in_a_line
