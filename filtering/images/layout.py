"""Which shard an image is in: the one that the hash of its URL falls into, so that all of its captions meet there.

The number of shards is a power of two. When it changes, the old shards are put aside in `_previous`, and the new ones take
their images from them. Older versions cut shards by the rows' keys, in which the captions are hashed as well.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from filtering.files import read_table, write_json, write_table
from filtering.images.captioned import CaptionedImage
from filtering.images.image_shards import shard_files
from filtering.images.kept_rows import Cut, open_corpus, without_repeats
from filtering.images.results import LOCATED, Known, Validity, located
from filtering.partition import regroup
from filtering.url import ids_of
from storage.copies import at, pulled

BATCH_ROWS = 1 << 16
PREVIOUS = "_previous"
_LAYOUT = "_layout.json"
_BY_URL = "url"
_SORTED = "by-url-"
"""In a folder of old shards that were cut by keys: their results sorted by URL, for so many new shards."""


def cut_corpus(corpus: Path, out: Path, shard_size: int) -> Cut:
    """Cut the kept rows into about and at most so many URLs a shard, and make room for the shards in `out`.

    In memory at once: a batch, or some neighbouring shards.
    """
    kept = open_corpus(corpus)
    shards = _power_of_two(kept.rows, shard_size)
    _lay_out(out, shards)
    folder = out / "_links"
    shutil.rmtree(folder, ignore_errors=True)
    cut = Cut([folder / f"{shard:05d}.parquet" for shard in range(shards)], kept.rows, 0)
    repeated = 0
    for source, rows in zip(cut.sources, _by_shard(kept.tables(BATCH_ROWS), kept.rows, shards, out / "_blocks"), strict=True):
        once = without_repeats(rows)
        repeated += len(rows) - len(once)
        write_table(source, once.replace_schema_metadata({"rows": str(len(set(ids_of(once))))}))
    return Cut(cut.sources, kept.rows, repeated)


def known_of(out: Path, shard: str, images: Sequence[CaptionedImage], validity: Validity) -> Known:
    """What the shard of this name knows of its images, and what those of another layout do."""
    known = Known(images, validity)
    if at(out):
        _pull_previous(out)
    shards = shards_in(out) or 1
    for folder in _folders(out):
        of_url = folder.name.endswith(_BY_URL)
        names = _overlapping(int(shard), shards, _number_of(folder)) if of_url else ["[0-9]*"]  # of old ones all may know
        for name in names if of_url else []:
            known.add_shard(folder / f"{name}.parquet")
        if not of_url:
            known.add(read_table(folder / f"{_SORTED}{shards:05d}" / f"{shard}.parquet"), folder)
        for name in names:
            for journal in sorted(folder.glob(f"{name}{validity.journal}")):
                known.add_journal(journal)
    known.add_shard(out / f"{shard}.parquet")
    return known


@lru_cache(maxsize=1)
def _pull_previous(out: Path) -> None:
    """What was put aside, on a machine that works on a copy of the run's folder: once in a process."""
    pulled(out / PREVIOUS)


def shards_in(out: Path) -> int | None:
    """The number of shards that the files in `out` are cut for; None if there are none."""
    try:
        return int(_layout(out)["shards"])
    except (FileNotFoundError, ValueError, KeyError):
        return None


def _layout(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / _LAYOUT).read_text(encoding="utf-8")))


def _power_of_two(rows: int, size: int) -> int:
    """The least power of two into which so many rows go with at most about `size` in each part."""
    return 1 << (-(-rows // size) - 1).bit_length()


def _by_shard(tables: Iterable[pa.Table], rows: int, shards: int, blocks: Path) -> Iterator[pa.Table]:
    """The rows of each shard in turn, sorted by key."""
    groups = min(_power_of_two(max(1, rows), BATCH_ROWS), shards)
    for group, found in enumerate(regroup(tables, lambda table: _range_of(table, groups), groups, blocks)):
        found = found.sort_by("key")
        shard_of = _range_of(found, shards)
        order = np.argsort(shard_of, kind="stable")
        found, shard_of = found.take(pa.array(order)).combine_chunks(), shard_of[order]
        for shard in range(group * shards // groups, (group + 1) * shards // groups):
            start, stop = np.searchsorted(shard_of, [shard, shard + 1])
            yield found.slice(start, stop - start)


def _range_of(table: pa.Table, ranges: int) -> npt.NDArray[np.int32]:
    """Which of so many equal ranges of all hashes each row's URL falls into."""
    ids = table["id"].to_pylist() if "id" in table.column_names else ids_of(table)
    heads = [int.from_bytes(sha256(id_.encode()).digest()[:4], "big") for id_ in ids]
    return (np.array(heads, np.int64) * ranges >> 32).astype(np.int32)


def _overlapping(shard: int, shards: int, others: int) -> list[str]:
    """The names of those of `others` shards whose hashes range over those of one of `shards`."""
    return [f"{other:05d}" for other in range(shard * others // shards, -(-(shard + 1) * others // shards))]


# ---- shards of another layout


def _folders(out: Path) -> list[Path]:
    """The folders of shards that were put aside, in the order in which they were."""
    return sorted((out / PREVIOUS).glob("[0-9]*"))


def _number_of(folder: Path) -> int:
    return int(folder.name.split("-")[1])


def _lay_out(out: Path, shards: int) -> None:
    """Make room for another number of shards: the old ones are put aside, for the new ones to take their images from."""
    before = shards_in(out)
    if before is not None:
        layout = _layout(out)
        if before != shards or layout.get("by") != _BY_URL or layout.get("moving"):
            _put_aside(out, layout)
    write_json(out / _LAYOUT, {"shards": shards, "by": _BY_URL})
    for folder in _folders(out):
        if not folder.name.endswith(_BY_URL):
            _sort_by_url(folder, shards)


def _put_aside(out: Path, layout: dict[str, Any]) -> None:
    pulled(out)  # from a store: all of it is moved
    folders = _folders(out)
    aside = folders[-1] if folders and layout.get("moving") else None  # a kill fell between the files
    if aside is None:  # a new one, lest they mix with what is there already
        number = int(folders[-1].name.partition("-")[0]) + 1 if folders else 0
        by = f"-{layout['by']}" if "by" in layout else ""
        aside = out / PREVIOUS / f"{number:05d}-{layout['shards']:05d}{by}"
    aside.mkdir(parents=True, exist_ok=True)
    write_json(out / _LAYOUT, {**layout, "moving": True})  # a kill must not part a tar from its statuses
    for name, path in list(shard_files(out)):
        if path.parent == out:
            os.replace(path, aside / path.name)
        else:
            for journal in path.glob(".journal-*"):
                os.replace(journal, aside / f"{name}{journal.name}")
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _sort_by_url(folder: Path, shards: int) -> None:
    """Sort what shards that were cut by keys know, once: a new shard then looks into one table instead of all of them."""
    done = folder / f"{_SORTED}{shards:05d}"
    if done.is_dir():
        return
    tables = sorted(folder.glob("[0-9]*.parquet"))
    rows = sum(_rows(path) for path in tables)
    building = folder / ".sorting"
    shutil.rmtree(building, ignore_errors=True)
    batches = _joined(located(path) for path in tables)
    for shard, found in enumerate(_by_shard(batches, rows, shards, folder / ".blocks")):
        write_table(building / f"{shard:05d}.parquet", found)
    os.replace(building, done)


def _rows(path: Path) -> int:
    try:
        return int(pq.read_metadata(path).num_rows)
    except (OSError, pa.ArrowException):
        return 0  # damaged, and read as such


def _joined(tables: Iterable[pa.Table | None]) -> Iterator[pa.Table]:
    """Neighbouring tables together, as far as they are there; at least one, perhaps empty."""
    waiting = [LOCATED.empty_table()]
    for table in tables:
        if table is not None:
            waiting.append(table)
        if sum(map(len, waiting)) >= BATCH_ROWS:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)
