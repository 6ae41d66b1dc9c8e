"""What is known about the links of one shard: from the journal of the work in hand, and from the shards of earlier runs."""

import tarfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from filtering.files import write_json
from filtering.images.journal import Journal
from filtering.images.reasons import Failure, failure_of
from filtering.samples import IMAGE_KINDS
from filtering.schema import CORPUS, STATUS
from filtering.shards import LIVE

Row = Mapping[str, Any]
"""A kept row: a value per column."""
Record = dict[str, Any]
"""What became of a link: the columns that STATUS adds to CORPUS, and for an image "extension", the kind of its file."""
Retry = Literal["none", "transient", "permanent"]
"""Which failures are asked for again: none, those that may pass, or all, permanent ones too."""
RETRIES: tuple[Retry, ...] = get_args(Retry)

_COLUMNS = [name for name in STATUS.names if name not in CORPUS.names]
_SECONDS_BETWEEN_COUNTS = 1.0


def asked_again(failure: Failure | None, retry: Retry) -> bool:
    """Whether a link that failed so is asked for again."""
    return failure is not None and (retry == "permanent" or (retry == "transient" and failure == "transient"))


@dataclass(frozen=True)
class Validity:
    """Digests of the settings that a result depends on: it holds in a later run only where they are the same.

    A permanent failure is the web's own and depends on none of ours.
    """

    images: str
    """What the bytes of an image depend on."""
    rules: str
    """What decides about links and images that we refuse."""

    def metadata(self) -> dict[str, str]:
        """As metadata of the table that keeps the results."""
        return {"images": self.images, "rules": self.rules}

    @property
    def journal(self) -> str:
        """The name of a journal of such results."""
        return f".journal-{self.images[:12]}-{self.rules[:12]}"


class Known:
    """What earlier runs found out about some links: their records, and the images of those obtained."""

    def __init__(self, keys: Sequence[str], validity: Validity) -> None:
        self.records: dict[str, Record] = {}
        self._keys = pa.array(keys, pa.string())
        self._validity = validity
        self._bodies: dict[str, tuple[Path, int, int]] = {}

    def add_shard(self, statuses: Path) -> None:
        """Take in the shard whose table is `statuses`, if there is one. What its tar lacks does not count as obtained."""
        try:
            table = pq.read_table(statuses, columns=["key", *_COLUMNS])
        except (FileNotFoundError, pa.ArrowInvalid, pa.ArrowKeyError):
            return  # never written, damaged, or of another version: its links are asked for
        except OSError as error:
            if error.errno is not None:
                raise  # the disk's or the user's: what cannot be read now is not lost
            return  # how Arrow tells most damage
        metadata = table.schema.metadata or {}
        images, rules = (metadata.get(name.encode()) == digest.encode() for name, digest in self._validity.metadata().items())
        table = table.filter(pc.is_in(table["key"], self._keys))
        tar = statuses.with_suffix(".tar")
        bodies = _bodies(tar) if images else {}
        for row in table.to_pylist():
            key, failure = row.pop("key"), failure_of(row["status"])
            if failure is None and key in bodies:
                row["extension"], start, length = bodies[key]
                self._bodies[key] = (tar, start, length)
            if key in bodies if failure is None else failure != "policy" or rules:
                self.records[key] = row

    def add_journal(self, path: Path) -> None:
        """Take in the journal of a shard that was never completed."""
        with Journal(path) as journal:
            for key in journal.records.keys() & set(self._keys.to_pylist()):
                self.records[key] = journal.records[key]
                if journal.records[key]["status"] == "success":
                    self._bodies[key] = (path, *journal.place(key))

    def has_image(self, key: str) -> bool:
        """Whether the link was obtained."""
        return key in self._bodies

    def uses(self, tar: Path) -> bool:
        """Whether the tar holds the image of one of the links."""
        return any(path == tar for path, _, _ in self._bodies.values())

    def body(self, key: str) -> bytes:
        """The image of a link that was obtained."""
        path, start, length = self._bodies[key]
        with path.open("rb") as file:
            file.seek(start)
            return file.read(length)


def _bodies(tar: Path) -> dict[str, tuple[str, int, int]]:
    """The image of each key in a tar: (extension, first byte, length)."""
    found = {}
    try:
        with tarfile.open(tar, "r:") as file:
            while (member := file.next()) is not None:
                file.members = []  # type: ignore[attr-defined]  # it would keep them all
                key, dot, kind = member.name.partition(".")
                if dot and kind in IMAGE_KINDS:
                    found[key] = (kind, member.offset_data, member.size)
    except (FileNotFoundError, tarfile.TarError):
        pass  # what can be read counts
    size = tar.stat().st_size if tar.exists() else 0
    return {key: place for key, place in found.items() if place[1] + place[2] <= size}


class Results:
    """The results of a shard's links as they come in. They outlive a kill; a count of them is left for the progress to read."""

    def __init__(self, scratch: Path, known: Known, validity: Validity, retry: Retry) -> None:
        self._journal = Journal(scratch / validity.journal)
        self._known, self._retry = known, retry
        self._live = scratch / LIVE
        self._counts: Counter[str] = Counter()
        self._told = time.monotonic()
        self.asked = 0
        """How many links were asked for."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._journal.__exit__(kind, error, trace)

    def unsettled(self, rows: Iterable[Row]) -> list[Row]:
        """The rows whose links are to be asked for."""
        rest = []
        for row in rows:
            record = self._found(row["key"])
            if record is None or asked_again(failure_of(record["status"]), self._retry):
                rest.append(row)
            else:
                self._count(record)
        self.asked = len(rest)
        return rest

    def add(self, key: str, record: Record, image: bytes = b"") -> None:
        """Keep what became of a link."""
        before = self._found(key)
        self._journal.append(key, {**record, "attempts": record["attempts"] + (before["attempts"] if before else 0)}, image)
        self._count(record)

    def record(self, key: str) -> Record:
        """The latest about a link."""
        record = self._found(key)
        assert record is not None, f"{key} was neither known nor asked for"
        return record

    def body(self, key: str) -> bytes:
        """The image of a link that was obtained."""
        return self._journal.body(key) if key in self._journal.records else self._known.body(key)

    def _found(self, key: str) -> Record | None:
        return self._journal.records.get(key) or self._known.records.get(key)

    def _count(self, record: Record) -> None:
        self._counts.update({"rows": 1, f"status/{record['status']}": 1, "bytes": record["bytes"]})
        if time.monotonic() - self._told > _SECONDS_BETWEEN_COUNTS:
            write_json(self._live, self._counts)
            self._told = time.monotonic()
