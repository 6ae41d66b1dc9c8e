"""Files that are whole or not there, digests, and records of files that tell whether they still are what was written."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from storage.copies import fetched, release, size_of


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write under, renamed at the end: a reader sees the old file or the new one.

    Nothing is left under that name where an error comes between.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def write_json(path: Path, value: object) -> None:
    """Write JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8, whole or not at all; bytes of a file's name that are no text become escapes."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_table(path: Path, table: pa.Table) -> None:
    """Write parquet, whole or not at all. The same table gives the same bytes."""
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of one parquet file. Raises KeyError where it lacks one of `columns`.

    `pq.read_table` reads folders as well, and to that end loads what takes 30 MB and 0.3 s in each process.
    """
    with pq.ParquetFile(path) as file:
        table = file.read(columns)
    return table if columns is None else table.select(columns)


def digest_of(value: object) -> str:
    """SHA-256 of a JSON-serialisable value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


Loss = Literal["missing", "of another size", "changed"]
"""How a file differs from its record: not there, cut short or longer, or with other bytes of the same number."""


class Recorded(NamedTuple):
    """What a record says of a file. `bytes` is None in records of older versions: then the file only has to be there."""

    bytes: int | None
    sha256: str


def record_of(path: Path) -> Recorded:
    """What is to be recorded of a file that has been written."""
    return Recorded(path.stat().st_size, digest_of_file(path))


def losses(folder: Path, files: Mapping[str, Recorded], *, verify: bool = False) -> dict[str, Loss]:
    """The files (relative paths in `folder`) that are not as recorded: the one definition of what "complete" means.

    Names and sizes are compared; only with `verify` is each file read and its digest compared as well.
    """
    found: dict[str, Loss] = {}
    for name, recorded in files.items():
        size = size_of(folder / name)
        if size is None:
            found[name] = "missing"
        elif recorded.bytes is not None and size != recorded.bytes:
            found[name] = "of another size"
        elif verify and _stored_digest(folder / name) != recorded.sha256:
            found[name] = "changed"
    return found


def _stored_digest(path: Path) -> str:
    """SHA-256 of a file, which does not stay here if it was only in a store."""
    was_here = path.is_file()
    digest = digest_of_file(fetched(path))
    if not was_here:
        release(path)
    return digest
