"""An append-only file of results that survives kill -9: what was appended is read back, a torn tail is cut off."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class Journal:
    """Records by key: a small JSON line (held in memory) and a body of bytes (left on disk). The last of a key counts.

    A record is handed to the operating system before `append` returns, so it outlives the process (not a power cut).
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a+b")
        self._bodies: dict[str, tuple[int, int]] = {}
        self.records: dict[str, dict[str, Any]] = {}
        self._file.truncate(self._load(path.stat().st_size))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def append(self, key: str, record: Mapping[str, Any], body: bytes = b"") -> None:
        line = json.dumps([key, len(body), dict(record)]).encode() + b"\n"
        start = self._file.seek(0, os.SEEK_END) + len(line)
        self._file.write(line + body)
        self._file.flush()
        self._note(key, start, len(body), dict(record))

    def place(self, key: str) -> tuple[int, int]:
        """Where the body lies in the file: (first byte, length)."""
        return self._bodies[key]

    def body(self, key: str) -> bytes:
        start, length = self._bodies[key]
        self._file.seek(start)
        return self._file.read(length)

    def _load(self, size: int) -> int:
        """Read the records; returns where the last whole one ends."""
        self._file.seek(0)
        end = 0
        while (line := self._file.readline()).endswith(b"\n"):
            try:
                key, length, record = json.loads(line)
                start = end + len(line)
                end_of_body = start + length
            except (ValueError, TypeError):
                break
            if end_of_body > size:
                break
            self._note(key, start, length, record)
            end = self._file.seek(end_of_body)
        return end

    def _note(self, key: str, start: int, length: int, record: dict[str, Any]) -> None:
        self.records[key] = record
        self._bodies[key] = (start, length)
