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

from filtering.files import digest_of, write_table
from filtering.images.captioned import CaptionedImage, Row, carried
from filtering.images.download import DownloadConfig, content_digest, validity_of
from filtering.images.fetch import Outcome
from filtering.images.guard import GuardedResize
from filtering.images.image_shards import finish, write_shard, write_shards
from filtering.images.kept_rows import Cut, open_corpus, schema_of
from filtering.images.progress import failed
from filtering.images.results import Known, Results
from filtering.partition import regroup
from filtering.samples import IMAGE_KINDS, MAX_TEXT, TEXT_KINDS, sample_rows
from filtering.schema import SAMPLE
from filtering.shards import Runner, run_local
from filtering.tar_samples import Member, open_tar

GROUP_ROWS = 1 << 16  # rows of neighbouring tars that are in memory at once
MAX_GROUPS = 256


def in_tars(corpus: Path) -> bool:
    """Whether the images of the corpus lie in tars already, so that they are selected and not downloaded."""
    return any(SAMPLE.name in schema_of(file).names for file in sorted((corpus / "kept").glob("*.parquet")))


def select_corpus(config: DownloadConfig, corpus: Path, out: Path, *, run: Runner = run_local) -> dict[str, Any]:
    """Take the images of `corpus/kept/*.parquet` out of the tars named by their column `sample`; no request is made.

    Each tar with a kept sample becomes a shard, 00000 and so on in the order of the tars' paths. Of `config` the image settings
    and `fetch.max_bytes` apply; files, results and mistakes are those of `download_corpus`. Three statuses are added:
    "no_image", and where the tar has changed since it was filtered "no_such_sample" and "sample_changed" (its caption has).
    """
    cut = _cut(corpus, out)
    make_work = partial(SelectShard, config)
    fingerprint = digest_of(["select", content_digest(config)])
    return write_shards(
        make_work,
        cut,
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
        validity = validity_of(self._config)
        with Results(scratch, Known([], validity), validity, "none") as results:
            images = self._obtain(table.sort_by("key").to_pylist(), results)
            return write_shard(images, carried(table.schema), scratch, validity, results)

    def _obtain(self, rows: Sequence[Row], results: Results) -> list[CaptionedImage]:
        """Stream the tar once. Rows are known by their keys: a caption never gets the image of another sample of that name."""
        wanted: dict[str, dict[str, dict[str, Row]]] = {}
        for row in rows:
            path, _, name = row[SAMPLE.name].partition("::")
            wanted.setdefault(path, {}).setdefault(name, {})[row["key"]] = row
        images = []
        for path, rows_of in wanted.items():
            left = sum(map(len, rows_of.values()))
            seen = set()
            with open_tar(path) as samples:
                for name, files in samples:
                    if not left:
                        break
                    if name not in rows_of:
                        continue
                    seen.add(name)
                    keys, outcome = self._read(path, name, files)
                    if found := [rows_of[name].pop(key) for key in sorted(keys & rows_of[name].keys())]:
                        left -= len(found)
                        images.append(self._settle(found, outcome, results))
            for name, rest in rows_of.items():
                if rest:
                    outcome = Outcome(status="sample_changed" if name in seen else "no_such_sample")
                    images.append(self._settle(list(rest.values()), outcome, results))
        return images

    def _settle(self, rows: Sequence[Row], outcome: Outcome, results: Results) -> CaptionedImage:
        image = CaptionedImage(" ".join(row["key"] for row in rows), rows)
        if results.unsettled([image]):
            results.add(image, *finish(outcome, self._resize))
        return image

    def _read(self, path: str, name: str, files: Iterable[Member]) -> tuple[set[str], Outcome]:
        """The keys of a sample's rows, and its image as if it had been fetched."""
        texts: dict[str, bytes] = {}
        outcome = None
        for file in files:
            if file.kind in TEXT_KINDS:
                texts[file.kind] = file.read(MAX_TEXT)
            elif file.kind in IMAGE_KINDS and outcome is None:
                small = file.size <= self._config.fetch.max_bytes
                outcome = Outcome(status="success", body=file.read(file.size)) if small else Outcome(status="too_large")
        return keys_of(path, name, texts), outcome or Outcome(status="no_image")


def keys_of(path: str, name: str, texts: Mapping[str, bytes]) -> set[str]:
    """The keys of the rows that the filter made of a sample, whether or not its image is still there."""
    return {row.key for row in sample_rows(path, name, texts)}


def _cut(corpus: Path, out: Path) -> Cut:
    """Write the kept rows of each tar, sorted by key, as a shard. In memory at once: one file or a group of tars."""
    kept = open_corpus(corpus, in_tars=True)
    counts: Counter[str] = Counter()
    for table in kept.file_tables(["key", SAMPLE.name]):
        counts.update(_tars(table).to_pylist())
    groups = min(MAX_GROUPS, -(-counts.total() // GROUP_ROWS))
    group_of = {}
    before = 0
    for tar in sorted(counts):
        group_of[tar] = before * groups // counts.total()
        before += counts[tar]

    folder = out / "_links"
    shutil.rmtree(folder, ignore_errors=True)
    shards: list[Path] = []
    tars_of = {group: list(tars) for group, tars in groupby(group_of, group_of.__getitem__)}
    tables = kept.file_tables(kept.schema.names)
    together = regroup(tables, lambda table: _groups(table, group_of), groups, out / "_blocks")
    for group, rows in enumerate(together):
        rows = rows.append_column("tar", _tars(rows)).sort_by([("tar", "ascending"), ("key", "ascending")]).drop_columns("tar")
        start = 0
        for tar in tars_of.get(group, []):  # a large tar may leave none to the next group
            shards.append(folder / f"{len(shards):05d}.parquet")
            of_tar = rows.slice(start, counts[tar])
            samples = len(set(of_tar[SAMPLE.name].to_pylist()))
            write_table(shards[-1], of_tar.replace_schema_metadata({"rows": str(samples)}))
            start += counts[tar]
    return Cut(shards, kept.rows, kept.rows - counts.total())


def _tars(table: pa.Table) -> pa.ChunkedArray:
    """The path of the tar of each row."""
    return pc.list_element(pc.split_pattern(table[SAMPLE.name], "::", max_splits=1), 0)


def _groups(table: pa.Table, group_of: Mapping[str, int]) -> npt.NDArray[np.int32]:
    """The group of each row's tar."""
    return np.array([group_of[tar] for tar in _tars(table).to_pylist()], np.int32)


_HINTS = {
    **dict.fromkeys(("no_such_sample", "sample_changed"), "the tars have changed: run the filter again"),
    **dict.fromkeys(("not_an_image", "truncated", "undecodable"), "look at what the samples' image files hold"),
    "no_image": f"its samples have no file of a kind that is read: {', '.join(sorted(IMAGE_KINDS))}",
    "too_large": "raise download.fetch.max_bytes",
}


def _nothing_selected(by_status: Mapping[str, int], example: Row) -> str:
    hint = _HINTS.get(example["status"], "see download.image")
    return f"no image could be taken out of the tars: {failed(by_status, example, 'samples')} ({hint})"
