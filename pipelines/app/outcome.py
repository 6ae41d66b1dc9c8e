"""How a command ends: its exit code, and one line for all that is no fault of this program.

The one place where exceptions become outcomes. What the user gave (2) is told by InputErrors; what the machine refuses or lacks
(2) by `cluster.failures`; the rest is a fault of this program (1), whose traceback goes into a file. docs/exit_codes.md lists
what may end that way.
"""

import errno
import importlib
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkstemp

from cluster import InputError as ClusterInputError
from cluster.failures import chain_of, machine_problem
from cluster.without_wandb import without_wandb
from filtering import InputError as FilteringInputError
from miniature import InputError as MiniatureInputError
from owseg import InputError as SegmentationInputError
from pipelines.app.config import ConfigError
from pipelines.app.extras import missing_extra
from pipelines.app.interrupts import Interrupted, code_of, interruptible
from pipelines.app.masked_output import masked_output
from pipelines.app.streams import complain, is_broken, make_safe

DONE, FAILED, USER_MISTAKE = 0, 1, 2
READER_GONE = 141
"""What a shell says of a program whose reader has seen enough (`| head`): 128 + SIGPIPE."""

MISTAKES = (
    ConfigError,
    FilteringInputError,
    SegmentationInputError,
    ClusterInputError,
    MiniatureInputError,
)
USERS_PATH = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY)
"""The user's mistake where the path is one that the user gave; of a file of ours, a fault of this program."""
ERROR_LOG = "error.log"


@dataclass
class Scene:
    """What is known of a command, for the line that ends it."""

    folder: Path | None = None
    """Where it writes."""
    given: Sequence[str] = ()
    """The texts that the user gave, paths among them."""
    again: Callable[[], str] = lambda: "the same command"
    """The command that resumes it where it was interrupted."""


def exit_code(work: Callable[[], None], scene: Scene | None = None) -> int:
    """Do the work of a command and tell what became of it."""
    # A script's own folder comes first on the path, where `filter` or `evaluate` would hide a library of that name.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parents[1]]
    make_safe()
    without_wandb()
    scene = scene or Scene()
    try:
        with masked_output(), interruptible(scene.again):
            try:
                return _attempt(work, scene)
            finally:
                if "ray" in sys.modules:
                    importlib.import_module("cluster.session").close_session()
    except Interrupted as stopped:
        return stopped.exit_code
    except KeyboardInterrupt:  # raised by something else than a signal
        complain(f"interrupted; resume with: {scene.again()}")
        return code_of(signal.SIGINT)


def _attempt(work: Callable[[], None], scene: Scene) -> int:
    try:
        work()
        sys.stdout.flush()
    except Exception as error:
        broken = next(filter(None, map(is_broken, (sys.stdout, sys.stderr))), None) if isinstance(error, OSError) else None
        if isinstance(broken, BrokenPipeError):
            return READER_GONE
        if broken is not None:
            complain(f"error: the output cannot be written ({broken.strerror}); send it elsewhere and run again")
            return USER_MISTAKE
        message = explain(error, scene)
        if message is None:
            complain(f"error: {_bug(error, scene)}")
            return FAILED
        complain(f"error: {message}")
        return USER_MISTAKE
    return DONE


def explain(error: BaseException, scene: Scene | None = None) -> str | None:
    """The one line for what the user gave or the machine lacks, that `error` is or came from; None for other errors."""
    scene = scene or Scene()
    chain = list(chain_of(error))
    for one in chain:
        # Ray's error of a task also is an instance of what it wraps, with a longer message; `chain` has the inner one first.
        if isinstance(one, MISTAKES):
            return " ".join(str(one).split())
        if isinstance(one, ModuleNotFoundError) and (message := missing_extra(one)):
            return message
        if isinstance(one, ImportError) and "cannot open shared object file" in str(one):
            return f"{one}; install that library of the system"
    if found := machine_problem(error, [scene.folder] if scene.folder else []):
        return found
    return next((found for one in chain if (found := _users_path(one, scene))), None)


def _users_path(error: BaseException, scene: Scene) -> str | None:
    """For a missing file, or a folder in a file's place, that the user named."""
    if not isinstance(error, OSError) or error.errno not in USERS_PATH or not isinstance(error.filename, str):
        return None
    path = Path(error.filename).absolute()
    given = [Path(text).expanduser().absolute() for text in scene.given if text and "\0" not in text]
    if (scene.folder and path.is_relative_to(scene.folder)) or not any(path == one or one in path.parents for one in given):
        return None
    return f"{error.filename}: {error.strerror}; give another path, or put there what is missing"


def _bug(error: BaseException, scene: Scene) -> str:
    """One line for a fault of this program, whose traceback is written into a file."""
    text = "".join(traceback.format_exception(error))
    last = " ".join(traceback.format_exception_only(error)[0].split())[:300]
    fault = f"{last} (a fault of this program, not of what you gave it"
    try:
        log = scene.folder / ERROR_LOG if scene.folder else Path(mkstemp(prefix="owseg-", suffix=f"-{ERROR_LOG}")[1])
        with log.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {sys.argv}\n{text}\n")
    except OSError:
        return f"{fault})\n{text}"
    return f"{fault}; its traceback is in {log})"


def print_text(text: str) -> None:
    """Print; a reader who has seen enough (`| head`) is no error."""
    make_safe()
    try:
        print(text, flush=True)
    except BrokenPipeError:
        is_broken(sys.stdout)
