"""The runs' pictures of the same images, side by side."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from owseg.evaluation.pictures import IMAGE_KEY
from owseg.photos import UNREADABLE, open_image
from pipelines.comparisons.runs import FinishedRun
from pipelines.comparisons.scores import reference
from storage.understood import Noted

MOST_IMAGES = 8
MOST_WIDTH = 900
"""Pixels; larger pictures are made smaller, since all of them lie in the page."""
QUALITY = 82


@dataclass(frozen=True)
class Shown:
    """A picture of a run's prediction."""

    run: int
    method: str
    data: str
    """The picture itself, as a data: URL."""
    width: int
    height: int


@dataclass(frozen=True)
class SameImage:
    """An image with several runs' pictures of it."""

    dataset: str
    image: str
    shown: tuple[Shown, ...]


def same_images(runs: Sequence[FinishedRun]) -> tuple[list[SameImage], str]:
    """Images that at least two runs drew, one of each dataset before others, and what is to be said about the rest.

    Of each run its best method is shown, or that of the first run's best one where it has it.
    """
    found: dict[tuple[str, str], dict[int, tuple[str, Path]]] = {}
    drawn, silent = False, False
    for number, run in enumerate(runs):
        method = runs[0].best if runs[0].best in run.miou else run.best
        for path in run.pictures(method):
            drawn, known = True, False
            with Noted(path, run.notes, also=UNREADABLE), open_image(path) as picture:
                image, known = picture.info.get(IMAGE_KEY), True
            if not known:
                continue
            dataset = path.stem.rpartition("-")[0]
            if image is None:
                silent = silent or bool(dataset)  # a threshold sweep is of no image
            elif runs[0].same_images(run, dataset) and dataset in runs[0].miou[reference(runs[0], method)]:
                found.setdefault((dataset, str(image)), {})[number] = method, path
    shared = {key: of_runs for key, of_runs in found.items() if len(of_runs) > 1}
    chosen = _spread(list(shared))[:MOST_IMAGES]
    images = []
    for key in chosen:
        several = [_shown(number, *picture, runs[number].notes) for number, picture in sorted(shared[key].items())]
        if len(there := [one for one in several if one is not None]) > 1:
            images.append(SameImage(*key, tuple(there)))
    return images, _note(drawn=drawn, silent=silent, shared=len(shared), others=len(found) - len(shared), chosen=len(images))


def _spread(keys: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The first image of each dataset, then the second, and so on."""
    seen: dict[str, int] = {}
    places = []
    for key in keys:
        places.append(seen.setdefault(key[0], 0))
        seen[key[0]] += 1
    return [key for _, key in sorted(zip(places, keys, strict=True), key=lambda pair: pair[0])]


def _note(*, drawn: bool, silent: bool, shared: int, others: int, chosen: int) -> str:
    """What the reader should know of images that are not shown."""
    if not drawn:
        return "The runs drew no pictures (evaluate.pictures)."
    told = []
    if silent:
        told.append("Pictures of older versions do not say which image they show; evaluate again to have them here.")
    if not shared and others:
        told.append("The runs drew other images, or of other data: none was drawn by two of them.")
    elif others:
        told.append(f"{others} images were drawn by one run alone and are left out.")
    if shared > chosen:
        told.append(f"{chosen} of {shared} images that several runs drew are shown.")
    return " ".join(told)


def _shown(run: int, method: str, path: Path, notes: list[str]) -> Shown | None:
    """A picture as it lies in the page; None, with a note, of one that is damaged."""
    with Noted(path, notes, also=UNREADABLE):
        with open_image(path) as picture:
            small = picture.convert("RGB")
        small.thumbnail((MOST_WIDTH, MOST_WIDTH))
        content = io.BytesIO()
        small.save(content, "JPEG", quality=QUALITY)
        data = f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
        return Shown(run, method, data, small.width, small.height)
    return None
