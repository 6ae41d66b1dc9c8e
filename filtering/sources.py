"""The files of a source, here or behind any fsspec URL: finding them, telling them apart, opening and unpacking them."""

import bz2
import gzip
import io
import json
import lzma
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

import pyarrow as pa
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from filtering import InputError
from filtering.files import digest_of_file
from filtering.listing import is_data, is_looked_into
from storage.client import is_object_store
from storage.copies import at, present
from storage.filesystem import filesystem_of

MAX_HASHED = 64 << 20  # bytes; a larger local file is known by size and time
MAX_NAMES = 1_000_000  # that braces stand for
END = sys.maxsize
"""An offset that stands for the end of the file."""

Kind = Literal["tsv", "csv", "jsonl", "parquet", "webdataset"]
Format = Literal["auto", "tsv", "csv", "jsonl", "parquet", "webdataset"]

_PACKED = ("", ".gz", ".zst", ".bz2", ".xz")
_NAMES = {"tsv": (".tsv", ".txt"), "csv": (".csv",), "jsonl": (".jsonl", ".ndjson"), "webdataset": (".tar",)}
SUFFIXES = {kind: tuple(name + packed for packed in _PACKED for name in names) for kind, names in _NAMES.items()}
SUFFIXES["webdataset"] += (".tgz",)
SUFFIXES["parquet"] = (".parquet",)

_BUFFER = 1 << 20
_HEAD = 1 << 16
_PARQUET, _TAR = b"PAR1", b"ustar"
_FOREIGN = {
    re.compile(rb"ARROW1"): "an Arrow file; write it as parquet",
    re.compile(rb"PK\x03\x04"): "a zip archive (or a spreadsheet); unpack it, or save it as CSV",
    re.compile(rb"\s*\[\s*\{"): "one JSON list; write an object a line, as JSON Lines",
}
"""How files begin that no reader takes, and what to do."""
_TAR_MAGIC = slice(257, 262)
_Unpack = Callable[[IO[bytes]], Any]
"""Small buffers only: what a buffer holds is lost when a fault comes behind it."""
_CODECS: dict[bytes, tuple[str, _Unpack]] = {
    b"\x1f\x8b": ("gzip", lambda file: gzip.GzipFile(fileobj=file)),
    b"\x28\xb5\x2f\xfd": (
        "zstd",
        lambda file: io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")),
    ),
    b"BZh": ("bzip2", bz2.BZ2File),
    b"\xfd7zXZ\0": ("xz", lzma.LZMAFile),
}
_FAULTS = (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException, UnicodeDecodeError)


# ---- faults


@contextmanager
def reading(path: str, fault: str = "is damaged or cut short") -> Iterator[None]:
    """Around whatever reads a file of the user's: what goes wrong becomes an InputError of one line that names the file.

    `fault` says what is the matter where the operating system has no reason of its own.
    """
    try:
        yield
    except InputError as mistake:
        if is_object_store(path) and not str(mistake).startswith("filter."):
            raise InputError(f"filter.source.path: {mistake}") from mistake
        raise
    except Exception as error:
        if not isinstance(error, _FAULTS) and (_is_local(path) or type(error).__module__ == "builtins"):
            raise  # a mistake of ours; stores in the network have exceptions of their own kinds
        if isinstance(error, OSError) and error.errno is not None and error.strerror:
            failed = fault if fault.startswith("cannot") else "cannot be read"
            raise InputError(f"filter.source.path: {path} {failed}: {error.strerror}") from error
        what = f"{fault} ({first_line(error)}); fetch it again or take it away"
        raise InputError(f"filter.source.path: {path} {what}") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return next(iter(str(error).splitlines()), type(error).__name__)


# ---- names


def find_files(paths: Sequence[str], format: str) -> list[str]:
    """The files that paths name, sorted, each once: a path is a file, a folder, a glob pattern, or several with braces.

    "{00000..00331}" and "{a,b}" stand for names as they do in shells; each of them must be there. Of a folder and its
    subfolders those files count whose names suit `format`. What systems and jobs leave there (`filtering.listing`) is left out,
    as in glob patterns, and so are empty files. A folder that holds tars is a WebDataset, and the tables beside the tars tell
    of the same samples: with "auto" they are left out.

    Returns absolute paths or URLs, since workers have another working directory.

    Raises:
        InputError: nothing there, or a URL that fsspec cannot open.
    """
    found: set[str] = set()
    for path in paths:
        names = [path] if "{" not in path or _files_at(path, format) else sorted(_expanded(path))
        missing = []
        for name in names:
            files = _files_at(name, format)
            found.update(files)
            if not files:
                missing.append(name)
        if missing:
            several = f" ({len(missing)} of the {len(names)} that {path} names are missing)" if len(names) > 1 else ""
            raise InputError(f"filter.source.path: no such file: {missing[0]}{several}")
    return sorted(found)


def _expanded(path: str) -> list[str]:
    """The names that braces stand for; those that hold neither a range nor a list are text."""
    names, done = [path], []
    while names:
        name = names.pop()
        if (braces := _BRACES.search(name)) is None:
            done.append(name)
            continue
        if braces["first"] is None:
            values: Sequence[str] = braces["list"].split(",")
        else:
            first, last = int(braces["first"]), int(braces["last"])
            width = max(len(braces["first"]), len(braces["last"])) if "0" in (braces["first"][0], braces["last"][0]) else 0
            step = 1 if first <= last else -1
            if len(names) + len(done) + abs(last - first) >= MAX_NAMES:
                raise InputError(f"filter.source.path: {path} stands for more than {MAX_NAMES:,} names")
            values = [f"{number:0{width}d}" for number in range(first, last + step, step)]
        names += [f"{name[: braces.start()]}{value}{name[braces.end() :]}" for value in values]
    return done


_BRACES = re.compile(r"\{(?:(?P<first>\d+)\.\.(?P<last>\d+)|(?P<list>[^{}]*,[^{}]*))\}")


def _files_at(path: str, format: str) -> list[str]:
    """The files that a path without braces names. InputError if it cannot be listed, or holds no data."""
    files, name = _filesystem(path)
    with reading(path, "cannot be listed"):
        if files.isdir(name):
            sizes = {file: size for file, size in _inside(files, name).items() if is_data(file[len(name.rstrip("/")) + 1 :])}
            sizes = {file: sizes[file] for file in _suited(list(sizes), format)}
            if not sizes:
                wanted = [suffix for kind, suffixes in SUFFIXES.items() if format in ("auto", kind) for suffix in suffixes]
                raise InputError(f"filter.source.path: no {', '.join(wanted)} file in the folder {path}")
        elif files.isfile(name) or (isinstance(files, LocalFileSystem) and os.path.exists(name)):
            sizes = {name: None}  # whoever reads it will say that it is empty, or no regular file
        else:
            try:
                listed = files.glob(name, detail=True).items()
            except ValueError as error:  # "**" beside other characters
                raise InputError(f"filter.source.path: {path} is no pattern: {first_line(error)}") from error
            start = len(_before_wildcards(name))
            sizes = {file: told.get("size") for file, told in listed if told["type"] != "directory" and is_data(file[start:])}
        found = [file for file, size in sizes.items() if size != 0]
        if sizes and not found:
            raise InputError(f"filter.source.path: every file of {path} is empty, such as {min(sizes)}")
    return [file if isinstance(files, LocalFileSystem) else files.unstrip_protocol(file) for file in found]


def _before_wildcards(pattern: str) -> str:
    """The folders of a pattern that it names in full."""
    folders = pattern.split("/")
    count = next((number for number, folder in enumerate(folders) if any(mark in folder for mark in "*?[")), len(folders) - 1)
    return "".join(f"{folder}/" for folder in folders[:count])


def _inside(files: Any, folder: str) -> dict[str, int | None]:
    """The files in a folder and its subfolders, with their sizes where known."""
    if not isinstance(files, LocalFileSystem):
        listed = files.find(folder, detail=True).items()
        return {name: told.get("size") for name, told in listed if told["type"] != "directory"}
    found: dict[str, int | None] = {}
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        if (real := os.path.realpath(root)) in seen:  # links may lead back up, or twice to the same
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(filter(is_looked_into, folders))
        found |= {path: _local_size(path) for path in (f"{root.rstrip('/')}/{name}" for name in names)}
    return found


def _local_size(path: str) -> int | None:
    try:
        return os.path.getsize(path) if os.path.isfile(path) else None
    except OSError:
        return None  # whoever reads it will say why


def _raise(error: OSError) -> None:
    raise error


def _suited(names: list[str], format: str) -> list[str]:
    by_format = {kind: [name for name in names if name.lower().endswith(suffixes)] for kind, suffixes in SUFFIXES.items()}
    if format != "auto":
        return by_format[format]
    tars = by_format.pop("webdataset")
    return tars or [name for found in by_format.values() for name in found]


# ---- files


def _is_local(path: str) -> bool:
    return "://" not in path or path.startswith("file://")


def _filesystem(path: str) -> tuple[Any, str]:
    if "://" not in path:
        if at(Path(path)) and not os.path.exists(path):  # the run's own links, on a machine that has a copy of the run
            present(Path(path))
        return LocalFileSystem(), LocalFileSystem._strip_protocol(path)
    if is_object_store(path):
        return filesystem_of(path)
    try:
        files, name = url_to_fs(path)
    except Exception as error:  # whatever a store's client raises where it lacks a key, a package or a name
        raise InputError(f"filter.source.path: {path} cannot be opened: {first_line(error)}") from error
    return files, name


def open_file(path: str) -> IO[bytes]:
    """Open a file for reading. InputError if that cannot be done."""
    files, name = _filesystem(path)
    if isinstance(files, LocalFileSystem) and os.path.exists(name) and not os.path.isfile(name):
        raise InputError(f"filter.source.path: {path} is no regular file, and sources are read several times; save it as one")
    with reading(path, "cannot be opened"):
        return io.BufferedReader(files.open(name, "rb"), _BUFFER)


@contextmanager
def open_unpacked(path: str) -> Iterator[IO[bytes]]:
    """Open a file, unpacking it if its first bytes are those of gzip, zstd, bzip2 or xz. InputError if it is not complete."""
    with open_file(path) as file:
        codec = _codec_of(file)
        if codec is None:
            with reading(path):
                yield file
        else:
            name, unpack = codec
            with reading(path, f"is not a complete {name} file"):
                yield unpack(file)


def is_packed(path: str) -> bool:
    """Whether a file is packed, so that nothing in it can be found without reading all before it."""
    with open_file(path) as file, reading(path):
        return _codec_of(file) is not None


def _codec_of(file: IO[bytes]) -> tuple[str, _Unpack] | None:
    head = file.read(6)
    file.seek(0)
    return next((codec for magic, codec in _CODECS.items() if head.startswith(magic)), None)


def size_of(path: str) -> int:
    """The size of a file in bytes."""
    files, name = _filesystem(path)
    with reading(path):
        return int(files.size(name))


def identity_of(path: str) -> object:
    """What changes when the file does: the SHA-256 of a local one, its size and time if it is large; else what fsspec knows."""
    files, name = _filesystem(path)
    with reading(path):
        if not isinstance(files, LocalFileSystem):
            return _identity_at(files, name)
        told = Path(name).stat()
        return digest_of_file(Path(name)) if told.st_size <= MAX_HASHED else [told.st_size, told.st_mtime_ns]


def _identity_at(files: Any, name: str) -> object:
    """What a remote store knows of a file. HTTP's address may hold a signature that is another one tomorrow."""
    if not name.startswith(("http://", "https://")):
        return files.ukey(name)
    told = files.info(name)
    return [str(told.get(key)) for key in ("size", "ETag", "Content-MD5", "Last-Modified")]


def kind_of(path: str, format: Format) -> Kind:
    """How to read a file: as `format` says or, if that is "auto", as its first bytes and its name tell."""
    if format != "auto":
        return format
    name = path.lower()
    head = _head_of(path)
    if foreign := next((what for pattern, what in _FOREIGN.items() if pattern.match(head)), None):
        raise InputError(f"filter.source.path: {path} is {foreign}")
    if head.startswith(_PARQUET) or name.endswith(SUFFIXES["parquet"]):
        return "parquet"
    if head[_TAR_MAGIC] == _TAR or name.endswith(SUFFIXES["webdataset"]):
        return "webdataset"
    if name.endswith(SUFFIXES["csv"]):
        return "csv"
    return "jsonl" if name.endswith(SUFFIXES["jsonl"]) or _is_json(head) else "tsv"


def _head_of(path: str) -> bytes:
    try:
        with open_unpacked(path) as file:
            return file.read(_HEAD)
    except InputError as error:
        if error.__cause__ is not None and is_packed(path):
            return b""  # whoever reads it will say so
        raise


def _is_json(head: bytes) -> bool:
    """Whether a text begins with a JSON object in a line of its own."""
    line = head.removeprefix(b"\xef\xbb\xbf").lstrip().split(b"\n", 1)[0]
    try:
        return line.startswith(b"{") and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
