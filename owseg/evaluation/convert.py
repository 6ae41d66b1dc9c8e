"""Label maps of the benchmarks from their official sources: what every source has in common.

A source's module plans: it checks what it was given and makes a job for each image. A job draws its image's label maps, here or
in another process. Each finished file names the set that it was made of, so that a later run keeps it, and so that maps of two
sources with the same file names (COCO-Object from COCO-Stuff or from the panoptic annotations) do not mix.
"""

import io
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from owseg import InputError
from owseg.photos import UNREADABLE, open_image

log = logging.getLogger(__name__)

SOURCE = "Source"
"""The PNG text that names the set that a label map was made of."""


class Job(Protocol):
    """One image of a source. Jobs travel to other processes."""

    @property
    def split(self) -> str:
        """The official split that the image belongs to."""
        ...

    @property
    def targets(self) -> tuple[Path, ...]:
        """The files to be made."""
        ...

    def draw(self) -> Sequence[np.ndarray]:
        """The label maps [H, W] uint8 of `targets`, in order. Raises InputError that names the broken source."""
        ...


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be made of a source."""

    set: str
    """Name of the source's kind, kept in every file."""
    jobs: Sequence[Job]
    official: Mapping[str, int]
    """Images of each split of the official source."""
    lists: Mapping[Path, str] = field(default_factory=dict)
    """Further files, with their content."""


def remaining(plan: Plan) -> list[Job]:
    """The jobs that lack a file, or whose file is damaged. Raises InputError for a file that was made of another source."""
    lacking = [(job, [target for target in job.targets if not is_made(target, plan.set)]) for job in plan.jobs]
    for target in (target for _, missing in lacking for target in missing if target.exists()):
        log.warning("%s: not a readable label map; it is made again", target)
    return [job for job, missing in lacking if missing]


def run_job(job: Job, made_of: str) -> int:
    """Write the label maps that are not there yet; returns how many."""
    missing = [not is_made(target, made_of) for target in job.targets]
    for target, label, absent in zip(job.targets, job.draw(), missing, strict=True):
        if absent:
            content = io.BytesIO()
            text = PngInfo()
            text.add_text(SOURCE, made_of)
            Image.fromarray(label).save(content, "PNG", pnginfo=text)
            write_file(target, content.getvalue())
    return sum(missing)


def is_made(target: Path, made_of: str) -> bool:
    """Whether the label map is there and whole, made of this set or by other tools. Raises InputError if of another set."""
    try:
        with open_image(target) as image:
            source = image.info.get(SOURCE, made_of)
            image.verify()
    except UNREADABLE:  # missing, or damaged
        return False
    if source != made_of:
        raise InputError(f"{target} was made of the set '{source}', not '{made_of}'; delete those maps or choose another ROOT")
    return True


def write_file(target: Path, content: bytes) -> None:
    """Write under another name, then rename: what bears the name is complete. Raises InputError where it cannot be written."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, target)
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror})") from error


def lookup(known: Mapping[int, int]) -> np.ndarray:
    """A table [256] int16 of stored value → label, -1 where `known` has none."""
    table = np.full(256, -1, np.int16)
    table[list(known)] = list(known.values())
    return table


def relabel(stored: np.ndarray, table: np.ndarray, file: Path, what: str) -> np.ndarray:
    """The label map [H, W] uint8 of stored values. Raises InputError that names `file` for a value that is not `what`."""
    labels: np.ndarray = table[stored]
    unknown = stored[labels < 0]
    if unknown.size:
        raise InputError(f"{file}: value {unknown[0]} is not {what}")
    return labels.astype(np.uint8)


def read_json(file: Path, *keys: str) -> dict[str, Any]:
    """A JSON object that has `keys`. Raises InputError."""
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{file}: not JSON ({error}); it may be cut short, so get it again") from error
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise InputError(f"{file}: has no {missing[0]!r}; is it the right file?")
    return dict(content)
