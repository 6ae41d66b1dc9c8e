"""Image shards as img2dataset lays them out: WebDataset tars, beside each a table of statuses and its counts, and `sizes.json`.

Beside `00000.tar` (key.jpg or another image, key.json, key.txt per image) lie `00000.parquet`, with the status of every link,
and `00000_stats.json`; `sizes.json` tells open_clip's loader how many samples each tar holds.
"""

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from filtering import InputError
from filtering.files import write_json, write_table
from filtering.images.fetch import Outcome
from filtering.images.mirror import SIZES, Target
from filtering.images.reasons import FAILURES, failure_of
from filtering.images.resize import Resized
from filtering.images.results import Record, Results, Retry, Row, Validity, asked_again
from filtering.schema import KEY_LENGTH, STATUS
from filtering.shards import Describe, MakeWork, Marker, Runner, SharedWork, digest_of_markers, finished, reopen, sum_counts
from filtering.tars import write_tar

Obtain = Callable[[Sequence[Row], Results], None]
"""Finds out what became of rows and adds it to the results: the record and the file that `finish` makes."""


def write_shard(rows: Sequence[Row], scratch: Path, validity: Validity, results: Results, obtain: Obtain) -> Mapping[str, int]:
    """Write tar, statuses and stats of `rows`, sorted by key, into `scratch`, named after it; returns the shard's counts."""
    obtain(results.unsettled(rows), results)
    rows = [{**row, **results.record(row["key"])} for row in rows]
    write_tar(scratch / f"{scratch.name}.tar", _samples(rows, results))
    statuses = pa.Table.from_pylist(rows, schema=STATUS.with_metadata(validity.metadata()))
    write_table(scratch / f"{scratch.name}.parquet", statuses)
    write_json(scratch / f"{scratch.name}_stats.json", _stats(rows))
    return {
        "links": len(rows),
        "asked": results.asked,
        "bytes": sum(row["bytes"] for row in rows),
        **{f"status/{status}": count for status, count in Counter(row["status"] for row in rows).items()},
    }


def finish(outcome: Outcome, resize: Callable[[bytes], Resized]) -> tuple[Record, bytes]:
    """What became of a row, as `Results` keeps it, and the file of its image."""
    obtained = outcome.status == "success"
    resized = resize(outcome.body) if obtained else Resized(status=outcome.status, message=outcome.message)
    failure = failure_of(resized.status)
    record = {
        "status": resized.status,
        "failure": failure,
        "retryable": failure == "transient",
        "error_message": resized.message,
        "http_status": outcome.http_status,
        "attempts": outcome.attempts,
        "bytes": len(outcome.body),
        "sha256": hashlib.sha256(outcome.body).hexdigest() if obtained else None,
        "phash": resized.phash,
        "original_width": resized.original_width,
        "original_height": resized.original_height,
        "width": resized.width,
        "height": resized.height,
        "extension": resized.extension,
    }
    return record, resized.image


def write_shards(
    make_work: MakeWork,
    sources: Sequence[Path],
    out: Path,
    *,
    run: Runner,
    fingerprint: str,
    label: str,
    retry: Retry = "none",
    at_once: int = 1,
    describe: Describe | None = None,
    target: str = "",
    nothing: Callable[[Mapping[str, int]], str],
) -> dict[str, Any]:
    """Run the work over all shards and write `sizes.json`; returns and raises what `download_corpus` does.

    Complete shards with a failure that `retry` names are worked on again. All files are copied to `target`, if that is not "".
    `nothing` words the mistake if there is no image: statuses and their counts in, message out.
    """
    if target:
        Target(target).check()
        make_work = partial(_CopiedWork, make_work, target)
    _remove_strangers(out, {source.stem for source in sources})
    complete = {marker.shard: marker for source in sources if (marker := finished(source, out, fingerprint))}
    again = [shard for shard, marker in complete.items() if _has_failure(marker, retry)]
    reopen(out, again)
    markers = run(make_work, sources, out, fingerprint=fingerprint, label=label, at_once=at_once, describe=describe)
    for left in out.glob("_work/[0-9]*"):
        _remove(left)  # by a kill after a shard was complete: it may hold all its images once more
    counts = sum_counts(markers)
    by_status = {name.removeprefix("status/"): n for name, n in counts.items() if name.startswith("status/")}
    if not by_status.get("success"):
        if not any(status.startswith("http_") for status in by_status):
            _forget(out)  # nobody answered at all: rather our network's fault than theirs
        raise InputError(nothing(by_status))
    write_json(out / SIZES, {f"{marker.shard}.tar": marker.counts.get("status/success", 0) for marker in markers})
    if target:
        digests = {file: digest for marker in markers for file, digest in marker.files.items()}
        Target(target).prune(digests)
        Target(target).push([*(out / file for file in digests), out / SIZES], digests)
    tars = [replace(marker, files={f: d for f, d in marker.files.items() if f.endswith(".tar")}) for marker in markers]
    by_failure = Counter[str](dict.fromkeys(FAILURES, 0))
    for status, count in by_status.items():
        if failure := failure_of(status):
            by_failure[failure] += count
    return {
        "links": counts["links"],
        "success": by_status["success"],
        "retryable": by_failure["transient"],
        "asked": sum(marker.counts["asked"] for marker in markers if marker.shard in again or marker.shard not in complete),
        "bytes": counts["bytes"],
        "shards": len(markers),
        "by_failure": dict(by_failure),
        "by_status": by_status,
        "digest": digest_of_markers(tars),
    }


class _CopiedWork:
    """Work on shards whose files are copied to a target before the shard counts as complete."""

    def __init__(self, make_work: MakeWork, target: str) -> None:
        self._work = make_work()
        self._target = Target(target)

    def share(self, workers: int) -> None:
        if isinstance(self._work, SharedWork):
            self._work.share(workers)

    def __call__(self, table: pa.Table, scratch: Path) -> Mapping[str, int]:
        counts = self._work(table, scratch)
        self._target.push(sorted(scratch.glob("[!.]*")))
        return counts


def _has_failure(marker: Marker, retry: Retry) -> bool:
    """Whether a shard has links that are to be asked for again."""
    statuses = [name.removeprefix("status/") for name in marker.counts if name.startswith("status/")]
    return any(asked_again(failure_of(status), retry) for status in statuses)


_SAMPLE_COLUMNS = (
    *("key", "url", "caption", "entities", "status", "error_message", "sha256", "phash"),
    *("width", "height", "original_width", "original_height"),
)


def _samples(rows: Sequence[Row], results: Results) -> Iterator[tuple[str, bytes]]:
    """The files of a tar in order: image, key.json, key.txt of every image obtained, one image in memory at a time."""
    for row in rows:
        if row["status"] == "success":
            key = row["key"]
            yield f"{key}.{row['extension']}", results.body(key)
            yield f"{key}.json", json.dumps({name: row[name] for name in _SAMPLE_COLUMNS}, indent=4).encode()
            yield f"{key}.txt", (row["caption"] or "").encode()


def _stats(rows: Sequence[Row]) -> dict[str, Any]:
    """img2dataset's counts of a shard, without its clock times: they would differ from run to run."""
    successes = sum(row["status"] == "success" for row in rows)
    bodies = sum(row["sha256"] is not None for row in rows)
    return {
        "count": len(rows),
        "successes": successes,
        "failed_to_download": len(rows) - bodies,
        "failed_to_resize": bodies - successes,
        "status_dict": dict(Counter(row["status"] for row in rows).most_common()),
    }


def corpus_files(corpus: Path, columns: Sequence[str]) -> list[Path]:
    """The files of the corpus' kept rows. InputError if there are none, or if one lacks a column."""
    files = sorted((corpus / "kept").glob("*.parquet"))
    if not files:
        raise InputError(f"{corpus / 'kept'}: no parquet files there; run the filter first")
    for file in files:
        if missing := [name for name in columns if name not in columns_of(file)]:
            raise InputError(f"{file}: column {missing[0]!r} is missing; it is not a corpus that the filter wrote")
    if not sum(pq.read_metadata(file).num_rows for file in files):
        raise InputError(f"{corpus / 'kept'}: the corpus holds no links; loosen the filter's rules")
    return files


def columns_of(file: Path) -> list[str]:
    """The names of a parquet file's columns. InputError if it cannot be read."""
    try:
        return list(pq.read_schema(file).names)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{file}: cannot be read ({reason}); delete {file.parent.parent} and run the filter again") from None


def check_keys(keys: pa.ChunkedArray, file: Path) -> None:
    """InputError if a key is none of ours: keys name files, so that a stranger's could point anywhere."""
    good = pc.fill_null(pc.match_substring_regex(keys, rf"^[0-9a-f]{{{KEY_LENGTH}}}$"), False)
    if not pc.all(good).as_py():
        key = keys.filter(pc.invert(good))[0].as_py()
        raise InputError(
            f"{file}: key {key!r:.80} is not {KEY_LENGTH} hex digits; run the filter on the links, it makes the keys"
        )


def without_repeats(table: pa.Table) -> pa.Table:
    """The first row of every key of a table sorted by key.

    A key is the name of an image. Rows that share one have the same URL and caption; a filter without rules keeps them all.
    """
    keys = table["key"].combine_chunks()
    first = np.ones(len(keys), bool)
    first[1:] = pc.not_equal(keys[1:], keys[:-1]).to_numpy(zero_copy_only=False)
    return table if first.all() else table.filter(pa.array(first))


def shard_files(out: Path) -> Iterator[tuple[str, Path]]:
    """The files and folders in `out` that belong to shards, each with the name of its shard."""
    for path in [*out.glob("[0-9]*"), *out.glob("_done/[0-9]*"), *out.glob("_work/[0-9]*")]:
        if shard := re.match(r"\d+", path.name):
            yield shard[0], path


def _forget(out: Path) -> None:
    for _, path in shard_files(out):
        _remove(path)


def _remove_strangers(out: Path, shards: set[str]) -> None:
    """Remove `sizes.json`, which says "complete", and what a larger corpus left behind, lest it be read along with ours."""
    (out / SIZES).unlink(missing_ok=True)
    for shard, path in shard_files(out):
        if shard not in shards:
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
