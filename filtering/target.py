"""A second home for complete shards: any place that fsspec can write to, such as an object store or a shared disk."""

import json
import re
import uuid
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from filtering.stage import InputError, digest_of_file

LAST = "sizes.json"
"""Says "complete", so it is copied after everything else."""

RECORDS = "_copied"
"""The folder beside the files that tells what was copied, one JSON file per shard."""

# Where a file is moved within a folder at no cost. In object stores a file appears when its upload ends, whole.
_MOVES = frozenset({"file", "sftp", "ssh", "ftp", "smb", "hdfs", "arrow_hdfs", "webhdfs"})
_SHARD_FILE = re.compile(r"(\d{5,})(?:\.tar|\.parquet|_stats\.json)")
_RECORD = re.compile(r"(\d{5,})\.json")
_UNFINISHED = re.compile(r"\..+\.copying")


class Target:
    """The folder at `url`: an fsspec URL with a protocol, or an absolute path. Cheap to make, and to send to a worker.

    Every method raises InputError, one line that names download.target, when the place fails.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def check(self) -> None:
        """Write, read and remove a small file: a wrong address or a missing right shows before any work is done."""
        fs, folder = self._open()
        probe, content = f"{folder}/.{uuid.uuid4().hex}.copying", b"can this be written?"
        try:
            fs.makedirs(folder, exist_ok=True)
            fs.pipe_file(probe, content)
            if fs.cat_file(probe) != content:
                raise OSError("what is written does not come back")
            fs.rm_file(probe)
        except Exception as error:  # each store has errors of its own
            raise self._mistake("cannot be written", error) from error

    def push(self, paths: Sequence[Path]) -> None:
        """Copy files into the folder, under their names, those that are not there already; `LAST` comes last.

        A file never stands there half written under its name. Files of the same shard belong into the same call.
        """
        fs, folder = self._open()
        shards: dict[str, list[Path]] = {}
        for path in sorted(paths, key=lambda path: (path.name == LAST, path.name)):
            of_shard = _SHARD_FILE.fullmatch(path.name)
            shards.setdefault(of_shard[1] if of_shard else path.name, []).append(path)
        for shard, files in shards.items():
            try:
                _push(fs, folder, shard, files)
            except Exception as error:
                raise self._mistake(f"{shard} was not copied", error, "; run again to copy what is missing") from error

    def prune(self, names: Collection[str]) -> None:
        """Remove what an earlier corpus left: files of shards, and `LAST`, that are not among `names`. Others' files stay.

        Also removes what a kill left half copied, so no copy may be under way.
        """
        fs, folder = self._open()
        shards = {match[1] for match in map(_SHARD_FILE.fullmatch, names) if match}
        try:
            for name in _names(fs, folder):
                ours = _SHARD_FILE.fullmatch(name) or name == LAST
                if (ours and name not in names) or _UNFINISHED.fullmatch(name):
                    fs.rm_file(f"{folder}/{name}")
            for name in _names(fs, f"{folder}/{RECORDS}"):
                if (record := _RECORD.fullmatch(name)) and record[1] not in shards:
                    fs.rm_file(f"{folder}/{RECORDS}/{name}")
        except Exception as error:
            raise self._mistake("cannot be tidied", error) from error

    def _open(self) -> tuple[Any, str]:
        """The file system and the folder on it."""
        import fsspec  # here, since most runs copy nothing

        protocol, _, rest = self._url.rpartition("://")
        if protocol in ("", "file", "local") and not rest.startswith("/"):
            raise self._mistake("is no URL", None, '; give one such as "s3://bucket/folder", or an absolute path')
        try:
            fs, folder = fsspec.core.url_to_fs(self._url)
            fs.invalidate_cache()
        except Exception as error:
            raise self._mistake("cannot be opened", error) from error
        if not folder.strip("/"):
            raise self._mistake("names no folder", None, '; give one such as "s3://bucket/folder"')
        return fs, folder.rstrip("/")

    def _mistake(self, what: str, error: Exception | None, advice: str = "") -> InputError:
        """One line, without what a URL may hold of passwords."""
        shown = re.sub(r"//[^/]*@", "//", self._url)
        reason = "" if error is None else ": " + (" ".join(str(error).split())[:300] or type(error).__name__)
        return InputError(f"download.target: {shown!r} {what}{reason}{advice}")


def _push(fs: Any, folder: str, shard: str, files: Sequence[Path]) -> None:
    """Copy the files of one shard that its record does not name, then write the record."""
    record = f"{folder}/{RECORDS}/{shard}.json"
    wanted = {path.name: {"bytes": path.stat().st_size, "sha256": digest_of_file(path)} for path in files}
    try:
        copied = json.loads(fs.cat_file(record))
    except (FileNotFoundError, ValueError):
        copied = {}
    sizes = {name: _size(fs, f"{folder}/{name}") for name in wanted if copied.get(name) == wanted[name]}
    left = [path for path in files if sizes.get(path.name) != wanted[path.name]["bytes"]]
    if not left:
        return
    if copied:
        fs.rm_file(record)  # from here on the files are no longer what it says
    fs.makedirs(folder, exist_ok=True)
    for path in left:
        _copy(fs, path, folder)
    fs.makedirs(f"{folder}/{RECORDS}", exist_ok=True)
    fs.pipe_file(record, json.dumps({**copied, **wanted}, indent=2).encode())


def _copy(fs: Any, path: Path, folder: str) -> None:
    final = f"{folder}/{path.name}"
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    first = f"{folder}/.{path.name}.copying" if protocols & _MOVES else final
    fs.put_file(str(path), first)
    if (size := _size(fs, first)) != path.stat().st_size:
        raise OSError(f"{path.name} has {path.stat().st_size} bytes, of which {size} arrived")
    if first != final:
        if "file" not in protocols and fs.exists(final):
            fs.rm_file(final)  # only a local move replaces everywhere
        fs.mv(first, final)


def _size(fs: Any, path: str) -> int | None:
    """Bytes of a file there; None if there is none."""
    try:
        return int(fs.info(path)["size"])
    except FileNotFoundError:
        return None


def _names(fs: Any, folder: str) -> list[str]:
    """The names of what lies in a folder; none if there is no such folder."""
    try:
        return [path.rstrip("/").rpartition("/")[2] for path in fs.ls(folder, detail=False)]
    except FileNotFoundError:
        return []
