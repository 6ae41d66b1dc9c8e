"""How a command ends: its exit code, and the user's mistakes reported in one line."""

import errno
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from cluster import InputError as ClusterInputError
from filtering import InputError as FilteringInputError
from miniature import InputError as MiniatureInputError
from owseg import InputError as SegmentationInputError
from pipelines.app.config import ConfigError
from pipelines.app.extras import missing_extra
from pipelines.app.interrupts import Interrupted, code_of, interruptible

DONE, FAILED, USER_MISTAKE = 0, 1, 2

UNUSABLE_PATH = (errno.ENAMETOOLONG, errno.ELOOP)
"""What the file system refuses a path for, whatever is asked of it."""
MISTAKES = (ConfigError, FilteringInputError, SegmentationInputError, ClusterInputError, MiniatureInputError)


def exit_code(work: Callable[[], None], again: Callable[[], str] = lambda: "the same command") -> int:
    """Do the work of a command and tell what became of it. again: the command that resumes it where it was interrupted."""
    # A script's own folder comes first on the path, where `filter` or `evaluate` would hide a library of that name.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parents[1]]
    try:
        with interruptible(again):
            try:
                return _attempt(work)
            finally:
                if "ray" in sys.modules:
                    importlib.import_module("cluster.session").close_session()
    except Interrupted as stopped:
        return stopped.exit_code
    except KeyboardInterrupt:  # raised by something else than a signal
        print(f"interrupted; resume with: {again()}", file=sys.stderr)
        return code_of(signal.SIGINT)


def _attempt(work: Callable[[], None]) -> int:
    try:
        work()
    except Exception as error:
        message = user_mistake(error)
        if message is None:
            traceback.print_exc()
            return FAILED
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        return USER_MISTAKE
    return DONE


def user_mistake(error: BaseException | None) -> str | None:
    """The message of the user's mistake that `error` is or was caused by, also inside Ray's wrappers; None for other errors."""
    if error is None:
        return None
    # Ray's error of a task also is an instance of what it wraps, with a longer message.
    inside = getattr(error, "cause", None)
    if isinstance(inside, BaseException) and (message := user_mistake(inside)):
        return message
    if isinstance(error, MISTAKES):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return missing_extra(error)
    if isinstance(error, OSError) and error.errno in UNUSABLE_PATH:
        return f"{str(error.filename)[:80]}: {error.strerror}; give another path"
    workers = getattr(error, "worker_failures", None)  # Ray Train's error: one exception per rank
    causes = [error.__cause__, *(workers.values() if isinstance(workers, dict) else ())]
    return next((message for cause in causes if (message := user_mistake(cause))), None)


def print_text(text: str) -> None:
    """Print; a reader who has seen enough (`| head`) is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at the end
