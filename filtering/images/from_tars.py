"""Tars to image shards without a request: the kept samples of a WebDataset, laid out as the download lays them out."""

import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from filtering.files import digest_of, write_table
from filtering.images.download import DownloadConfig, content_digest, validity_of
from filtering.images.fetch import Outcome
from filtering.images.guard import GuardedResize
from filtering.images.image_shards import (
    check_keys,
    columns_of,
    corpus_files,
    finish,
    without_repeats,
    write_shard,
    write_shards,
)
from filtering.images.results import Known, Results, Row
from filtering.partition import regroup
from filtering.samples import IMAGE_KINDS, MAX_TEXT, TEXT_KINDS, sample_rows
from filtering.schema import CORPUS, SAMPLE
from filtering.shards import Runner, run_local
from filtering.tar_samples import Member, open_tar

GROUP_ROWS = 1 << 16  # rows of neighbouring tars that are in memory at once
MAX_GROUPS = 256

_COLUMNS = [*CORPUS.names, SAMPLE.name]


def in_tars(corpus: Path) -> bool:
    """Whether the images of the corpus lie in tars already, so that they are selected and not downloaded."""
    return any(SAMPLE.name in columns_of(file) for file in sorted((corpus / "kept").glob("*.parquet")))


def select_corpus(config: DownloadConfig, corpus: Path, out: Path, *, run: Runner = run_local) -> dict[str, Any]:
    """Take the images of `corpus/kept/*.parquet` out of the tars named by their column `sample`; no request is made.

    Each tar with a kept sample becomes a shard, 00000 and so on in the order of the tars' paths. Of `config` the image settings
    and `fetch.max_bytes` apply; files, results and mistakes are those of `download_corpus`. Two statuses are added:
    "no_such_sample" (the tar has changed since it was filtered) and "no_image".
    """
    sources = _cut(corpus, out)
    make_work = partial(SelectShard, config)
    fingerprint = digest_of(["select", content_digest(config)])
    return write_shards(
        make_work,
        sources,
        out,
        run=run,
        fingerprint=fingerprint,
        label="select",
        target=config.target,
        nothing=_nothing_selected,
    )


class SelectShard:
    """The `ShardWork` of the selection: the kept rows of one tar in, the files of a shard out."""

    def __init__(self, config: DownloadConfig) -> None:
        self._config = config
        self._resize = GuardedResize(config.image)

    def __call__(self, table: pa.Table, scratch: Path) -> Mapping[str, int]:
        rows = table.sort_by("key").to_pylist()
        validity = validity_of(self._config)
        with Results(scratch, Known([], validity), validity, "none") as results:
            return write_shard(rows, scratch, validity, results, self._obtain)

    def _obtain(self, rows: Sequence[Row], results: Results) -> None:
        """Stream the tar once. A sample is known by its key: a caption never gets the image of another sample of that name."""
        wanted = {row["key"]: row["sample"].partition("::") for row in rows}
        names = {name for _, _, name in wanted.values()}
        for path in {path for path, _, _ in wanted.values()}:
            with open_tar(path) as samples:
                for name, files in samples:
                    if name not in names:
                        continue
                    keys, outcome = self._read(path, name, files)
                    for key in keys:
                        if wanted.pop(key, None):
                            results.add(key, *finish(outcome, self._resize))
                    if not wanted:
                        break
        for key in wanted:
            results.add(key, *finish(Outcome(status="no_such_sample"), self._resize))

    def _read(self, path: str, name: str, files: Iterable[Member]) -> tuple[list[str], Outcome]:
        """The keys of a sample, one for each caption, and its image as if it had been fetched."""
        texts: dict[str, bytes] = {}
        outcome = None
        for file in files:
            if file.kind in TEXT_KINDS:
                texts[file.kind] = file.read(MAX_TEXT)
            elif file.kind in IMAGE_KINDS and outcome is None:
                small = file.size <= self._config.fetch.max_bytes
                outcome = Outcome(status="success", body=file.read(file.size)) if small else Outcome(status="too_large")
        keys = [row.key for row in sample_rows(path, name, texts)]
        return keys, outcome or Outcome(status="no_image")


def _cut(corpus: Path, out: Path) -> list[Path]:
    """Write the kept rows of each tar, sorted by key, as a shard. In memory at once: one file or a group of tars."""
    files = corpus_files(corpus, _COLUMNS)
    counts: Counter[str] = Counter()
    for file in files:
        counts.update(_tars(_read(file, ["key", SAMPLE.name])).to_pylist())
    groups = min(MAX_GROUPS, -(-counts.total() // GROUP_ROWS))
    group_of = {}
    before = 0
    for tar in sorted(counts):
        group_of[tar] = before * groups // counts.total()
        before += counts[tar]

    folder = out / "_links"
    shutil.rmtree(folder, ignore_errors=True)
    shards: list[Path] = []
    tables = (_read(file, _COLUMNS) for file in files)
    tars_of = {group: list(tars) for group, tars in groupby(group_of, group_of.__getitem__)}
    together = regroup(tables, lambda table: _groups(table, group_of), groups, out / "_blocks")
    for group, rows in enumerate(together):
        rows = rows.append_column("tar", _tars(rows)).sort_by([("tar", "ascending"), ("key", "ascending")]).drop_columns("tar")
        start = 0
        for tar in tars_of.get(group, []):  # a large tar may leave none to the next group
            shards.append(folder / f"{len(shards):05d}.parquet")
            write_table(shards[-1], rows.slice(start, counts[tar]))
            start += counts[tar]
    return shards


def _read(file: Path, columns: list[str]) -> pa.Table:
    """Columns of a file of the corpus, sorted by key, each key once. Rows with one key lie in one file."""
    table = pq.read_table(file, columns=columns).select(columns)
    check_keys(table["key"], file)
    return without_repeats(table.sort_by([("key", "ascending"), (SAMPLE.name, "ascending")]))


def _tars(table: pa.Table) -> pa.ChunkedArray:
    """The path of the tar of each row."""
    return pc.list_element(pc.split_pattern(table[SAMPLE.name], "::", max_splits=1), 0)


def _groups(table: pa.Table, group_of: Mapping[str, int]) -> npt.NDArray[np.int32]:
    """The group of each row's tar."""
    return np.array([group_of[tar] for tar in _tars(table).to_pylist()], np.int32)


def _nothing_selected(by_status: Mapping[str, int]) -> str:
    samples = sum(by_status.values())
    reason, count = max(by_status.items(), key=lambda item: item[1])
    hint = "the tars have changed: run the filter again" if reason == "no_such_sample" else "see download.image"
    return f"no image could be taken out of the tars: {count} of {samples} samples failed with {reason!r} ({hint})"
