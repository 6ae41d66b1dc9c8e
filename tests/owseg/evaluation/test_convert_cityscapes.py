"""Cityscapes train ids: polygons against label ids, both against rectangles drawn by hand."""

from pathlib import Path

import numpy as np
import pytest

from helpers.sources import Pixels, pixels_of, put, put_json, run_all
from owseg import InputError
from owseg.evaluation import convert_cityscapes
from owseg.evaluation.datasets import BENCHMARKS


def inside(polygon: list[list[int]], height: int, width: int) -> Pixels:
    """Pixels of an upright rectangle, edges included, as Pillow draws it."""
    xs, ys = [x for x, _ in polygon], [y for _, y in polygon]
    mask = np.zeros((height, width), bool)
    mask[max(min(ys), 0) : max(ys) + 1, max(min(xs), 0) : max(xs) + 1] = True
    return mask


def rectangle(label: str, left: int, top: int, right: int, bottom: int, **more: object) -> dict[str, object]:
    return {"label": label, "polygon": [[left, top], [right, top], [right, bottom], [left, bottom]], **more}


OBJECTS = [
    rectangle("road", 0, 10, 39, 19),
    rectangle("sky", -5, -5, 60, 4),
    rectangle("cargroup", 3, 8, 12, 14),
    rectangle("license plate", 5, 12, 8, 13),
    rectangle("person", 20, 6, 24, 16, deleted=1),
    rectangle("polegroup", 30, 2, 33, 12, deleted=0),
    rectangle("bus", 14, 9, 18, 13),
    rectangle("out of roi", 0, 18, 39, 19),
]
TRAIN_ID = {"road": 0, "sky": 10, "cargroup": 13, "bus": 15, "polegroup": 255, "out of roi": 255}
LABEL_ID = {"road": 7, "sky": 23, "cargroup": 26, "bus": 28, "polegroup": 18, "out of roi": 3}


def drawn(values: dict[str, int], background: int) -> Pixels:
    canvas = np.full((20, 40), background)
    for thing in OBJECTS:
        if thing["label"] in values:
            canvas[inside(thing["polygon"], 20, 40)] = values[str(thing["label"])]  # type: ignore[arg-type]
    return canvas


@pytest.fixture
def gtfine(tmp_path: Path) -> Path:
    stem = tmp_path / "gtFine" / "val" / "ulm"
    put_json(stem / "ulm_000000_000019_gtFine_polygons.json", {"imgHeight": 20, "imgWidth": 40, "objects": OBJECTS})
    return stem


def test_polygons_and_label_ids_give_the_same_map(gtfine: Path, tmp_path: Path) -> None:
    run_all(convert_cityscapes.plan_cityscapes(tmp_path, tmp_path / "a"))
    put(gtfine / "ulm_000000_000019_gtFine_labelIds.png", drawn(LABEL_ID, 0))
    plan = convert_cityscapes.plan_cityscapes(tmp_path / "gtFine", tmp_path / "b")
    assert [job.split for job in plan.jobs] == ["val"]
    run_all(plan)
    made = Path("cityscapes/gtFine/val/ulm/ulm_000000_000019_gtFine_labelTrainIds.png")
    assert pixels_of(tmp_path / "a" / made) == drawn(TRAIN_ID, 255).tolist() == pixels_of(tmp_path / "b" / made)
    assert {0, 10, 13, 15, 255} == set(np.unique(drawn(TRAIN_ID, 255)))


def test_the_cityscapes_table_is_the_official_one() -> None:
    labels = convert_cityscapes.LABELS
    assert len(labels) == 35
    assert [id_ for id_, _ in labels.values()] == [*range(34), -1]
    evaluated = {name: train_id for name, (_, train_id) in labels.items() if 0 <= train_id < 255}
    assert tuple(evaluated) == BENCHMARKS["cityscapes"].names
    assert list(evaluated.values()) == list(range(19))


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ([rectangle("unicorn", 0, 0, 3, 3)], "label 'unicorn' is none of Cityscapes'"),
        ([{"label": "car"}], "not Cityscapes' polygon format (KeyError: 'polygon')"),
        ([{"label": "car", "polygon": [[1]]}], "not Cityscapes' polygon format"),
        (["car"], "not Cityscapes' polygon format"),
    ],
)
def test_broken_polygons_are_named(gtfine: Path, tmp_path: Path, objects: list[object], message: str) -> None:
    file = put_json(next(gtfine.iterdir()), {"imgHeight": 20, "imgWidth": 40, "objects": objects})
    with pytest.raises(InputError) as caught:
        run_all(convert_cityscapes.plan_cityscapes(tmp_path, tmp_path))
    assert str(caught.value).startswith(f"{file}: {message}")


def test_an_unknown_cityscapes_id_is_named(gtfine: Path, tmp_path: Path) -> None:
    put(gtfine / "ulm_000000_000019_gtFine_labelIds.png", [[34]])
    with pytest.raises(InputError, match=r"labelIds\.png: value 34 is not one of Cityscapes' ids"):
        run_all(convert_cityscapes.plan_cityscapes(tmp_path, tmp_path))
