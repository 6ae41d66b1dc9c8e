"""The files of a source, here or behind any fsspec URL: finding them, telling them apart, and streaming what they hold."""

import gzip
import io
import sys
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import IO, Any, Literal, Self

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from filtering import InputError
from filtering.files import digest_of_file

MAX_LINE = 1 << 20  # bytes; a longer line is no link, and memory stays flat
MAX_HASHED = 64 << 20  # bytes; a larger local file is known by size and time
SUFFIXES = {
    "tsv": (".tsv", ".txt", ".tsv.gz", ".txt.gz"),
    "parquet": (".parquet",),
    "webdataset": (".tar", ".tar.gz", ".tgz"),
}
END = sys.maxsize
"""An offset that stands for the end of the file."""

Kind = Literal["tsv", "tsv.gz", "parquet", "webdataset"]

_BUFFER = 1 << 20
_GZIP, _PARQUET, _TAR = b"\x1f\x8b", b"PAR1", b"ustar"
_TAR_MAGIC = slice(257, 262)


# ---- files


def find_files(path: str, format: str) -> list[str]:
    """The files that a file, folder or glob pattern names, sorted; of a folder those whose names suit `format`.

    Local ones as absolute paths, since workers have another working directory. A folder that holds tars is a WebDataset, and
    the tables beside the tars tell of the same samples: with "auto" they are left out.

    Raises:
        InputError: nothing there, or a URL that fsspec cannot open.
    """
    files, name = _filesystem(path)
    try:
        if files.isdir(name):
            there = [entry["name"] for entry in files.ls(name, detail=True) if entry["type"] != "directory"]
            found = _suited(there, format)
            if not found:
                wanted = [suffix for kind, suffixes in SUFFIXES.items() if format in ("auto", kind) for suffix in suffixes]
                raise InputError(f"filter.source.path: no {', '.join(wanted)} file in the folder {path}")
        elif files.isfile(name):
            found = [name]
        else:
            found = [
                file for file, told in files.glob(name, detail=True).items() if told["type"] != "directory" and _shown(file)
            ]
    except OSError as error:
        raise InputError(f"filter.source.path: {path} cannot be listed: {first_line(error)}") from error
    if not found:
        raise InputError(f"filter.source.path: no such file: {path}")
    return sorted(file if isinstance(files, LocalFileSystem) else files.unstrip_protocol(file) for file in found)


def _suited(names: list[str], format: str) -> list[str]:
    by_format = {
        kind: [name for name in names if name.lower().endswith(suffixes) and _shown(name)]
        for kind, suffixes in SUFFIXES.items()
    }
    if format != "auto":
        return by_format[format]
    return by_format["webdataset"] or [*by_format["tsv"], *by_format["parquet"]]


def _shown(name: str) -> bool:
    return not name.rpartition("/")[2].startswith(".")


def _filesystem(path: str) -> tuple[Any, str]:
    if "://" not in path:
        return LocalFileSystem(), LocalFileSystem._strip_protocol(path)
    try:
        files, name = url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise InputError(f"filter.source.path: {path} cannot be opened: {first_line(error)}") from error
    return files, name


def open_file(path: str) -> IO[bytes]:
    """Open a file for reading. InputError if that cannot be done."""
    files, name = _filesystem(path)
    try:
        return io.BufferedReader(files.open(name, "rb"), _BUFFER)
    except OSError as error:
        raise InputError(f"filter.source.path: {path} cannot be opened: {first_line(error)}") from error


def size_of(path: str) -> int:
    """The size of a file in bytes."""
    files, name = _filesystem(path)
    return int(files.size(name))


def identity_of(path: str) -> object:
    """What changes when the file does: the SHA-256 of a local one, its size and time if it is large; else what fsspec knows."""
    files, name = _filesystem(path)
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


def kind_of(path: str, format: str) -> Kind:
    """How to read a file: as `format` says or, if that is "auto", as its first bytes tell."""
    with open_file(path) as file:
        head = file.read(512)
        packed = head.startswith(_GZIP)
        if packed:
            file.seek(0)
            try:
                head = gzip.GzipFile(fileobj=file).read(512)
            except (OSError, EOFError, zlib.error):
                head = b""  # whoever reads it will say so
    if format == "auto":
        if head.startswith(_PARQUET) and not packed:
            return "parquet"
        tar = head[_TAR_MAGIC] == _TAR or path.lower().endswith(SUFFIXES["webdataset"])
        format = "webdataset" if tar else "tsv"
    if format == "tsv":
        return "tsv.gz" if packed else "tsv"
    return "parquet" if format == "parquet" else "webdataset"


# ---- lines


@contextmanager
def open_lines(path: str, *, packed: bool) -> Iterator[IO[bytes] | gzip.GzipFile]:
    """Open a text file for `lines`, unpacking gzip if it is `packed`. InputError if it is not complete."""
    with open_file(path) as file:
        if not packed:
            yield file
            return
        try:
            with gzip.GzipFile(fileobj=file) as text:
                yield text
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InputError(f"filter.source.path: {path} is not a complete gzip file: {first_line(error)}") from error


def lines(file: IO[bytes] | gzip.GzipFile, start: int = 0, stop: int = END) -> Iterator[str]:
    """The lines that begin at the offsets from `start` to before `stop`, without blank ones.

    Lines are split at line feeds alone; undecodable bytes are replaced, and a byte-order mark is skipped.
    """
    at = start
    if start:
        file.seek(start - 1)
        at -= 1
        while at < stop and (raw := file.readline(MAX_LINE)):  # the end of the line before
            at += len(raw)
            if raw.endswith(b"\n"):
                break
    while at < stop and (raw := file.readline(MAX_LINE)):
        encoding = "utf-8" if at else "utf-8-sig"
        at += len(raw)
        if len(raw) == MAX_LINE and not raw.endswith(b"\n"):
            while rest := file.readline(MAX_LINE):
                at += len(rest)
                if rest.endswith(b"\n"):
                    break
            raw = raw[:200].replace(b"\t", b" ")
        if line := raw.decode(encoding, errors="replace").rstrip("\r\n"):
            yield line


# ---- WebDataset tars


class _Header(tarfile.TarInfo):
    """A tar header that must be whole: `tarfile` takes a damaged or missing one for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the blocks of zeros that end an archive
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error
        if header.size < 0:
            raise tarfile.ReadError("a member has a negative size")
        return header


@dataclass(frozen=True)
class Member:
    """A file of the `number`-th sample, which has the name `sample`; `kind` is what follows the first dot ("jpg", "txt")."""

    number: int
    sample: str
    kind: str
    size: int
    _tar: tarfile.TarFile
    _header: tarfile.TarInfo

    def read(self, most: int) -> bytes:
        """The first `most` bytes; to be read before the next member is asked for."""
        content = self._tar.extractfile(self._header)
        return content.read(most) if content else b""


@contextmanager
def open_tar(path: str) -> Iterator[Iterator[tuple[str, Iterator[Member]]]]:
    """The samples of a tar (also packed), each with its name and its files: members with the same name up to the first dot.

    They are streamed, so a sample's files must be read before the next one is asked for. Nothing touches the disk, whatever
    the members are called.

    Raises:
        InputError: the tar is damaged or cut short; what comes before the damage is read.
    """
    with open_file(path) as file:
        try:
            with tarfile.open(fileobj=file, mode="r|*", tarinfo=_Header, encoding="utf-8", errors="replace") as tar:
                yield ((name, files) for (_, name), files in groupby(_members(tar), lambda file: (file.number, file.sample)))
        except tarfile.TarError as error:
            raise InputError(
                f"filter.source.path: the tar {path} is damaged or cut short ({first_line(error)}); "
                "fetch it again or take it away"
            ) from error


def _members(tar: tarfile.TarFile) -> Iterator[Member]:
    """The plain files: no links, devices, folders or sparse files (whose size could be anything), no hidden files."""
    number, current = 0, ""
    kinds: set[str] = set()
    while (header := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # it would remember every one
        folder, slash, file = header.name.rpartition("/")
        stem, _, kind = file.partition(".")
        if stem and header.isreg() and not header.issparse():
            sample, kind = f"{folder}{slash}{stem}", kind.lower()
            if sample != current or kind in kinds:  # a second image is that of another sample, even of the same name
                number, current = number + 1, sample
                kinds.clear()
            kinds.add(kind)
            yield Member(number, sample, kind, header.size, tar, header)


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return next(iter(str(error).splitlines()), type(error).__name__)
