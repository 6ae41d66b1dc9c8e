"""Whether a benchmark's folder is fit to be scored: known in seconds, before hours are spent on it.

Every file is looked at (there, not empty, not cut short); a spread sample is decoded and held against the evaluator's rules.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from owseg import InputError
from owseg.evaluation.convert import SOURCE
from owseg.evaluation.datasets import (
    BENCHMARKS,
    EvalDataset,
    Item,
    UnreadableError,
    find_items,
    read_image,
    read_label,
)
from owseg.photos import open_image

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
    with _threads() as threads:
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


def refuse_unfit(
    benchmark: EvalDataset,
    items: Sequence[Item],
    *,
    unreadable: Literal["stop", "skip"] = "stop",
    decode_all: bool,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Raise InputError, naming the first few, where items cannot be scored: what stops an evaluation does so before it begins.

    Decodes every image and label map, or those alone that are cut short; what cannot be decoded counts where it is to "stop".
    advance: called after each item.
    """

    def look(item: Item) -> str | None:
        if not decode_all and all(_looks_whole(path) for path in (item.image, item.label)):
            return None
        return _decode(benchmark, item, skip_unreadable=unreadable == "skip")

    problems = []
    with _threads() as threads:
        for problem in threads.map(look, items):
            problems += [problem] if problem else []
            advance()
    if problems:
        several = f"{len(problems)} of {len(items)} images of {benchmark.name} cannot be scored: " if len(problems) > 1 else ""
        cure = "" if unreadable == "skip" else "; mend them, or leave out what cannot be read with evaluate.unreadable=skip"
        raise InputError(f"{several}{'; '.join(_summed(problems))}{cure}")


@contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """Where the block is left early, by Ctrl-C for one, what waits is dropped."""
    threads = ThreadPoolExecutor(THREADS)
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)


def _looks_whole(path: Path) -> bool:
    """Whether a file that is there is not empty and, where its kind has an end mark, ends with it."""
    if path.suffix.lower() in (".jpg", ".jpeg", ".png"):
        return _ends_well(path) is not False
    return path.stat().st_size > 0


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


def _decode(benchmark: EvalDataset, item: Item, *, skip_unreadable: bool = False) -> str | None:
    """What the evaluator would refuse the item for."""
    try:
        read_label(benchmark, item, read_image(item.image).shape[:2])
    except InputError as error:
        return None if skip_unreadable and isinstance(error, UnreadableError) else str(error)
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
            with open_image(item.label) as image:
                if image.info.get(SOURCE) == "coco_panoptic":
                    return ["label maps made of the panoptic annotations, which differ from the official ones in places"]
        except OSError:
            continue
    return []
