"""COCO-Stuff and COCO-Object maps, against COCO's category ids and the panoptic annotations' areas."""

import json
from pathlib import Path

import numpy as np
import pytest

from helpers.paths import MASKS, needs
from helpers.sources import pixels_of, put, put_json, run_all
from owseg import InputError
from owseg.evaluation import convert_coco
from owseg.evaluation.convert import remaining
from owseg.evaluation.datasets import BENCHMARKS, find_items, read_image, read_label

COCO_LABELS = Path("coco_stuff164k/annotations/val2017")


def test_the_coco_tables_are_the_official_ones() -> None:
    things = [*range(1, 12), *range(13, 26), 27, 28, *range(31, 45), *range(46, 66), 67, 70, *range(72, 83), *range(84, 91)]
    assert len(things) == 80  # COCO's category ids, from its papers
    assert [id_ + 1 for id_ in convert_coco.THINGS] == things
    assert len(convert_coco.USED) == len(BENCHMARKS["coco_stuff"].names) == 171
    for label, id_ in enumerate(convert_coco.USED):
        assert convert_coco.STUFF[id_] == label
        assert convert_coco.OBJECT[id_] == (label + 1 if label < 80 else 0)
    for table, unlabelled in ((convert_coco.STUFF, 255), (convert_coco.OBJECT, 0)):
        assert table[255] == unlabelled
        assert {id_ for id_ in range(256) if table[id_] < 0} == {*convert_coco.UNUSED, *range(182, 255)}
    # The first and the last thing and stuff by name: id + 1 is COCO's category id, 92 "banner" to 182 "wood".
    names = BENCHMARKS["coco_stuff"].names
    for id_, name in {0: "person", 89: "toothbrush", 91: "banner", 181: "wood", 86: "scissors", 12: "stop sign"}.items():
        assert names[convert_coco.STUFF[id_]] == name


def test_one_pixel_map_gives_both_coco_maps(tmp_path: Path) -> None:
    stored = [[0, 1, 10, 12], [89, 91, 181, 255]]
    put(tmp_path / "maps" / "val2017" / "000000000139.png", stored)
    plan = convert_coco.plan_stuff(tmp_path / "maps", tmp_path)
    assert run_all(plan) == 2
    folder = tmp_path / COCO_LABELS
    assert pixels_of(folder / "000000000139_labelTrainIds.png") == [[0, 1, 10, 11], [79, 80, 170, 255]]
    assert pixels_of(folder / "000000000139_instanceTrainIds.png") == [[1, 2, 11, 12], [80, 0, 0, 0]]


def test_pixel_maps_in_the_layout_itself_are_told_from_ours(tmp_path: Path) -> None:
    folder = tmp_path / COCO_LABELS
    put(folder / "000000000139.png", [[0]])
    for _ in range(2):
        assert len(convert_coco.plan_stuff(folder, tmp_path).jobs) == 1
        run_all(convert_coco.plan_stuff(folder, tmp_path))
    assert len(list(folder.iterdir())) == 3


def test_sources_of_another_kind_are_refused_by_file(tmp_path: Path) -> None:
    file = panoptic(tmp_path, [[7]], [(7, 1)])
    png = put(tmp_path / "panoptic_val2017" / "000000000139.png", [[7]])
    with pytest.raises(InputError, match=f"^{png}: mode L; a panoptic PNG is RGB$"):
        run_all(convert_coco.plan_panoptic(tmp_path, tmp_path))
    png.unlink()
    with pytest.raises(InputError, match=f"^{png} is missing, and 0 more; unpack the zip of panoptic_val2017 again$"):
        convert_coco.plan_panoptic(tmp_path, tmp_path)
    content = json.loads(file.read_text())
    content["categories"][0]["id"] = 12
    with pytest.raises(InputError, match=r"panoptic_val2017\.json: category 12 \('person'\) is none of COCO's 80 things"):
        convert_coco.plan_panoptic(put_json(file, content), tmp_path)
    png = put(tmp_path / "val2017" / "000000000139.png", np.zeros((2, 2, 3)))
    with pytest.raises(InputError, match=f"^{png}: mode RGB; a label map has one channel"):
        run_all(convert_coco.plan_stuff(tmp_path, tmp_path))


@pytest.mark.parametrize("value", [11, 90, 182, 254])
def test_a_value_of_no_category_is_refused_by_file(tmp_path: Path, value: int) -> None:
    put(tmp_path / "val2017" / "000000000139.png", [[0, value]])
    with pytest.raises(InputError, match=rf"000000000139\.png: value {value} is not an id of COCO-Stuff's"):
        run_all(convert_coco.plan_stuff(tmp_path, tmp_path))
    assert not (tmp_path / COCO_LABELS).exists()


def panoptic(folder: Path, ids: list[list[int]], segments: list[tuple[int, int]]) -> Path:
    """A panoptic annotation with a person (1), a toothbrush (90) and a merged stuff class (200)."""
    image = np.array(ids)
    put(folder / "panoptic_val2017" / "000000000139.png", np.stack([image % 256, image // 256 % 256, image // 65536], axis=-1))
    content = {
        "images": [{"id": 139, "height": len(ids), "width": len(ids[0]), "file_name": "000000000139.jpg"}],
        "annotations": [
            {
                "image_id": 139,
                "file_name": "000000000139.png",
                "segments_info": [{"id": id_, "category_id": category} for id_, category in segments],
            }
        ],
        "categories": [
            {"id": 1, "name": "person", "isthing": 1},
            {"id": 90, "name": "toothbrush", "isthing": 1},
            {"id": 200, "name": "rug-merged", "isthing": 0},
        ],
    }
    return put_json(folder / "panoptic_val2017.json", content)


def test_panoptic_segments_become_coco_object(tmp_path: Path) -> None:
    file = panoptic(tmp_path, [[0, 7, 256], [65536 * 3 + 5, 7, 0]], [(7, 1), (256, 90), (65536 * 3 + 5, 200)])
    for source in (file, tmp_path):
        run_all(convert_coco.plan_panoptic(source, tmp_path / "root"))
    target = tmp_path / "root" / COCO_LABELS / "000000000139_instanceTrainIds.png"
    assert pixels_of(target) == [[0, 1, 80], [0, 1, 0]]
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_panoptic_segment_without_annotation_is_refused(tmp_path: Path) -> None:
    panoptic(tmp_path, [[7, 8]], [(7, 1)])
    with pytest.raises(InputError, match=r"000000000139\.png: segment 8 is not in its annotation"):
        run_all(convert_coco.plan_panoptic(tmp_path, tmp_path))


def test_maps_of_two_sources_do_not_mix(tmp_path: Path) -> None:
    panoptic(tmp_path, [[7]], [(7, 1)])
    put(tmp_path / "val2017" / "000000000139.png", [[0]])
    run_all(convert_coco.plan_panoptic(tmp_path, tmp_path))
    with pytest.raises(InputError, match="was made of the set 'coco_panoptic', not 'coco'; delete those maps or choose"):
        remaining(convert_coco.plan_stuff(tmp_path, tmp_path))
    for path in (tmp_path / COCO_LABELS).iterdir():  # a map of another tool says nothing and is kept
        put(path, [[5]])
    assert run_all(convert_coco.plan_stuff(tmp_path, tmp_path)) == 1
    assert pixels_of(tmp_path / COCO_LABELS / "000000000139_instanceTrainIds.png") == [[5]]


@needs(MASKS)
def test_real_panoptic_annotations_keep_every_pixel_of_every_thing(tmp_path: Path) -> None:
    source = MASKS / "coco_panoptic"
    content = json.loads((source / "panoptic_examples.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"] if category["isthing"]}
    run_all(convert_coco.plan_panoptic(source / "panoptic_examples.json", tmp_path))
    images = tmp_path / "coco_stuff164k" / "images"
    images.mkdir()
    (images / "val2017").symlink_to(source / "input_images")
    benchmark = BENCHMARKS["coco_object"]
    items = find_items(benchmark, tmp_path)
    assert len(items) == 2
    for item in items:
        label = read_label(benchmark, item, read_image(item.image).shape[:2])
        expected = dict.fromkeys(benchmark.names, 0)
        (annotation,) = [one for one in content["annotations"] if one["file_name"] == f"{item.id}.png"]
        for segment in annotation["segments_info"]:
            if segment["category_id"] in names:
                expected[names[segment["category_id"]]] += segment["area"]
        expected["background"] = label.size - sum(expected.values())
        assert dict(zip(benchmark.names, np.bincount(label.ravel(), minlength=81).tolist(), strict=True)) == expected
        assert len([name for name, area in expected.items() if area]) > 1
