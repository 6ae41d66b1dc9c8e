"""A store as an fsspec file system, for libraries that take one: with the client's patience, and its lines on mistakes."""

import io
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem

from storage.client import Entry, Store
from storage.ranges import Ranges

BUFFER_BYTES = 8 << 20


class StoreFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec publishes no types
    """The objects below a store's URL, by names relative to it."""

    protocol = "owseg-store"
    cachable = False

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.store = store

    def unstrip_protocol(self, name: str) -> str:
        """The URL of an object."""
        return f"{self.store.url}/{_name(name)}"

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """An object's, or a folder's where objects lie below the name."""
        name = _name(path)
        if name and (there := self.store.head(name)):
            return _info(there)
        if not name or next(self.store.entries(name), None):
            return {"name": name, "size": 0, "type": "directory"}
        raise FileNotFoundError(2, os.strerror(2), f"{self.store.url}/{name}")

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """What lies directly in a folder."""
        name = _name(path)
        prefix, found = f"{name}/" if name else "", dict[str, Mapping[str, Any]]()
        for entry in self.store.entries(name):
            first, slash, _rest = entry.name.removeprefix(prefix).partition("/")
            folder = {"name": f"{prefix}{first}", "size": 0, "type": "directory"}
            found[f"{prefix}{first}"] = folder if slash else _info(entry)
        if not found:
            raise FileNotFoundError(2, os.strerror(2), f"{self.store.url}/{name}")
        return [*found.values()] if detail else [*found]

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        """Nothing: a store has names, and no folders."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Nothing, too."""

    def rm_file(self, path: str) -> None:
        """Remove an object."""
        self.store.delete(_name(path))

    def rm(self, path: str | list[str], recursive: bool = False, maxdepth: int | None = None) -> None:
        """Remove objects and, if `recursive`, what lies below these names."""
        for name in map(_name, [path] if isinstance(path, str) else path):
            below = [entry.name for entry in self.store.entries(name)] if recursive else []
            self.store.delete(name, *below)

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        """Copy an object by reading and writing it."""
        content = self.store.get(_name(path1))
        if content is None:
            raise FileNotFoundError(2, os.strerror(2), f"{self.store.url}/{_name(path1)}")
        self.store.put(_name(path2), content)

    def open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        """A file to read in ranges ("rb"), or one that is in the store once it is closed ("wb")."""
        name = _name(path)
        if mode == "wb":
            return _Upload(self.store, name)
        there = self.store.head(name)
        if there is None:
            raise FileNotFoundError(2, os.strerror(2), f"{self.store.url}/{name}")
        return io.BufferedReader(Ranges(self.store, name, there.bytes), BUFFER_BYTES)

    def ukey(self, path: str) -> str:
        """What changes when an object does."""
        there = self.store.head(_name(path))
        if there is None:
            raise FileNotFoundError(2, os.strerror(2), f"{self.store.url}/{_name(path)}")
        return there.tag


class _Upload(io.FileIO):
    """A temporary file that becomes an object when it is closed; none where writing it failed."""

    def __init__(self, store: Store, name: str) -> None:
        number, path = tempfile.mkstemp(prefix="owseg-upload-")
        os.close(number)
        super().__init__(path, "w")
        self._target, self._path = (store, name), Path(path)

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        store, name = self._target
        try:
            store.put(name, self._path if self._path.stat().st_size else b"")
        finally:
            self._path.unlink(missing_ok=True)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is not None:  # half of a file is none
            super().close()
            self._path.unlink(missing_ok=True)
        else:
            self.close()


def filesystem_of(url: str) -> tuple[StoreFileSystem, str]:
    """The file system of a URL's bucket, as `use` says it is reached, and the name in it."""
    protocol, _, rest = url.partition("://")
    bucket, _, name = rest.partition("/")
    return StoreFileSystem(Store(f"{protocol}://{bucket}")), name


def _name(path: str) -> str:
    return path.strip("/")


def _info(entry: Entry) -> dict[str, Any]:
    return {"name": entry.name, "size": entry.bytes, "type": "file", "ETag": entry.tag, "mtime": entry.written}
