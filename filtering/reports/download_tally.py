"""What the status tables of a download add up to, read one batch after another."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from filtering import InputError
from filtering.reports.download_hosts import HostTally
from filtering.schema import STATUS
from filtering.url import hosts_of

BATCH = 2**16
SIDES = 2**14
"""Pixels from which on a shorter side counts as this long."""
PER_OCTAVE = 64
"""Places per doubling of a file size, so that its median is known to 1 %."""

_NO_STATUS = "no_status"
_COLUMNS = (
    *("url", "status", "attempts", "bytes", "sha256", "phash", "captions"),
    *("original_width", "original_height", "width", "height"),
)

Counts = npt.NDArray[np.int64]


class Tally:
    """The sums over all links of some tables. Holds 16 bytes per image, and nothing else that grows with the links.

    Attributes:
        rows: links; `captions` of them all.
        by_status: links by status.
        attempts: requests, of all links; `most_attempts` of one link.
        bytes: of everything that was fetched, obtained or not.
        original_sides: by pixels of the shorter side, images whose header could be read. `kept_sides`: those obtained.
        hosts: by host, counted in both passes.
    """

    def __init__(self, tables: Sequence[Path]) -> None:
        self.rows = self.captions = self.attempts = self.most_attempts = self.bytes = 0
        self.by_status: Counter[str] = Counter()
        self.original_sides: Counts = np.zeros(SIDES + 1, np.int64)
        self.kept_sides: Counts = np.zeros(SIDES + 1, np.int64)
        self.hosts = HostTally()
        self._sizes: Counts = np.zeros(64 * PER_OCTAVE, np.int64)
        self._hashes: dict[str, list[npt.NDArray[np.uint64]]] = {"sha256": [], "phash": []}
        for batch in _batches(tables, _COLUMNS):
            self._add(batch)
        self.hosts.choose()
        for batch in _batches(tables, ("url", "status")):
            self.hosts.count(hosts_of(batch["url"]), _statuses(batch))

    def _add(self, batch: pa.RecordBatch) -> None:
        statuses = _statuses(batch)
        obtained = pc.equal(statuses, "success")
        self.rows += batch.num_rows
        self.captions += pc.sum(pc.fill_null(pc.list_value_length(batch["captions"]), 1)).as_py() or 0
        self.by_status.update({pair["values"]: pair["counts"] for pair in pc.value_counts(statuses).to_pylist()})
        self.attempts += pc.sum(batch["attempts"]).as_py() or 0
        self.most_attempts = max(self.most_attempts, pc.max(batch["attempts"]).as_py() or 0)
        self.bytes += pc.sum(batch["bytes"]).as_py() or 0
        self.hosts.add(hosts_of(batch["url"]), pc.invert(obtained))
        self.original_sides += _sides(batch["original_width"], batch["original_height"])
        images = batch.filter(obtained)
        self.kept_sides += _sides(images["width"], images["height"])
        sizes = images["bytes"].drop_null().to_numpy()
        places = (np.log2(np.maximum(sizes, 1)) * PER_OCTAVE).astype(np.int64)
        self._sizes += np.bincount(places, minlength=len(self._sizes))
        for name, found in self._hashes.items():
            found.append(_numbers(images[name]))

    def median_bytes(self) -> int:
        """The median size of an obtained image's original file, to 1 %; 0 without images."""
        if not self._sizes.any():
            return 0
        place = int(np.searchsorted(np.cumsum(self._sizes), (self._sizes.sum() + 1) // 2))
        return round(2 ** ((place + 0.5) / PER_OCTAVE))

    def perceptual_hashes(self) -> npt.NDArray[np.uint64]:
        """Of the images, in the order of the tables; 0 for pictures with nothing to compare (`filtering.images.phash`)."""
        return np.concatenate([np.zeros(0, np.uint64), *self._hashes["phash"]])

    def same_bytes(self) -> tuple[int, int]:
        """Images whose original file is the same, byte for byte, as an earlier one's, and how many files these repeat.

        Told from 64 bits of the SHA-256: at 10 million images, a single wrong one has a chance of 1 in 300,000.
        """
        hashes = np.concatenate([np.zeros(0, np.uint64), *self._hashes["sha256"]])
        hashes.sort()
        repeats = hashes[1:] == hashes[:-1]
        return int(repeats.sum()), int((repeats & ~np.append(False, repeats[:-1])).sum()) if len(repeats) else 0


def _batches(tables: Sequence[Path], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The columns of all tables, at most `BATCH` rows at a time. InputError if a table is not a download's."""
    for table in tables:
        with pq.ParquetFile(table) as file:
            if missing := [name for name in STATUS.names if name not in file.schema_arrow.names]:
                raise InputError(f"{table}: column {missing[0]!r} is missing; it is not a table that the download wrote")
            yield from file.iter_batches(BATCH, columns=list(columns))


def _statuses(batch: pa.RecordBatch) -> pa.Array:
    return pc.fill_null(batch["status"], _NO_STATUS)


def _sides(widths: pa.Array, heights: pa.Array) -> Counts:
    """How many images have which shorter side."""
    sides = pc.min_element_wise(widths, heights, skip_nulls=False).drop_null().to_numpy()
    return np.bincount(np.clip(sides, 0, SIDES), minlength=SIDES + 1)


def _numbers(hashes: pa.Array) -> npt.NDArray[np.uint64]:
    """The first 16 hex digits of each hash as a number; what has none is left out."""
    digits = pc.utf8_slice_codeunits(hashes.drop_null(), 0, 16)
    return np.frombuffer(bytes.fromhex("".join(digits.to_pylist())), ">u8").astype(np.uint64)
