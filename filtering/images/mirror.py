"""A second home for complete shards: any place that fsspec can write to, such as an object store or a shared disk."""

import json
import re
import uuid
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from filtering import InputError
from filtering.files import Loss, digest_of_file
from storage.client import is_object_store
from storage.filesystem import filesystem_of

SIZES = "sizes.json"
"""Says "complete", so it is copied after everything else."""

RECORDS = "_copied"
"""The folder beside the files that tells what was copied, one JSON file per shard."""

# Where a file is moved within a folder at no cost. In object stores a file appears when its upload ends, whole.
_MOVES = frozenset({"file", "sftp", "ssh", "ftp", "smb", "hdfs", "arrow_hdfs", "webhdfs"})
_FEW = 8  # shards whose files are looked at one by one: a whole folder may be long
_SHARD_FILE = re.compile(r"(\d{5,})(?:\.tar|\.index|\.parquet|_stats\.json)")
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
            _make_folder(fs, folder)
            fs.pipe_file(probe, content)
            if fs.cat_file(probe) != content:
                raise OSError("what is written does not come back")
            fs.rm_file(probe)
        except Exception as error:  # each store has errors of its own
            raise self._mistake("cannot be written", error) from error

    def push(self, paths: Sequence[Path], digests: Mapping[str, str] | None = None) -> None:
        """Copy files into the folder, under their names, those that are not there already; `SIZES` comes last.

        A file never stands there half written under its name. Files of the same shard belong into the same call. `digests` are
        the SHA-256 of files by name, as far as they are known already.
        """
        fs, folder = self._open()
        shards: dict[str, list[Path]] = {}
        for path in sorted(paths, key=lambda path: (path.name == SIZES, path.name)):
            of_shard = _SHARD_FILE.fullmatch(path.name)
            shards.setdefault(of_shard[1] if of_shard else path.name, []).append(path)
        step = "was not read"
        try:
            there = _Contents(fs, folder, list(shards))
            for shard, files in shards.items():
                step = f"did not get {shard}"
                there.add(shard, {path: (digests or {}).get(path.name) or digest_of_file(path) for path in files})
        except Exception as error:
            raise self._mistake(step, error, "; run again to copy what is missing") from error

    def lost(self, sizes: Mapping[str, int]) -> dict[str, Loss]:
        """Which files of these names and sizes in bytes are no longer there, told from one listing."""
        fs, folder = self._open()
        try:
            there = _sizes(fs, folder)
        except Exception as error:
            raise self._mistake("was not read", error) from error
        return {
            name: "missing" if there.get(name) is None else "of another size"
            for name, size in sizes.items()
            if there.get(name) != size
        }

    def prune(self, names: Collection[str]) -> None:
        """Remove what an earlier corpus left: files of shards, and `SIZES`, that are not among `names`. Others' files stay.

        Also removes what a kill left half copied, so no copy may be under way.
        """
        fs, folder = self._open()
        shards = {match[1] for match in map(_SHARD_FILE.fullmatch, names) if match}
        try:
            for name in _sizes(fs, folder):
                ours = _SHARD_FILE.fullmatch(name) or name == SIZES
                if (ours and name not in names) or _UNFINISHED.fullmatch(name):
                    fs.rm_file(f"{folder}/{name}")
            for name in _sizes(fs, f"{folder}/{RECORDS}"):
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
            fs, folder = filesystem_of(self._url) if is_object_store(self._url) else fsspec.core.url_to_fs(self._url)
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


class _Contents:
    """What records tell of some shards there."""

    def __init__(self, fs: Any, folder: str, shards: Sequence[str]) -> None:
        self._fs, self._folder = fs, folder
        answers = fs.cat_ranges([self._record(shard) for shard in shards], None, None)  # many at a time where the store can
        self._copied = dict(zip(shards, map(_parse, answers), strict=True))
        self._listed = _sizes(fs, folder) if len(shards) > _FEW else None

    def add(self, shard: str, files: Mapping[Path, str]) -> None:
        """Copy the files (path: SHA-256) of a shard that its record does not name, then write the record."""
        fs, record, copied = self._fs, self._record(shard), self._copied[shard]
        wanted = {path.name: {"bytes": path.stat().st_size, "sha256": digest} for path, digest in files.items()}
        left = [
            path
            for path in files
            if copied.get(path.name) != wanted[path.name] or self._size(path.name) != wanted[path.name]["bytes"]
        ]
        if not left:
            return
        if copied:
            fs.rm_file(record)  # from here on the files are no longer what it says
        _make_folder(fs, self._folder)
        for path in left:
            _copy(fs, path, self._folder)
        _make_folder(fs, f"{self._folder}/{RECORDS}")
        fs.pipe_file(record, json.dumps({**copied, **wanted}, indent=2).encode())

    def _record(self, shard: str) -> str:
        return f"{self._folder}/{RECORDS}/{shard}.json"

    def _size(self, name: str) -> int | None:
        return _size(self._fs, f"{self._folder}/{name}") if self._listed is None else self._listed.get(name)


def _parse(answer: bytes | Exception) -> dict[str, Any]:
    """A record as it was read; an empty one if it is missing or torn."""
    if isinstance(answer, FileNotFoundError):
        return {}
    if isinstance(answer, Exception):
        raise answer
    try:
        return dict(json.loads(answer))
    except ValueError:
        return {}


def _protocols(fs: Any) -> set[str]:
    return {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)


def _make_folder(fs: Any, folder: str) -> None:
    """Object stores have no folders to make: asked for one, some would create the bucket that a typing error names."""
    if _protocols(fs) & _MOVES:
        fs.makedirs(folder, exist_ok=True)


def _copy(fs: Any, path: Path, folder: str) -> None:
    final = f"{folder}/{path.name}"
    first = f"{folder}/.{path.name}.copying" if _protocols(fs) & _MOVES else final
    fs.put_file(str(path), first)
    if (size := _size(fs, first)) != path.stat().st_size:
        raise OSError(f"{path.name} has {path.stat().st_size} bytes, of which {size} arrived")
    if first != final:
        if "file" not in _protocols(fs) and fs.exists(final):
            fs.rm_file(final)  # only local moves are known to replace
        fs.mv(first, final)


def _size(fs: Any, path: str) -> int | None:
    """Bytes of a file there; None if there is none."""
    try:
        return int(fs.info(path)["size"])
    except FileNotFoundError:
        return None


def _sizes(fs: Any, folder: str) -> dict[str, int | None]:
    """Bytes by name of what lies in a folder; none if there is no such folder."""
    try:
        return {row["name"].rstrip("/").rpartition("/")[2]: row["size"] for row in fs.ls(folder, detail=True)}
    except FileNotFoundError:
        return {}
