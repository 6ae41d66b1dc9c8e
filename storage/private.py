"""Folders in a machine's temporary one, which everybody may write to: what lies in ours is believed, so nobody else may."""

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from storage import InputError


def private_path(purpose: str) -> Path:
    """Where this user's folder for a purpose is on this machine; it may not be there yet."""
    return Path(tempfile.gettempdir()).resolve() / f"owseg-{purpose}-{os.getuid()}"


def make_private(folder: Path) -> None:
    """Make a folder that nobody but this user can write to.

    Raises InputError where somebody else was there first: on a machine that people share, whoever knows the name could lay
    files there that this user's processes would read as their own.
    """
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700, parents=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise InputError(f"{folder}: somebody else can write there; remove it, or set TMPDIR to a folder of your own")
