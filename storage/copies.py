"""The copies of folders in object stores that this process works on: what code asks that knows paths alone.

For a path that lies in no copy all of it comes to the plain file.
"""

import hashlib
import io
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from storage.client import StorageConfig, Store, in_effect, use
from storage.private import make_private, private_path
from storage.ranges import Ranges
from storage.workspace import HELD, Workspace

_attached: dict[Path, Workspace] = {}
_urls: dict[str, str] = {}
"""Of every copy that was ever attached, by its path."""


@dataclass(frozen=True)
class Travelling:
    """The copies that a process works on, for a process on another machine to work on its own."""

    config: StorageConfig
    workspaces: tuple[Workspace, ...]

    def attach(self) -> None:
        """Make them known in this process."""
        use(self.config)
        for workspace in self.workspaces:
            attach(workspace)


def travelling() -> Travelling:
    """Those of this process."""
    return Travelling(in_effect(), tuple(_attached.values()))


def workspace_of(url: str, config: StorageConfig) -> Workspace:
    """The copy on this machine of what lies at a URL of an object store; its path is the same on all machines."""
    scratch = Path(config.scratch).expanduser().resolve() if config.scratch else private_path("scratch")
    url = url.rstrip("/")
    endpoint = config.endpoint or os.environ.get("AWS_ENDPOINT_URL", "")
    digest = hashlib.sha256(f"{endpoint} {url}".encode()).hexdigest()[:16]
    return Workspace(Store(url, config), scratch / f"{url.rpartition('/')[2][:60]}-{digest}")


def attach(workspace: Workspace, *, apart: tuple[str, ...] = (), ensure: Callable[[], None] = lambda: None) -> None:
    """From now on `at` and what stands on it know the copy, in this process.

    Names that match one of `apart` are never pushed, and `ensure` is called before anything is: it may raise.
    """
    if workspace.root.is_relative_to(private := private_path("scratch")):
        make_private(private)
    workspace.root.mkdir(parents=True, exist_ok=True)
    _attached[workspace.root] = workspace
    HELD[workspace.root] = (apart, ensure)
    _urls[str(workspace.root)] = workspace.store.url


def detach(workspace: Workspace) -> None:
    """Take that back."""
    _attached.pop(workspace.root, None)
    HELD.pop(workspace.root, None)


def at(path: Path) -> Workspace | None:
    """The copy that a path lies in; None for a path that is a plain one."""
    if not _attached:
        return None
    return next((_attached[folder] for folder in (path, *path.parents) if folder in _attached), None)


def fetched(path: Path) -> Path:
    """The same path, where in a copy there is now what the store has."""
    workspace = at(path)
    return workspace.fetch(path) if workspace else path


def release(path: Path) -> None:
    """Make room: in a copy, the file is only in the store from now on."""
    if workspace := at(path):
        workspace.drop(path)


def present(path: Path) -> bool:
    """Whether there is such a file; it is here then, as the store has it."""
    try:
        return fetched(path).is_file()
    except FileNotFoundError:
        return False


def pulled(folder: Path) -> Path:
    """The same folder, where in a copy there is now all of it that the store has."""
    if workspace := at(folder):
        workspace.pull(folder)
    return folder


def pull_small(folder: Path, *patterns: str) -> None:
    """Bring here the files directly in a folder whose names match one of the patterns, and learn what else is there."""
    if workspace := at(folder):
        workspace.pull_small(folder, patterns)


def opened(path: Path) -> Path | io.RawIOBase:
    """A file to be read in places: its path, or where it is only in the store, a file of ranges."""
    workspace = at(path)
    if workspace is None or path.is_file():
        return path
    size = workspace.size(path)
    if size is None:
        raise FileNotFoundError(2, os.strerror(2), str(path))
    return Ranges(workspace.store, path.relative_to(workspace.root).as_posix(), size)


def discard(path: Path) -> None:
    """Remove a file; in a copy also in the store, when it is pushed next."""
    workspace = at(path)
    if workspace:
        workspace.discard(path)
    else:
        path.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder, at once in the store, too."""
    workspace = at(folder)
    if workspace:
        workspace.remove(folder)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def size_of(path: Path) -> int | None:
    """The bytes of a file, here or in the store; None where there is none."""
    if path.is_file():
        return path.stat().st_size
    workspace = at(path)
    return workspace.size(path) if workspace else None


def version_of(path: Path) -> int | str:
    """What changes when a file is written anew: its time or, in a copy, as times differ between machines, the store's tag."""
    workspace = at(path)
    return (workspace.tag(path) if workspace else None) or path.stat().st_mtime_ns


def shown(path: Path) -> str:
    """A path for people: the URL of what lies in an object store."""
    workspace = at(path)
    return workspace.url(path) if workspace else str(path)


def with_urls(text: str) -> str:
    """A text for people, with the URLs of what lies in an object store in the place of this machine's paths."""
    for root, url in _urls.items():
        text = text.replace(root, url)
    return text


def names_in(folder: Path) -> list[str]:
    """The names of the files directly in a folder, here or in the store, sorted."""
    workspace = at(folder)
    if workspace:
        return workspace.names(folder)
    return sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []


def folders_in(folder: Path) -> list[str]:
    """The names of the folders directly in a folder, here or in the store, sorted."""
    workspace = at(folder)
    if workspace:
        return workspace.folders(folder)
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
