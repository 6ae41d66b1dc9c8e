"""Standard output and standard error that take any text, whatever their encoding is."""

import codecs
import errno
import io
import os
import select
import sys
from contextlib import suppress
from typing import TextIO

SPELLED = {"→": "->", "±": "+-", "…": "...", "–": "-", "—": "-", "×": "x", "≥": ">=", "≤": "<=", "’": "'", "‘": "'"}
"""What is printed for signs that an encoding lacks; other letters become escapes."""
ERRORS = "spelled"


def _spell(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(SPELLED.get(sign) or sign.encode("ascii", "backslashreplace").decode() for sign in lacking), error.end


codecs.register_error(ERRORS, _spell)


def make_safe() -> None:
    """Let no letter of a message, and no file's name, be an error when it is printed. Streams that are closed swallow all."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 -- stays open
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=ERRORS)


def is_broken(stream: TextIO) -> OSError | None:
    """Why what was printed to a stream cannot be delivered; None where it was. A stream that is broken is given up for good."""
    try:
        stream.flush()
        descriptor = stream.fileno()
    except io.UnsupportedOperation:  # not a file
        return None
    except OSError as error:
        broken = error
    except ValueError:  # closed
        return None
    else:
        poll = select.poll()
        poll.register(descriptor, 0)
        if not any(event & select.POLLERR for _, event in poll.poll(0)):  # what was not delivered need not be kept
            return None
        broken = BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
    with suppress(OSError):  # or Python complains when it flushes at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return broken


def complain(line: str) -> None:
    """A line on standard error, where that can be written."""
    try:
        print(line, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        is_broken(sys.stderr)
