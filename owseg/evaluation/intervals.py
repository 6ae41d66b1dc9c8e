"""How far a score could have come out otherwise: bootstrap intervals of mIoU over a set's images, and over trainings.

A benchmark's images are a sample, and mIoU is no mean over them: intersections and unions are summed first. So whole images
are drawn anew with replacement, as many as there are, and mIoU is computed of their sums: Efron's percentile bootstrap (1979).
Two methods are compared on the same draws, which takes out what makes images hard for both.
"""

import io
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np

from owseg import InputError
from owseg.evaluation.convert import write_file
from owseg.evaluation.datasets import averaged
from owseg.evaluation.metrics import class_iou_of

CHUNK = 64
"""Resamples that are added up at once: memory, not results."""
AVERAGE = "average"
"""The plain mean over the datasets of a row, beside them."""


class ImageCounts(NamedTuple):
    """What each image of a dataset adds to the intersection and the union of each class, in pixels."""

    ids: tuple[str, ...]
    intersection: np.ndarray
    """[images, classes] int64."""
    union: np.ndarray
    """[images, classes] int64."""


Row = Mapping[str, ImageCounts]
"""A row of the results table: counts by dataset."""


class Interval(NamedTuple):
    """Where a score lies with some confidence, in percent."""

    low: float
    high: float


class Difference(NamedTuple):
    """A difference of two scores and the interval that it lies in with some confidence, in points of percent."""

    mean: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out 0."""
        return not self.low <= 0 <= self.high


def write_image_counts(path: Path, counts: ImageCounts) -> None:
    """Write a compressed .npz; what bears the name is complete. Raises InputError where it cannot be written."""
    content = io.BytesIO()
    np.savez_compressed(content, ids=np.array(counts.ids, dtype=np.str_), intersection=counts.intersection, union=counts.union)
    write_file(path, content.getvalue())


def read_image_counts(path: Path) -> ImageCounts:
    """What `write_image_counts` wrote. Raises InputError that names a file that is missing or not of this kind."""
    try:
        with path.open("rb") as file, np.load(file) as stored:  # by a path, NumPy leaves damaged files open
            counts = ImageCounts(tuple(map(str, stored["ids"])), stored["intersection"], stored["union"])
            if counts.union.ndim != 2 or any(one.dtype.kind not in "iu" for one in (counts.intersection, counts.union)):
                raise ValueError("no whole numbers by image and class")
    except (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile, zlib.error) as error:
        reason = "no arrays" if "pickle" in str(error) else error  # NumPy advises to load it all the same
        raise InputError(f"{path}: not readable as counts by image ({reason}); run the evaluate stage again") from error
    if counts.intersection.shape != counts.union.shape or len(counts.ids) != len(counts.union):
        raise InputError(f"{path}: ids, intersection and union do not belong together; run the evaluate stage again")
    return counts


def row_intervals(runs: Sequence[Row], *, draws: int = 1000, seed: int = 0, level: float = 0.95) -> dict[str, Interval]:
    """Percentile intervals of mIoU by dataset, and of their "average".

    Several `runs` are trainings of one setting with other seeds; the score is then their mean, and the interval also covers
    what other seeds would have given. Raises InputError where runs have other datasets or images.
    """
    runs = _aligned(runs, runs[0])
    scores, drawn = _scores(runs), _resampled_scores(runs, draws, seed)
    return {name: _interval(drawn[name] + _seed_noise(scores[name], draws, seed), level) for name in scores}


def difference_intervals(
    a: Sequence[Row], b: Sequence[Row], *, draws: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, Difference]:
    """mIoU of a minus that of b with its percentile interval, by dataset and on "average".

    Both see the same resampled images, and with as many runs on both sides run k of a is compared with run k of b. Images are
    paired by id. Raises InputError where only one side has an image (it was skipped as unreadable, say): over what is left, the
    difference would not be that of the scores in the table.
    """
    a, b = _aligned(a, a[0]), _aligned(b, a[0])
    ours, theirs = _scores(a), _scores(b)
    our_draws, their_draws = (_resampled_scores(runs, draws, seed) for runs in (a, b))
    differences = {}
    for name in ours:
        if len(a) == len(b):
            noise = _seed_noise(ours[name] - theirs[name], draws, seed)
        else:
            noise = _seed_noise(ours[name], draws, seed) + _seed_noise(theirs[name], draws, seed)
        mean = float(ours[name].mean() - theirs[name].mean())
        differences[name] = Difference(mean, *_interval(our_draws[name] - their_draws[name] + noise, level))
    return differences


def _aligned(runs: Sequence[Row], like: Row) -> list[Row]:
    """The runs with the datasets and images of `like`, in its order."""
    return [_align(run, like) for run in runs]


def _align(run: Row, like: Row) -> Row:
    if different := sorted(run.keys() ^ like.keys()):
        raise InputError(f"{different[0]}: only one of the compared runs was scored on it; evaluate both on the same datasets")
    return {name: _reordered(name, run[name], like[name].ids) for name in like}


def _reordered(dataset: str, counts: ImageCounts, ids: tuple[str, ...]) -> ImageCounts:
    if counts.ids == ids:
        return counts
    if unpaired := sorted({*ids} ^ {*counts.ids}):
        raise InputError(
            f"{dataset}: only one of the compared runs has scored image {unpaired[0]!r}; evaluate both on the same images"
        )
    place = {id_: index for index, id_ in enumerate(counts.ids)}
    order = [place[id_] for id_ in ids]
    return ImageCounts(ids, counts.intersection[order], counts.union[order])


def _scores(runs: Sequence[Row]) -> dict[str, np.ndarray]:
    """mIoU [runs] in percent by dataset and on average."""
    scores = {name: _miou(np.array([_joined(run[name]).sum(axis=0) for run in runs])) for name in runs[0]}
    return _with_average(scores)


def _with_average(scores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The scores by dataset, and the mean of those that the table's average is over."""
    return scores | {AVERAGE: np.mean([scores[name] for name in averaged([*scores])], axis=0)}


def _resampled_scores(runs: Sequence[Row], draws: int, seed: int) -> dict[str, np.ndarray]:
    """mIoU [draws] of resampled images, the mean over runs, by dataset and on average.

    Datasets with the same images (VOC21 and VOC20, say) are resampled together. Draw d of the k-th set of images is the d-th
    `integers(n, size=n)` of `default_rng([seed, k])`, which for k = 0 is `default_rng(seed)`.
    """
    scores = {name: np.empty(draws) for name in runs[0]}
    for place, ids in enumerate(dict.fromkeys(counts.ids for counts in runs[0].values())):
        together = {name: [_joined(run[name]) for run in runs] for name, counts in runs[0].items() if counts.ids == ids}
        for chunk, times in _resamples(np.random.default_rng([seed, place]), len(ids), draws):
            for name, by_run in together.items():
                scores[name][chunk] = np.mean([_miou(times @ counts) for counts in by_run], axis=0)
    return _with_average(scores)


def _resamples(rng: np.random.Generator, images: int, draws: int) -> Iterator[tuple[slice, np.ndarray]]:
    """How often each image occurs in each resample, [k, images] float64, with the slice of the k draws that these are."""
    for start in range(0, draws, CHUNK):
        size = min(CHUNK, draws - start)
        picks = (rng.integers(images, size=images) for _ in range(size))
        yield slice(start, start + size), np.array([np.bincount(some, minlength=images) for some in picks], dtype=np.float64)


def _seed_noise(scores: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """How far the mean of a few runs' scores [runs] may lie from that of all seeds, [draws]: Student's t times its error.

    Drawing three runs anew would claim 95 % for what lies between the lowest and the highest, which 75 % do.
    """
    runs = len(scores)
    if runs == 1:
        return np.zeros(draws)
    error = scores.std(ddof=1) / np.sqrt(runs)
    noise: np.ndarray = error * np.random.default_rng([seed, runs, 1]).standard_t(runs - 1, size=draws)
    return noise


def _joined(counts: ImageCounts) -> np.ndarray:
    """Intersections and unions side by side, [images, 2 x classes]; float64 adds them exactly, and fast."""
    return np.concatenate([counts.intersection, counts.union], axis=1, dtype=np.float64)


def _miou(totals: np.ndarray) -> np.ndarray:
    """mIoU [...] in percent of intersections and unions [..., 2 x classes]; NaN where no class occurs."""
    iou = class_iou_of(*np.split(totals, 2, axis=-1))
    occurs = np.isfinite(iou)
    with np.errstate(invalid="ignore"):
        miou: np.ndarray = 100 * np.where(occurs, iou, 0).sum(axis=-1) / occurs.sum(axis=-1)
    return miou


def _interval(drawn: np.ndarray, level: float) -> Interval:
    """The middle share `level` of the draws [draws]; those in which no class occurs are left out."""
    finite = drawn[np.isfinite(drawn)]
    if not finite.size:
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
