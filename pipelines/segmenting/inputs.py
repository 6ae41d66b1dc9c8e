"""Which photos and videos a command line means, and which labels."""

import os
from collections.abc import Iterable
from pathlib import Path

from owseg.listing import counted, files_below
from owseg.videos import SUFFIXES as VIDEOS
from pipelines.app.config import ConfigError
from pipelines.segmenting.results import is_result

PHOTOS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".jp2", ".avif")
"""What is taken for a photo in a folder; a file that is named itself may have any."""


def read_labels(text: str) -> list[str]:
    """The labels of "cat, wooden table, sky", or of "@FILE" with one a line (which may hold commas)."""
    if not text.startswith("@"):
        return text.split(",") if text.strip() else []
    try:
        return [line for line in Path(text[1:]).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--labels: {text[1:]} cannot be read ({error})") from None


def find_inputs(inputs: Iterable[Path]) -> tuple[list[tuple[Path, str]], list[str]]:
    """Each photo or video once with the name of its results, and a line on what of each folder is not looked at.

    The name is that of the file, below a folder with the way to it. A folder without any is listed itself. Links to folders
    are followed, to each folder once. What this verb wrote is not taken for an input; names that would fall together are
    numbered.
    """
    seen: set[str] = set()
    names: set[str] = set()
    found: list[tuple[Path, str]] = []
    notes: list[str] = []
    for given in inputs:
        inside, others = files_in(given) if given.is_dir() else ([], [])
        if inside and others:
            notes.append(
                f"{given}: {counted(others, given)} of other kinds not looked at; photos are {', '.join(PHOTOS)}, "
                f"videos {', '.join(VIDEOS)}"
            )
        for path in inside or [given]:
            real = os.path.realpath(path)  # of a link to itself, too, which is missed when it is read
            if real in seen:
                continue
            seen.add(real)
            name = stem = path.relative_to(given).with_suffix("").as_posix() if inside else path.stem
            number = 1
            while name.casefold() in names:
                number += 1
                name = f"{stem}-{number}"
            names.add(name.casefold())
            found.append((path, name))
    return found, notes


def files_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """The photos and videos below a folder, and its files of other kinds."""
    files = sorted(path for path in files_below(folder) if not is_result(path))
    known = [path for path in files if path.suffix.lower() in (*PHOTOS, *VIDEOS)]
    return known, [path for path in files if path not in known]
