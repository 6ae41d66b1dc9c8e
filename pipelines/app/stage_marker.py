"""Completeness of a stage is a file written last, `<stage>.done.json` in the run's folder, and that what it lists is there."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from filtering.files import Loss, Recorded, losses, record_of, write_json
from filtering.shards import output_of_shards
from storage.understood import MISFITS, fits

_SHAPE = {
    "fingerprint": str,
    "digest": str,
    "seconds": float,
    "result": {},
    "output": str,
    "shards": (int, None),
    "files": {str: [(int, None), str]},
}
_NAMED = 3
"""Files that a message names."""


@dataclass(frozen=True, kw_only=True)
class StageMarker:
    """What a finished stage leaves behind. `digest` is of its output, and independent of the number of workers."""

    fingerprint: str
    digest: str
    seconds: float
    result: dict[str, Any] = field(default_factory=dict)
    """What later stages and the summary need: paths relative to the run's folder, scores."""
    output: str = ""
    """Where the output lies, relative to the run's folder; "" in markers of older versions."""
    shards: int | None = None
    """How many shards the output has, each with a record of its files; None: it has none, or it is an older marker."""
    files: dict[str, list[Any]] = field(default_factory=dict)
    """What else the stage wrote, relative to the run's folder: `Recorded` of each."""

    @property
    def recorded(self) -> dict[str, Recorded]:
        """The files beside those of shards."""
        return {name: Recorded(*values) for name, values in self.files.items()}


def write_marker(run_dir: Path, stage: str, marker: StageMarker) -> None:
    """Say that `stage` is complete. Call it when everything else is on disk."""
    write_json(_path(run_dir, stage), asdict(marker))


def read_marker(run_dir: Path, stage: str, fingerprint: str | None = None) -> StageMarker | None:
    """The marker of a stage that was completed for this fingerprint (of its config, its input and its code), or for any.

    None as well where the marker is damaged: the stage is then done anew.
    """
    try:
        marker = StageMarker(**json.loads(_path(run_dir, stage).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except MISFITS:
        return None
    return marker if fingerprint in (None, marker.fingerprint) and fits(vars(marker), _SHAPE) else None


def remove_marker(run_dir: Path, stage: str) -> None:
    """Say that `stage` is not complete. Call it before anything on disk changes."""
    _path(run_dir, stage).unlink(missing_ok=True)


def record_files(run_dir: Path, files: Iterable[Path]) -> dict[str, list[Any]]:
    """`StageMarker.files` of what a stage has written."""
    return {path.relative_to(run_dir).as_posix(): list(record_of(path)) for path in files}


def files_of(run_dir: Path, marker: StageMarker) -> dict[str, Recorded]:
    """All that a complete stage has written, relative to the run's folder."""
    shards = output_of_shards(run_dir / marker.output, marker.shards) if marker.output else {}
    return {f"{marker.output}/{name}": recorded for name, recorded in shards.items()} | marker.recorded


def lost_files(run_dir: Path, marker: StageMarker, *, verify: bool = False) -> dict[str, Loss]:
    """What of a complete stage's output is no longer as it was written; with `verify` digests are compared, too."""
    return losses(run_dir, files_of(run_dir, marker), verify=verify)


def describe_losses(lost: Mapping[str, Loss], total: int) -> str:
    """In a few words: "1 of 37 files missing (shards/00003.tar), 2 of another size (...)"."""
    parts: list[str] = []
    for loss in get_args(Loss):
        names = [name for name, how in lost.items() if how == loss]
        if names:
            named = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
            parts.append(f"{len(names)} {'' if parts else f'of {total} files '}{loss} ({named})")
    return ", ".join(parts)


def _path(run_dir: Path, stage: str) -> Path:
    return run_dir / f"{stage}.done.json"
