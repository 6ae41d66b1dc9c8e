"""Tar files whose bytes depend on nothing but their content."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from filtering.files import replacing


def write_tar(path: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Write (name, content) in the order given, whole or not at all. No clock, no user, no umask."""
    with replacing(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in files:
            entry = tarfile.TarInfo(name)  # its defaults: mtime 0, uid and gid 0, mode 644
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
