"""Folders that people hand over: every file in them once, but for what operating systems and editors leave there.

`filtering.listing` goes by the same names; `tests/helpers/leftovers.py` has the table that both are held against.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from owseg import InputError

LEFTOVERS = frozenset(
    (
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "folder.ini", "icon\r"),
        *("__macosx", "@eadir", "#recycle", "#snapshot", "$recycle.bin", "system volume information", "lost+found"),
        "__pycache__",
    )
)
"""Names, in lower case, of files and folders that Windows, macOS, network drives and Python leave."""
ENDINGS = ("~", ".swp", ".swo", ".tmp", ".part", ".partial", ".crdownload", ":zone.identifier", "@synoeastream")
"""Ends of names, in lower case, of editors' backups, downloads under way and what systems note beside a file."""

MAX_NAMED = 5
"""Files that a line names of those that it counts."""


def is_leftover(name: str) -> bool:
    """Whether a file or folder of this name is nobody's data: hidden (macOS' `._name.png`, .DS_Store), or left by a program."""
    lower = name.lower()
    autosaved = len(lower) > 1 and lower.startswith("#") and lower.endswith("#")
    return lower.startswith((".", "~$")) or lower.endswith(ENDINGS) or lower in LEFTOVERS or autosaved


def is_data(path: Path, folder: Path) -> bool:
    """Whether neither a file below `folder` nor a folder on the way to it is a leftover."""
    return not any(is_leftover(part) for part in path.relative_to(folder).parts)


def files_below(folder: Path) -> Iterator[Path]:
    """Every file below a folder but leftovers, in a stable order; links to folders are followed, to each folder once.

    A link that leads nowhere counts as a file, so that it is missed. Raises InputError for a folder that cannot be listed.
    """
    seen: set[str] = set()
    for parent, below, names in os.walk(folder, onerror=_refuse, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:  # a link back up would never end
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not is_leftover(name))
        yield from (Path(parent) / name for name in sorted(names) if not is_leftover(name))


def counted(paths: Sequence[Path], folder: Path) -> str:
    """ "4 files (a.heic, b.heic, c.mov, ...)": how many there are, and the first few by their way from a folder."""
    names = [path.relative_to(folder).as_posix() for path in paths[:MAX_NAMED]]
    return f"{len(paths)} file{'s'[: len(paths) > 1]} ({', '.join([*names, *['...'][: len(paths) > MAX_NAMED]])})"


def _refuse(error: OSError) -> NoReturn:
    raise InputError(f"{error.filename}: cannot be listed ({error.strerror})") from error
