"""Completeness of a stage is a file written last: `<stage>.done.json` in the run's folder."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filtering.files import write_json


@dataclass(frozen=True, kw_only=True)
class StageMarker:
    """What a finished stage leaves behind. `digest` is of its output, and independent of the number of workers."""

    fingerprint: str
    digest: str
    seconds: float
    result: dict[str, Any] = field(default_factory=dict)
    """What later stages and the summary need: paths relative to the run's folder, scores."""


def write_marker(run_dir: Path, stage: str, marker: StageMarker) -> None:
    """Say that `stage` is complete. Call it when everything else is on disk."""
    write_json(_path(run_dir, stage), asdict(marker))


def read_marker(run_dir: Path, stage: str, fingerprint: str) -> StageMarker | None:
    """The marker of a stage that is complete for this fingerprint (of its config, its input and its code)."""
    try:
        marker = StageMarker(**json.loads(_path(run_dir, stage).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return marker if marker.fingerprint == fingerprint else None


def remove_marker(run_dir: Path, stage: str) -> None:
    """Say that `stage` is not complete. Call it before anything on disk changes."""
    _path(run_dir, stage).unlink(missing_ok=True)


def _path(run_dir: Path, stage: str) -> Path:
    return run_dir / f"{stage}.done.json"
