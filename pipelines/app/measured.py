"""How fast stages went and what room they took, from the folders of runs that have done them; else from the documentation."""

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from pipelines.app.run_files import LocalRun, RunFiles, read_json, run_files, settings_in
from storage import InputError
from storage.client import is_object_store
from storage.understood import MISFITS, json_lines

DOCUMENTED = "documented"
FILTER_ROWS_PER_CORE = 6750.0
"""docs/scale.md: 12.4 M rows in 15.3 minutes on two cores."""
FILTER_BYTES_PER_LINK = 3.594e9 / 12.4e6
"""docs/filter_measured.md: the most that lies on the disk beside the input while 12.4 M links are filtered."""
KEPT_SHARE = 0.65
"""docs/scale.md: links that the CC4M-style list keeps of CC12M."""
OBTAINED_SHARE = 0.62
"""docs/scale.md: links of CC12M that others still obtained in 2025."""
IMAGES_PER_SECOND_AND_CORE = 355 / 2
"""docs/download_measured.md: from servers that answer at once. The web is slower."""
BYTES_PER_PIXEL = 220e9 / 4_997_200 / 256**2
"""docs/scale.md: images of 256 pixels, JPEG of quality 95, with their share of tars and tables."""
SCORE_BYTES_PER_IMAGE = 60_000
"""A bound for the counts of an image in 171 classes, before compression, and for pictures."""
MOST_SIBLINGS = 20
_STARTING = 10
"""A run with so many times fewer links says nothing of a rate."""

Like = Callable[[dict[str, Any]], bool]
"""Whether a run with such settings does the same work."""


@dataclass(frozen=True)
class Found:
    """A figure and where it comes from: "this run", a folder's name, or "documented"."""

    value: float
    source: str


class Measured:
    """What a run's folder, and those beside it, tell of earlier work; the own first, then the newest or the most alike."""

    def __init__(self, run_dir: str) -> None:
        self.own = run_files(run_dir)
        self._folders: list[tuple[str, RunFiles]] = [("this run", self.own), *_siblings(run_dir)]

    def find(
        self,
        read: Callable[[RunFiles], float | None],
        documented: float | None = None,
        *,
        like: Like = lambda settings: True,
        links: tuple[str, float] | None = None,
    ) -> Found | None:
        """The first figure that `read` finds in a folder, else the documented one; None where there is none either.

        Of other runs only those count whose settings are `like` the run's own. links: the stage whose figure it is, and how
        many it is going to have: the run with the most similar number comes first, and one with a tenth or less does not
        count, as most of its time went into starting.
        """
        for name, files in self._most_alike(*links) if links else self._folders:
            with suppress(*MISFITS):  # of another version, or damaged
                if (files is self.own or like(settings_of(files))) and (value := read(files)):
                    return Found(value, name)
        return None if documented is None else Found(documented, DOCUMENTED)

    def _most_alike(self, stage: str, links: float) -> list[tuple[str, RunFiles]]:
        own, *others = self._folders
        apart: list[tuple[float, tuple[str, RunFiles]]] = []
        for folder in others:
            with suppress(*MISFITS):  # it has not done the stage, or is damaged
                ratio = float(result_of(folder[1], stage)["links"]) / max(links, 1.0)
                if ratio > 1 / _STARTING:
                    apart.append((abs(math.log(ratio)), folder))
        return [own, *(folder for _, folder in sorted(apart, key=lambda entry: entry[0]))]


def _siblings(run_dir: str) -> Iterator[tuple[str, RunFiles]]:
    if is_object_store(run_dir):
        return
    folder = Path(run_dir)
    with suppress(OSError):
        others = [path for path in folder.parent.iterdir() if path != folder and (path / "config.yaml").is_file()]
        for path in sorted(others, key=lambda path: -path.stat().st_mtime)[:MOST_SIBLINGS]:
            yield path.name, LocalRun(path)


def settings_of(files: RunFiles) -> dict[str, Any]:
    """The settings of a run as its folder keeps them; {} where they cannot be read."""
    with suppress(InputError):
        return settings_in(files.read("config.yaml") or b"", files.name)
    return {}


def result_of(files: RunFiles, stage: str) -> dict[str, Any]:
    """What a complete stage came to, with its "seconds"; raises KeyError where it is not complete."""
    marker = read_json(files, f"{stage}.done.json")
    return {**marker["result"], "seconds": marker["seconds"]}


def bytes_below(files: RunFiles, folder: str, unless: str = "") -> int:
    """The bytes of all files in a folder, without those in the folder `unless`."""
    return sum(
        size
        for name, size in files.sizes.items()
        if name.startswith(f"{folder}/") and not (unless and name.startswith(f"{unless}/"))
    )


def filter_rate(files: RunFiles) -> float:
    """Links in a second."""
    result = result_of(files, "filter")
    return float(result["links"] / result["seconds"])


def kept_share(files: RunFiles) -> float:
    """Of the links, the share that the corpus keeps."""
    result = result_of(files, "filter")
    return float(result["kept"] / result["links"])


def corpus_bytes(files: RunFiles) -> float:
    """What lies in the corpus' folder for a link of the source."""
    return bytes_below(files, "corpus") / float(result_of(files, "filter")["links"])


def download_rate(files: RunFiles) -> float | None:
    """Links in a second, of a run that asked for all of its own."""
    result = result_of(files, "download")
    return float(result["asked"] / result["seconds"]) if result["asked"] >= 0.9 * result["links"] else None


def obtained_share(files: RunFiles) -> float:
    """Of the links, the share that gave an image."""
    result = result_of(files, "download")
    return float(result["success"] / result["links"])


def bytes_per_pixel(files: RunFiles) -> float:
    """What lies in the shards' folder for a pixel of an image whose sides are `image_size`."""
    side = settings_of(files)["download"]["image"]["image_size"]
    return bytes_below(files, "shards") / float(result_of(files, "download")["success"] * side**2)


def features_rate(method: str) -> Callable[[RunFiles], float | None]:
    """Images in a second of which a worker makes a method's features."""
    return lambda files: float(result_of(files, f"features-{method}")["images_per_second_and_worker"])


def pairs_rate(method: str) -> Callable[[RunFiles], float | None]:
    """A method's image-caption pairs in a second: the median of its step log."""

    def read(files: RunFiles) -> float | None:
        lines = json_lines(files.read(f"train/{method}/metrics.jsonl") or b"")
        rates = [line["samples_per_second"] for line in lines if line.get("samples_per_second")]
        return median(rates) if rates else None

    return read


def seconds_per_image(method: str) -> Callable[[RunFiles], float | None]:
    """What a worker takes to label an image."""

    def read(files: RunFiles) -> float | None:
        return float(result_of(files, "evaluate")["averages"][method]["seconds_per_image"])

    return read
