"""What is known about the images of one shard: from the journal of the work in hand, and from the shards of earlier runs.

An image is known by its `id`, which for a link is the URL: captions that come or go, or are cleaned in another way, ask for
nothing again.
"""

import tarfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

import pyarrow as pa
import pyarrow.compute as pc

from filtering.files import read_table, write_json
from filtering.images.captioned import CaptionedImage
from filtering.images.journal import Journal
from filtering.images.reasons import Failure, failure_of
from filtering.samples import IMAGE_KINDS
from filtering.schema import RESULT
from filtering.shards import LIVE
from filtering.url import ids_of
from storage.copies import fetched, present

Record = dict[str, Any]
"""What became of a link: the columns of RESULT, and for an image "extension", the kind of its file."""
Retry = Literal["none", "transient", "permanent"]
"""Which failures are asked for again: none, those that may pass, or all, permanent ones too."""
RETRIES: tuple[Retry, ...] = get_args(Retry)

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


LOCATED = pa.schema(
    [
        *(pa.field(name, pa.string()) for name in ("id", "key")),
        *RESULT,
        *(pa.field(name, pa.string()) for name in ("images", "rules", "tar", "extension")),
        *(pa.field(name, pa.int64()) for name in ("start", "length")),
    ]
)
"""Results of a shard, with the digests of their `Validity`, and where in which tar the image is; null where it is not there."""


def located(statuses: Path) -> pa.Table | None:
    """What the shard whose table is `statuses` knows (schema LOCATED); None where the table is missing or damaged."""
    tar = statuses.with_suffix(".tar")
    try:
        table = read_table(fetched(statuses), ["key", "url", *RESULT.names])
        present(tar)
    except (FileNotFoundError, pa.ArrowInvalid, KeyError):
        return None  # never written, damaged, or of another version: its links are asked for
    except OSError as error:
        if error.errno is not None:
            raise  # the disk's or the user's: what cannot be read now is not lost
        return None  # how Arrow tells most damage
    metadata = {name.decode(): digest.decode() for name, digest in (table.schema.metadata or {}).items()}
    places = bodies_in(tar)
    found = [places.get(key) for key in table["key"].to_pylist()]
    columns = {
        "id": pa.array(ids_of(table), pa.string()),
        **{name: table[name] for name in ("key", *RESULT.names)},
        **{name: pa.array([metadata.get(name)] * len(table), pa.string()) for name in ("images", "rules")},
        "tar": pa.array([place and tar.name for place in found], pa.string()),
        "extension": pa.array([place and place[0] for place in found], pa.string()),
        "start": pa.array([place and place[1] for place in found], pa.int64()),
        "length": pa.array([place and place[2] for place in found], pa.int64()),
    }
    return pa.table(columns).cast(LOCATED)


class Known:
    """What earlier runs found out about some images: their records, and the files of those obtained."""

    def __init__(self, images: Sequence[CaptionedImage], validity: Validity) -> None:
        self.records: dict[str, Record] = {}
        """By the image's id."""
        self._ids = {image.id: image.id for image in images}
        # Journals of versions before images had several captions go by the row's key.
        self._ids |= {row["key"]: image.id for image in images for row in image.rows}
        self._validity = validity
        self._bodies: dict[str, tuple[Path, int, int]] = {}

    def add_shard(self, statuses: Path) -> None:
        """Take in the shard whose table is `statuses`, if there is one. What its tar lacks does not count as obtained."""
        if (table := located(statuses)) is not None:
            self.add(table, statuses.parent)

    def add(self, table: pa.Table, tars: Path) -> None:
        """Take in results (schema LOCATED), as far as the settings that they depend on are the same.

        `tars` is the folder of their tars.
        """
        table = table.filter(pc.is_in(table["id"], pa.array(list(self._ids.values()), pa.string())))
        for row in table.to_pylist():
            failure = failure_of(row["status"])
            obtained = failure is None and row["tar"] is not None and row["images"] == self._validity.images
            if obtained:
                self._bodies[row["id"]] = (tars / row["tar"], row["start"], row["length"])
            elif row["id"] in self._bodies or failure is None:
                continue  # of several rows with one URL, as older versions had them, one may have been obtained
            if obtained or failure != "policy" or row["rules"] == self._validity.rules:
                self.records[row["id"]] = {name: row[name] for name in (*RESULT.names, "extension")}

    def add_journal(self, path: Path) -> None:
        """Take in the journal of a shard that was never completed."""
        with Journal(path) as journal:
            for name in journal.records.keys() & self._ids.keys():
                id_ = self._ids[name]
                self.records[id_] = journal.records[name]
                if journal.records[name]["status"] == "success":
                    self._bodies[id_] = (path, *journal.place(name))

    def has_image(self, id_: str) -> bool:
        """Whether the image was obtained."""
        return id_ in self._bodies

    def uses(self, tar: Path) -> bool:
        """Whether the tar holds one of the images."""
        return any(path == tar for path, _, _ in self._bodies.values())

    def body(self, id_: str) -> bytes:
        """The file of an image that was obtained."""
        path, start, length = self._bodies[id_]
        with path.open("rb") as file:
            file.seek(start)
            return file.read(length)


def bodies_in(tar: Path) -> dict[str, tuple[str, int, int]]:
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
    """The results of a shard's images as they come in. They outlive a kill; progress reads a count of them."""

    def __init__(self, scratch: Path, known: Known, validity: Validity, retry: Retry) -> None:
        self._journal = Journal(scratch / validity.journal)
        self._known, self._retry = known, retry
        self._live = scratch / LIVE
        self._counts: Counter[str] = Counter()
        self._told = time.monotonic()
        self.asked = 0
        """How many images were asked for."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._journal.__exit__(kind, error, trace)

    def unsettled(self, images: Iterable[CaptionedImage]) -> list[CaptionedImage]:
        """Those that are to be asked for. Each image is to be named once, over all calls."""
        rest = []
        for image in images:
            record = self._found(image.id)
            if record is None or asked_again(failure_of(record["status"]), self._retry):
                rest.append(image)
            else:
                self._count(image, record)
        self.asked += len(rest)
        return rest

    def add(self, image: CaptionedImage, record: Record, file: bytes = b"") -> None:
        """Keep what became of an image."""
        before = self._found(image.id)
        attempts = record["attempts"] + (before["attempts"] if before else 0)
        self._journal.append(image.id, {**record, "attempts": attempts}, file)
        self._count(image, record)

    def record(self, image: CaptionedImage) -> Record:
        """The latest about an image."""
        record = self._found(image.id)
        assert record is not None, f"{image.id} was neither known nor asked for"
        return record

    def body(self, image: CaptionedImage) -> bytes:
        """The file of an image that was obtained."""
        return self._journal.body(image.id) if image.id in self._journal.records else self._known.body(image.id)

    def _found(self, id_: str) -> Record | None:
        return self._journal.records.get(id_) or self._known.records.get(id_)

    def _count(self, image: CaptionedImage, record: Record) -> None:
        status = f"status/{record['status']}"
        self._counts.update({"rows": 1, "captions": len(image.rows), status: 1, "bytes": record["bytes"]})
        if time.monotonic() - self._told > _SECONDS_BETWEEN_COUNTS:
            write_json(self._live, self._counts)
            self._told = time.monotonic()
