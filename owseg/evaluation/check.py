"""Whether a benchmark's folder is fit to be scored: known in seconds, before hours are spent on it.

Every file is looked at (there, not empty, not cut short); a spread sample is decoded and held against the evaluator's rules.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from owseg import InputError
from owseg.evaluation.convert import SOURCE
from owseg.evaluation.datasets import (
    BENCHMARKS,
    EvalDataset,
    Item,
    find_items,
    read_image,
    read_label,
)

SAMPLE = 32
"""Items decoded, spread over the set ..."""
WHOLE = 100
"""... unless it has at most this many, which are decoded all."""
THREADS = 8
ENDINGS = (b"\xff\xd9", b"IEND\xaeB`\x82")
"""How a complete JPEG and a complete PNG end."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found in a benchmark's folder. A set with problems cannot be scored; warnings are for people to judge."""

    images: int = 0
    decoded: int = 0
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """ "OK", "warning" or "problem"."""
        return "problem" if self.problems else "warning" if self.warnings else "OK"


def check_benchmark(benchmark: EvalDataset, root: Path) -> Report:
    """Look at every file of the set, and decode a sample and whatever looks cut short."""
    try:
        items = find_items(benchmark, root)
    except InputError as error:
        return Report(problems=(str(error),))
    with ThreadPoolExecutor(THREADS) as threads:
        seen = dict(zip(items, threads.map(lambda item: (_ends_well(item.image), _ends_well(item.label)), items), strict=True))
        there = [item for item in items if None not in seen[item]]
        cut_short = [item for item in there if False in seen[item]]
        chosen = list(dict.fromkeys([*cut_short, *_spread(there)]))
        decoded = list(threads.map(lambda item: _decode(benchmark, item), chosen))
    lost_images = [item.image for item in items if seen[item][0] is None]
    lost_labels = [item.label for item in items if seen[item][1] is None]
    problems = [
        *_missing("images", lost_images, len(items), benchmark.files.obtain(root)),
        *_missing("label maps", lost_labels, len(items), benchmark.files.convert(root)),
        *_summed(filter(None, decoded)),
    ]
    warnings = [*_count(benchmark, len(items)), *_source(chosen)]
    return Report(images=len(items), decoded=len(chosen), problems=tuple(problems), warnings=tuple(warnings))


def _ends_well(path: Path) -> bool | None:
    """Whether the file ends as an image does; None where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(-min(path.stat().st_size, 8), 2)
            return file.read().endswith(ENDINGS)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return False


def _missing(what: str, lost: Sequence[Path], of: int, remedy: str) -> list[str]:
    return [f"{len(lost)} of {of} {what} are missing, the first is {lost[0]}: {remedy}"] if lost else []


def _spread(items: Sequence[Item]) -> list[Item]:
    """A sample at even distances, the first and the last among it."""
    if len(items) <= WHOLE:
        return list(items)
    return [items[round(step * (len(items) - 1) / (SAMPLE - 1))] for step in range(SAMPLE)]


def _decode(benchmark: EvalDataset, item: Item) -> str | None:
    """What the evaluator would refuse the item for."""
    try:
        read_label(benchmark, item, read_image(item.image).shape[:2])
    except InputError as error:
        return str(error)
    return None


def _summed(problems: Iterable[str]) -> list[str]:
    """The first three, and how many more there are."""
    told = list(problems)
    return told if len(told) <= 3 else [*told[:3], f"and {len(told) - 3} more files like these"]


def _count(benchmark: EvalDataset, images: int) -> list[str]:
    """The official number binds sets with the official classes only."""
    whole = BENCHMARKS.get(benchmark.whole.name)
    if whole is None:
        return []
    official = whole.files.count
    if images == official or len(benchmark.whole.names) != len(whole.names):
        return []
    return [f"{images} images, the official set has {official}: its scores cannot be compared with published ones"]


def _source(items: Sequence[Item]) -> list[str]:
    """Whether the label maps were made of annotations that are not the official source."""
    for item in items:
        try:
            with Image.open(item.label) as image:
                if image.info.get(SOURCE) == "coco_panoptic":
                    return ["label maps made of the panoptic annotations, which differ from the official ones in places"]
        except OSError:
            continue
    return []
