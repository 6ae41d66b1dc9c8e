"""Image shards as img2dataset lays them out: WebDataset tars, beside each a table of statuses and its counts, and `sizes.json`.

Beside `00000.tar` (key.jpg or another image, key.json, key.txt per image) lie `00000.index`, which says where in it the samples
are, `00000.parquet`, with the status of every link, and `00000_stats.json`; `sizes.json` tells open_clip's loader how many
samples each tar holds.
"""

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from filtering import InputError
from filtering.files import write_json, write_table
from filtering.images.captioned import CaptionedImage, Row, json_value
from filtering.images.fetch import Outcome
from filtering.images.image_config import Resized
from filtering.images.kept_rows import Cut
from filtering.images.mirror import SIZES, Target
from filtering.images.reasons import FAILURES, failure_of
from filtering.images.results import Record, Results, Retry, Validity, asked_again
from filtering.schema import STATUS
from filtering.shards import Describe, MakeWork, Marker, Runner, SharedWork, digest_of_markers, finished, reopen, sum_counts
from filtering.tars import write_tar
from storage.copies import discard, names_in
from storage.indexes import write_index
from storage.tar_index import index_path

Nothing = Callable[[Mapping[str, int], Row], str]
"""Words the mistake if there is not one image: statuses and their counts, and a row of the most frequent, in; message out."""


def write_shard(
    images: Iterable[CaptionedImage], extra: Sequence[pa.Field], scratch: Path, validity: Validity, results: Results
) -> Mapping[str, int]:
    """Write tar, index, statuses and stats of images into `scratch`, named after it; returns the shard's counts.

    All images are settled in `results`. `extra` are the columns that rows carry along.
    """
    images = sorted(images, key=lambda image: image.key)
    found = [{**image.columns(), **results.record(image)} for image in images]
    tar = scratch / f"{scratch.name}.tar"
    write_tar(tar, _samples(images, found, results, [field.name for field in extra]))
    write_index(tar, index_path(tar))
    schema = pa.schema([*STATUS, *extra], metadata=validity.metadata())
    write_table(scratch / f"{scratch.name}.parquet", pa.Table.from_pylist(found, schema=schema))
    write_json(scratch / f"{scratch.name}_stats.json", _stats(found))
    return {
        "links": len(images),
        "captions": sum(len(image.rows) for image in images),
        "asked": results.asked,
        "bytes": sum(row["bytes"] for row in found),
        **{f"status/{status}": count for status, count in Counter(row["status"] for row in found).items()},
    }


def finish(outcome: Outcome, resize: Callable[[bytes], Resized]) -> tuple[Record, bytes]:
    """What became of a link, as `Results` keeps it, and the file of its image."""
    obtained = outcome.status == "success"
    resized = resize(outcome.body) if obtained else Resized(status=outcome.status, message=outcome.message)
    if resized.status in ("truncated", "undecodable") and not outcome.delimited:
        resized = replace(
            resized, status="incomplete", message="a part of an image, from a server that did not say how large it is"
        )
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
    cut: Cut,
    out: Path,
    *,
    run: Runner,
    fingerprint: str,
    label: str,
    retry: Retry = "none",
    at_once: int = 1,
    cores: int = 1,
    describe: Describe | None = None,
    target: str = "",
    nothing: Nothing,
) -> dict[str, Any]:
    """Run the work over all shards and write `sizes.json`; returns and raises what `download_corpus` does.

    Complete shards with a failure that `retry` names are worked on again. All files are copied to `target`, if that is not "".
    Every row of the corpus must be accounted for. `nothing` words the mistake if there is no image.
    """
    sources = cut.sources
    if target:
        Target(target).check()
        make_work = partial(_CopiedWork, make_work, target)
    _remove_strangers(out, {source.stem for source in sources})
    complete = {marker.shard: marker for source in sources if (marker := finished(source, out, fingerprint))}
    again = [shard for shard, marker in complete.items() if _has_failure(marker, retry)]
    reopen(out, again)
    markers = run(
        make_work,
        sources,
        out,
        fingerprint=fingerprint,
        label=label,
        unit="images",
        at_once=at_once,
        cores=cores,
        describe=describe,
    )
    for left in out.glob("_work/[0-9]*"):
        _remove(left)  # by a kill after a shard was complete: it may hold all its images once more
    fetched = [marker for marker in markers if marker.shard in again or marker.shard not in complete]
    summary = _summary(markers, fetched, cut.repeated)
    if summary["captions"] + cut.repeated != cut.rows:
        told = f"{summary['captions']} rows of the corpus and {cut.repeated} repeated ones"
        raise RuntimeError(f"{out}: its shards tell of {told}, but there are {cut.rows}")
    by_status = summary["by_status"]
    if not summary["success"]:
        message = nothing(by_status, _example(out, max(by_status, key=by_status.__getitem__)))
        if not any(status.startswith("http_") for status in by_status):
            _forget(out)  # nobody answered at all: rather our network's fault than theirs
        raise InputError(message)
    write_json(out / SIZES, {f"{marker.shard}.tar": marker.counts.get("status/success", 0) for marker in markers})
    if target:
        digests = {file: digest for marker in markers for file, digest in marker.files.items()}
        Target(target).prune(digests)
        Target(target).push([*(out / file for file in digests), out / SIZES], digests)
    return summary


def _summary(markers: Sequence[Marker], fetched: Iterable[Marker], repeated: int) -> dict[str, Any]:
    """What `download_corpus` returns. `fetched` are the shards that this run worked on."""
    counts = sum_counts(markers)
    by_status = {name.removeprefix("status/"): n for name, n in counts.items() if name.startswith("status/")}
    by_failure = Counter[str](dict.fromkeys(FAILURES, 0))
    for status, count in by_status.items():
        if failure := failure_of(status):
            by_failure[failure] += count
    tars = [replace(marker, files={f: d for f, d in marker.files.items() if f.endswith(".tar")}) for marker in markers]
    return {
        "links": counts["links"],
        "captions": counts["captions"],
        "repeated": repeated,
        "success": by_status.get("success", 0),
        "retryable": by_failure["transient"],
        "asked": sum(marker.counts["asked"] for marker in fetched),
        "bytes": counts["bytes"],
        "shards": len(markers),
        "by_failure": dict(by_failure),
        "by_status": by_status,
        "digest": digest_of_markers(tars),
    }


def _example(out: Path, status: str) -> Row:
    """The first row with this status in the tables of some shards."""
    for table in sorted(out.glob("[0-9]*.parquet")):
        if len(found := pq.read_table(table, filters=[("status", "=", status)])):
            return dict(found.slice(0, 1).to_pylist()[0])
    raise RuntimeError(f"{out}: no table tells of {status!r}, which its shards counted")


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
_CAPTION_COLUMNS = ("captions", "caption_entities")


def _samples(
    images: Sequence[CaptionedImage], rows: Sequence[Row], results: Results, extra: Sequence[str]
) -> Iterator[tuple[str, bytes]]:
    """The files of a tar in order: image, key.json, key.txt of every image obtained, one image in memory at a time."""
    for image, row in zip(images, rows, strict=True):
        if row["status"] == "success":
            told = {name: row[name] for name in _SAMPLE_COLUMNS}
            told |= {name: row[name] for name in _CAPTION_COLUMNS if row[name] is not None}
            told |= {name: json_value(row[name]) for name in extra}
            yield f"{image.key}.{row['extension']}", results.body(image)
            yield f"{image.key}.json", json.dumps(told, indent=4).encode()
            yield f"{image.key}.txt", (row["caption"] or "").encode()


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


def shard_files(out: Path) -> Iterator[tuple[str, Path]]:
    """The files and folders in `out` that belong to shards, each with the name of its shard."""
    files = (folder / name for folder in (out, out / "_done") for name in names_in(folder))
    for path in [*files, *out.glob("_work/[0-9]*")]:
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
        discard(path)
