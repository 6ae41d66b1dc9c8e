"""Help, and keys that no setting has, answered before a verb's libraries are loaded, which takes seconds.

What the settings are is known when their classes are, and some of these stand beside models. So the first call that has loaded
them keeps what it found in the user's cache (~/.cache/owseg, or below XDG_CACHE_HOME), for as long as no source file changes.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn, TextIO

from pipelines import end_before_work
from pipelines.app.describe import Entry
from pipelines.app.help import Reference, help_text, mistyped
from pipelines.app.streams import is_broken, make_safe

PACKAGES = ("cluster", "filtering", "miniature", "owseg", "pipelines", "storage")


def answer(script: str) -> None:
    """Answer the command line of a verb and exit, where that needs no more than what an earlier call has kept.

    script: the verb's file. From here on Ctrl-C ends the process in one line.
    """
    signal.signal(signal.SIGINT, end_before_work)
    argv = sys.argv[1:]
    reference = recall(Path(script).stem)
    if reference is None:
        return
    topic = topic_of(argv)
    if topic is None:
        message = mistyped(reference, [text.partition("=")[0] for text in argv if "=" in text and not text.startswith("-")])
        if message:
            _end(f"error: command line: {message}", sys.stderr, 2)
        return
    try:
        text = help_text(reference, topic, width=shutil.get_terminal_size().columns)
    except ValueError as error:
        _end(f"error: {error}", sys.stderr, 2)
    _end(text, sys.stdout, 0)


def topic_of(argv: Sequence[str]) -> str | None:
    """What --help is asked about, "" where about all; None where it is not asked for."""
    place = next((place for place, text in enumerate(argv) if text in ("-h", "--help")), None)
    if place is None:
        return None
    after = argv[place + 1] if len(argv) > place + 1 else ""
    return "" if "=" in after or after.startswith("-") else after


def recall(verb: str) -> Reference | None:
    """What `keep` kept of a verb; None where a source file has changed since, or nothing is there."""
    try:
        kept = json.loads(_file(verb).read_text(encoding="utf-8"))
        if kept.pop("sources") != _sources():
            return None
        return Reference(**{**kept, "entries": [Entry(**entry) for entry in kept["entries"]]})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def keep(verb: str, reference: Reference) -> None:
    """Keep what the verb's settings are for later calls."""
    file = _file(verb)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    with suppress(OSError):  # a home that may not be written: later calls take as long as this one
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"sources": _sources(), **asdict(reference)}), encoding="utf-8")
        os.replace(temporary, file)


def _end(text: str, stream: TextIO, code: int) -> NoReturn:
    make_safe()
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:  # a reader who has seen enough (`| head`) is no error
        is_broken(stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    raise SystemExit(code)


def _file(verb: str) -> Path:
    caches = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    installation = hashlib.sha256("".join(map(str, _folders())).encode()).hexdigest()[:12]  # there may be several
    return Path(caches) / "owseg" / installation / f"{verb}.help.json"


def _folders() -> list[Path]:
    """Where the packages are imported from, which need not be one place; nothing is imported."""
    specs = map(find_spec, PACKAGES)
    return [Path(folder) for spec in specs if spec for folder in spec.submodule_search_locations or ()]


def _sources() -> list[int]:
    """What changes with the source files: how many, their bytes, and the newest time."""
    found = [path.stat() for folder in _folders() for path in folder.rglob("*.py")]
    return [len(found), sum(one.st_size for one in found), max(one.st_mtime_ns for one in found)]
