"""The stage protocol: a rule decides and never drops; work turns one shard into files; a marker written last says "complete".

Work does not know where it runs. `run_local` runs it here; `cluster.data` runs the same work on Ray, byte for byte.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from filtering.files import Recorded, digest_of, digest_of_file, losses, read_table, write_json, write_table
from storage.copies import discard


class Rule(Protocol):
    """Decides which rows stay: table of n rows in, boolean array of n out (true = keep). Pure, and never drops."""

    @property
    def name(self) -> str: ...

    def __call__(self, table: pa.Table) -> pa.BooleanArray: ...


def mark(table: pa.Table, rules: Iterable[Rule]) -> pa.Table:
    """`table` with a `drop_reason` column: the name of the first rule that refuses the row, null where all agree.

    A rule sees only the rows that those before it let pass: the second copy of a row that was refused is no duplicate.
    """
    reasons = np.full(table.num_rows, None, object)
    rows = np.arange(table.num_rows)
    left = table
    for rule in rules:
        keep = pc.fill_null(rule(left), False)
        chosen = keep.to_numpy(zero_copy_only=False)
        if not chosen.all():
            reasons[rows[~chosen]] = rule.name
            left, rows = left.filter(keep), rows[chosen]
    return table.append_column("drop_reason", pa.array(reasons, pa.string()))


def split(marked: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The one place that parts rows: (kept without `drop_reason`, dropped with it)."""
    kept = pc.is_null(marked["drop_reason"])
    return marked.filter(kept).drop_columns(["drop_reason"]), marked.filter(pc.invert(kept))


@dataclass(frozen=True, kw_only=True)
class Marker:
    """What a finished shard leaves behind: `files` maps each output's relative path to its SHA-256, `sizes` to its bytes."""

    shard: str
    fingerprint: str
    counts: dict[str, int]
    files: dict[str, str]
    sizes: dict[str, int] = field(default_factory=dict)
    """None in markers of older versions."""

    @property
    def recorded(self) -> dict[str, Recorded]:
        """The outputs as `losses` compares them."""
        return {name: Recorded(self.sizes.get(name), digest) for name, digest in self.files.items()}


class ShardWork(Protocol):
    """Turns the rows of one shard into files, and counts what happened.

    `scratch` is a folder of this shard alone. What the work writes there moves to the same relative path of the stage's
    output once the work returns. Names that open with a dot stay private: they survive a kill, so that interrupted work can
    take up where it stopped, and are deleted when the shard is complete.
    """

    def __call__(self, table: pa.Table, scratch: Path, /) -> Mapping[str, int]: ...


@runtime_checkable
class SharedWork(Protocol):
    """Work with limits that hold for all workers together, such as requests per second to one host."""

    def share(self, workers: int) -> None:
        """Told before the first shard: how many workers, this one among them, share the job."""


MakeWork = Callable[[], ShardWork]
"""Builds the work once per process, where models are loaded and connections opened. Must be picklable."""

Describe = Callable[[Mapping[str, int]], str]
"""A few words on how the work goes, from its counts so far."""

LIVE = ".live.json"
"""A private file in which work may count what it has done of an unfinished shard, for the progress to show. The count "rows"
tells how many rows are done; the others are described."""


class Runner(Protocol):
    """Runs work over parquet shards and returns their markers in the order of `sources`.

    `label` names the progress bar, `unit` what it counts, and `describe` comments on it. `at_once` is how many shards one
    worker may have in work at the same time, from as many threads: for work that mostly waits. `cores` is how many cores the
    processes of one worker keep busy: there are fewer workers then.
    """

    def __call__(
        self,
        make_work: MakeWork,
        sources: Sequence[Path],
        out: Path,
        *,
        fingerprint: str,
        label: str,
        unit: str = "rows",
        at_once: int = 1,
        cores: int = 1,
        describe: Describe | None = None,
    ) -> list[Marker]: ...


def rows_of(source: Path) -> int:
    """The rows that a source stands for: its own, or those that it points at, if its metadata tell their number."""
    metadata = pq.read_metadata(source)
    told = (metadata.metadata or {}).get(b"rows")
    return int(told) if told is not None else int(metadata.num_rows)


def write_pointer(path: Path, rows: list[dict[str, object]], total: int) -> None:
    """Write a source that holds no rows itself but says where its `total` rows are to be found."""
    write_table(path, pa.Table.from_pylist(rows).replace_schema_metadata({"rows": str(total)}))


def run_local(
    make_work: MakeWork,
    sources: Sequence[Path],
    out: Path,
    *,
    fingerprint: str,
    label: str = "",
    unit: str = "rows",
    at_once: int = 1,
    cores: int = 1,
    describe: Describe | None = None,
) -> list[Marker]:
    """The plain `Runner`: in this process, in the order of `sources`, without progress."""
    found = [finished(source, out, fingerprint) for source in sources]
    if not all(found):
        work = make_work_for(1, make_work)

    def one(source: Path, marker: Marker | None) -> Marker:
        return marker or run_shard(work, source, out, fingerprint)

    if at_once == 1:
        return list(map(one, sources, found))
    with ThreadPoolExecutor(at_once) as threads:
        return list(threads.map(one, sources, found))


def make_work_for(workers: int, make_work: MakeWork) -> ShardWork:
    """The work of one of `workers` processes."""
    work = make_work()
    if isinstance(work, SharedWork):
        work.share(workers)
    return work


def reopen(out: Path, shards: Iterable[str]) -> None:
    """Take back that shards are complete: the next run does their work again, beside the files that they have."""
    for shard in shards:
        discard(marker_path(out, shard))


def run_shard(work: ShardWork, source: Path, out: Path, fingerprint: str) -> Marker:
    """Run `work` on one parquet shard, move its files into `out`, then write the marker. Safe to repeat after a kill."""
    name = source.stem
    scratch = out / "_work" / name
    scratch.mkdir(parents=True, exist_ok=True)
    for path in _outputs(scratch):  # left by an interrupted run, perhaps of another config
        path.unlink()
    counts = work(read_table(source), scratch)
    marker_path(out, name).unlink(missing_ok=True)  # of another config: from here on its files are no longer what it says
    files, sizes = {}, {}
    for path in _outputs(scratch):
        relative = path.relative_to(scratch)
        files[relative.as_posix()], sizes[relative.as_posix()] = digest_of_file(path), path.stat().st_size
        (out / relative).parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, out / relative)
    marker = Marker(
        shard=name,
        fingerprint=_shard_fingerprint(source, fingerprint),
        counts=dict(sorted(counts.items())),
        files=files,
        sizes=sizes,
    )
    write_json(marker_path(out, name), asdict(marker))
    shutil.rmtree(scratch)
    return marker


def _outputs(scratch: Path) -> list[Path]:
    """The files in a scratch folder that are not private, in a stable order."""
    files = sorted(path for path in scratch.rglob("*") if path.is_file())
    return [path for path in files if not any(part.startswith(".") for part in path.relative_to(scratch).parts)]


def finished(source: Path, out: Path, fingerprint: str) -> Marker | None:
    """The marker of `source` if its work is complete: same config, same input, and every output there in its size."""
    marker = read_marker(out, source.stem)
    if marker is None or marker.fingerprint != _shard_fingerprint(source, fingerprint):
        return None
    return None if losses(out, marker.recorded) else marker


def read_marker(out: Path, shard: str) -> Marker | None:
    """What a shard left when it was finished; None if there is no such record, or a damaged one."""
    try:
        return Marker(**json.loads(marker_path(out, shard).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def output_of_shards(out: Path, shards: int | None = None) -> dict[str, Recorded]:
    """The files in `out` that its shards left there, as recorded; those in folders like "_build" are no output but aids.

    Of a shard among the first `shards` that has no record, the record itself is named: it is missing.
    """
    found: dict[str, Recorded] = {}
    names = [f"{number:05d}" for number in range(shards or 0)]
    for name in names or sorted(path.name.partition(".")[0] for path in (out / "_done").glob("[0-9]*.done.json")):
        if marker := read_marker(out, name):
            found |= {file: recorded for file, recorded in marker.recorded.items() if not file.startswith("_")}
        else:
            found[marker_path(Path(), name).as_posix()] = Recorded(None, "")
    return found


def digest_of_markers(markers: Iterable[Marker]) -> str:
    """The digest of a stage's output: independent of the number of workers and of the order in which shards finished."""
    return digest_of(sorted((file, digest) for marker in markers for file, digest in marker.files.items()))


def sum_counts(markers: Iterable[Marker]) -> dict[str, int]:
    """The counts of all shards, added up."""
    total: dict[str, int] = {}
    for marker in markers:
        for reason, count in marker.counts.items():
            total[reason] = total.get(reason, 0) + count
    return dict(sorted(total.items()))


def marker_path(out: Path, shard: str) -> Path:
    """Where the record of a finished shard lies."""
    return out / "_done" / f"{shard}.done.json"


def _shard_fingerprint(source: Path, fingerprint: str) -> str:
    return digest_of([fingerprint, digest_of_file(source)])
