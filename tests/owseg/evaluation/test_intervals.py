"""Bootstrap intervals: against plain resampling, and against what they promise on simulated sets."""

from pathlib import Path

import numpy as np
import pytest

from owseg import InputError
from owseg.evaluation.intervals import (
    Difference,
    ImageCounts,
    Interval,
    difference_intervals,
    read_image_counts,
    row_intervals,
    write_image_counts,
)
from owseg.evaluation.metrics import intersection_union, mean_iou


def confusions(images: int, classes: int, seed: int) -> np.ndarray:
    """Confusions [images, classes, classes] of images with two classes each, so that some resamples lack a class."""
    rng = np.random.default_rng(seed)
    counts = np.zeros((images, classes, classes), dtype=np.int64)
    for image in counts:
        shown = rng.choice(classes, size=2, replace=False)
        image[np.ix_(shown, rng.choice(classes, size=3, replace=False))] = rng.integers(0, 3000, (2, 3))
        image[shown, shown] += rng.integers(0, 3000, 2)
    return counts


def counts_of(confusion: np.ndarray, prefix: str = "image") -> ImageCounts:
    """What the evaluator keeps of the images' confusions."""
    intersection, union = zip(*(intersection_union(image) for image in confusion), strict=True)
    return ImageCounts(tuple(f"{prefix} {i}" for i in range(len(confusion))), np.array(intersection), np.array(union))


def resampled(confusion: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """mIoU [draws], one draw at a time: take whole images, add up their confusions, compute mIoU."""
    return np.array([mean_iou(confusion[rng.integers(len(confusion), size=len(confusion))].sum(axis=0)) for _ in range(draws)])


def test_an_interval_equals_plain_resampling() -> None:
    one, other = confusions(12, 6, seed=1), confusions(12, 6, seed=2)
    draws = 150  # more than are added up at once
    ours, theirs = (resampled(confusion, draws, np.random.default_rng(7)) for confusion in (one, other))
    found = row_intervals([{"set": counts_of(one)}], draws=draws, seed=7, level=0.9)
    expected = np.quantile(ours, [0.05, 0.95])
    assert found.keys() == {"set", "average"}
    assert found["set"] == pytest.approx(expected, abs=1e-12)
    assert found["average"] == found["set"]
    difference = difference_intervals([{"set": counts_of(one)}], [{"set": counts_of(other)}], draws=draws, seed=7)["set"]
    assert difference.mean == pytest.approx(mean_iou(one.sum(axis=0)) - mean_iou(other.sum(axis=0)), abs=1e-12)
    assert difference[1:] == pytest.approx(np.quantile(ours - theirs, [0.025, 0.975]), abs=1e-12)


def test_datasets_of_the_same_images_are_resampled_together_and_others_on_their_own() -> None:
    one, finer, elsewhere = confusions(10, 4, seed=1), confusions(10, 7, seed=2), confusions(10, 5, seed=3)
    row = {"one": counts_of(one), "elsewhere": counts_of(elsewhere, "other image"), "finer": counts_of(finer)}
    found = row_intervals([row], draws=100, seed=3)
    together = [resampled(confusion, 100, np.random.default_rng(3)) for confusion in (one, finer)]
    apart = resampled(elsewhere, 100, np.random.default_rng([3, 1]))
    for name, scores in (("one", together[0]), ("finer", together[1]), ("elsewhere", apart)):
        assert found[name] == pytest.approx(np.quantile(scores, [0.025, 0.975]), abs=1e-12)
    average = np.mean([*together, apart], axis=0)
    assert found["average"] == pytest.approx(np.quantile(average, [0.025, 0.975]), abs=1e-12)


def test_a_class_that_no_drawn_image_has_is_left_out_of_the_mean() -> None:
    counts = ImageCounts(("a", "b"), np.array([[50, 0], [0, 100]]), np.array([[100, 0], [0, 100]]))
    # Of the four equally likely resamples, aa has mIoU 50, bb 100, and the mixed ones 75: a class that is missing is no zero.
    found = row_intervals([{"set": counts}], draws=400)["set"]
    assert found == Interval(50, 100)
    nothing = ImageCounts(("a", "b"), np.array([[50], [0]]), np.array([[100], [0]]))
    assert row_intervals([{"set": nothing}])["set"] == Interval(50, 50)  # resamples bb have no score at all


def test_images_are_paired_by_id() -> None:
    counts = counts_of(confusions(9, 5, seed=4))
    order = np.random.default_rng(0).permutation(9)
    shuffled = ImageCounts(tuple(counts.ids[i] for i in order), counts.intersection[order], counts.union[order])
    assert difference_intervals([{"set": counts}], [{"set": shuffled}])["set"] == Difference(0, 0, 0)
    assert not Difference(0, 0, 0).significant
    fewer = ImageCounts(counts.ids[1:], counts.intersection[1:], counts.union[1:])
    with pytest.raises(InputError, match="set: only one of the compared runs has scored image 'image 0'"):
        difference_intervals([{"set": counts}], [{"set": fewer}])
    with pytest.raises(InputError, match="other: only one of the compared runs was scored on it"):
        row_intervals([{"set": counts}, {"set": counts, "other": counts}])


def test_the_noise_of_seeds_widens_intervals_unless_both_sides_share_it() -> None:
    """Against Student's t: images that are all alike leave nothing but the runs."""

    def run(share: int) -> dict[str, ImageCounts]:
        return {"set": ImageCounts(("a", "b"), np.array([[share], [share]]), np.array([[1000], [1000]]))}

    scores = np.array([30.0, 36.0, 33.0])
    runs = [run(int(10 * score)) for score in scores]
    low, high = row_intervals(runs, draws=20_000)["set"]
    assert (low + high) / 2 == pytest.approx(33, abs=0.5)
    half_width = 4.303 * 3 / np.sqrt(3)  # the 97.5 % point of Student's t with 2 degrees of freedom; deviation 3
    assert (high - low) / 2 == pytest.approx(half_width, rel=0.05)
    better = [run(int(10 * score) + 10) for score in scores]
    assert difference_intervals(better, runs)["set"] == pytest.approx((1, 1, 1))
    assert difference_intervals(better, runs)["set"].significant
    assert not difference_intervals(better[:2], runs)["set"].significant  # no pairs: the noise of both counts
    assert not difference_intervals(better, [runs[0]])["set"].significant


RATES = np.geomspace(0.6, 0.1, 8)
"""Shares of images that show each class."""
QUALITY = np.linspace(0.8, 0.3, 8)
"""Mean share of a class's pixels that are found."""


def simulated(rng: np.random.Generator, images: int) -> tuple[ImageCounts, ImageCounts]:
    """Two methods on the same images: classes of unequal frequency and size, images that are hard for both, wrong pixels that
    go to another class of the image's own."""
    everyone = np.arange(images)
    shown = rng.random((images, len(RATES))) < RATES
    shown[everyone, rng.integers(len(RATES), size=images)] |= ~shown.any(axis=1)
    area = rng.gamma(1.0, size=shown.shape) * shown
    area = np.round(4000 * area / area.sum(axis=1, keepdims=True)).astype(np.int64)
    hardness = rng.beta(3, 2, size=(images, 1))
    methods = []
    for skill in (1.0, 0.9):
        found = 0.6 * rng.beta(4 * QUALITY * skill, 4 * (1 - QUALITY * skill), size=shown.shape) + 0.4 * hardness
        right = np.round(area * found).astype(np.int64)
        predicted = right.copy()
        predicted[everyone, rng.integers(len(RATES), size=images)] += (area - right).sum(axis=1)
        methods.append(ImageCounts(tuple(map(str, everyone)), right, area + predicted - right))
    return methods[0], methods[1]


def score(counts: ImageCounts) -> float:
    intersection, union = counts.intersection.sum(axis=0), counts.union.sum(axis=0)
    return float(100 * np.mean(intersection / union))


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """95 % +- 2 of 500 simulated sets, for a score and for a difference."""
    population = simulated(np.random.default_rng(12345), 200_000)
    truth, behind = (score(counts) for counts in population)
    covered = np.zeros(2)
    for number in range(500):
        one, other = simulated(np.random.default_rng(number), 150)
        found = row_intervals([{"set": one}], draws=400, seed=number)["set"]
        difference = difference_intervals([{"set": one}], [{"set": other}], draws=400, seed=number)["set"]
        covered += found.low <= truth <= found.high, difference.low <= truth - behind <= difference.high
    assert 100 * covered / 500 == pytest.approx(np.array([95, 95]), abs=2)


def test_counts_are_read_back_as_written(tmp_path: Path) -> None:
    counts = counts_of(confusions(5, 4, seed=0), "2007_é")
    path = tmp_path / "tcl" / "voc21.npz"
    write_image_counts(path, counts)
    found = read_image_counts(path)
    assert found.ids == counts.ids
    for there, was in ((found.intersection, counts.intersection), (found.union, counts.union)):
        assert there.dtype == np.int64
        np.testing.assert_array_equal(there, was)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_file_of_counts_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "voc21.npz"
    counts = counts_of(confusions(5, 4, seed=0))
    write_image_counts(path, counts)
    whole = path.read_bytes()
    np.savez(path, ids=np.array(counts.ids))
    other_kind = path.read_bytes()
    write_image_counts(path, counts._replace(ids=counts.ids[1:]))
    unmatched = path.read_bytes()
    np.savez(path, ids=np.array(counts.ids), intersection=np.array(5), union=np.array(["x"] * 5))
    no_numbers = path.read_bytes()
    for content in (b"", b"text", whole[:200], whole[: len(whole) // 2], other_kind, unmatched, no_numbers):
        path.write_bytes(content)
        with pytest.raises(InputError, match="run the evaluate stage again") as error:
            read_image_counts(path)
        assert str(path) in str(error.value)
        assert "pickle" not in str(error.value)
    with pytest.raises(InputError, match=r"nowhere\.npz"):
        read_image_counts(tmp_path / "nowhere.npz")
