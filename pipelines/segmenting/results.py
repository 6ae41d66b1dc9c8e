"""What `segment` writes of a photo or a video, and the line that it says of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.app.config import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from owseg.predict import Segmentation

OVERLAY, MASK, VIDEO = ".overlay.png", ".mask.png", ".overlay.mp4"
MASKS = ".masks"
"""Ends the name of the folder of a video's masks."""
MAX_LISTED = 5
"""Labels in a line; the JSON has all of them."""


def is_result(path: Path) -> bool:
    """Whether this verb wrote a file."""
    made = {path.with_name(f"{path.name.removesuffix('.json')}{end}") for end in (OVERLAY, VIDEO)}
    below = any(folder.name.endswith(MASKS) and folder.with_suffix(VIDEO).is_file() for folder in path.parents)
    return path.name.endswith((OVERLAY, MASK, VIDEO)) or (path.suffix == ".json" and any(map(Path.is_file, made))) or below


def write_photo(result: "Segmentation", stem: Path, made_by: dict[str, Any]) -> Path:
    """Write overlay, mask and JSON; returns the overlay's path. Raises ConfigError where they cannot be written."""
    height, width = result.labels.shape
    told = {**made_by, "width": width, "height": height, "labels": label_table(result.shares(), result.colours)}
    told |= {"nothing": round(result.nothing, 6), "threshold": result.threshold}
    told |= {"best": {"label": result.best.label, "score": round(result.best.score, 6)}}
    overlay = stem.with_name(stem.name + OVERLAY)
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        result.mask().save(stem.with_name(stem.name + MASK))
        write_told(told, stem)
        result.overlay().save(overlay)
    except OSError as error:
        raise ConfigError(f"--out: {stem} cannot be written ({error.strerror or error})") from None
    return overlay


def write_told(told: Mapping[str, Any], stem: Path) -> None:
    """Write the JSON beside an overlay."""
    text = json.dumps(told, indent=2, ensure_ascii=False) + "\n"
    stem.with_name(f"{stem.name}.json").write_text(text, encoding="utf-8", errors="backslashreplace")


def label_table(shares: Mapping[str, float], colours: "np.ndarray") -> list[dict[str, Any]]:
    """Each label with its index in masks, its colour and its share of the pixels."""
    return [
        {"index": index, "label": name, "colour": colour.tolist(), "share": round(share, 6)}
        for index, ((name, share), colour) in enumerate(zip(shares.items(), colours, strict=True), 1)
    ]


def shares_line(shares: Mapping[str, float], nothing: float) -> str:
    """The labels with the largest shares, and nothing's."""
    from owseg.predict import percent

    there = {name: share for name, share in shares.items() if share > 0}
    largest = sorted(there, key=lambda name: -there[name])[:MAX_LISTED]
    others = [f"{len(there) - MAX_LISTED} more"] if len(there) > MAX_LISTED else []
    last = [f"nothing {percent(nothing)}"] if nothing else []
    return ", ".join([*(f"{name} {percent(there[name])}" for name in largest), *others, *last])
