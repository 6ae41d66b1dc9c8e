"""COCO annotations as links and as a benchmark, and the whole chain on them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from filtering.images.download import DownloadConfig
from filtering.images.fetch_config import FetchConfig
from helpers.paths import COCO_MINI, REPO, load_tool, needs
from owseg.evaluation.datasets import BENCHMARKS, list_items, read_image, read_label
from pipelines.app.config import ConfigError
from pipelines.app.run_dir import digest_of_run, prepare_run_dir
from pipelines.app.settings import Config
from pipelines.app.stage_marker import StageMarker, write_marker

OBJECT = BENCHMARKS["coco_object"]


coco_mini = load_tool("coco_mini")


def box(left: int, top: int, right: int, bottom: int) -> list[list[float]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


def instance(id_: int, category: int, segmentation: Any, area: float, image: int = 1, crowd: int = 0) -> dict[str, Any]:
    return {
        "id": id_,
        "image_id": image,
        "category_id": category,
        "segmentation": segmentation,
        "area": area,
        "iscrowd": crowd,
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two photos of different shapes: a cup on a table before a crowd, and an empty one."""
    folder = tmp_path / "source"
    sizes = {1: (40, 30), 2: (30, 40)}
    images: list[dict[str, Any]] = [
        {"id": id_, "file_name": f"photo {id_}.jpg", "width": w, "height": h} for id_, (w, h) in sizes.items()
    ]
    (folder / "images").mkdir(parents=True)
    for image in images:
        Image.new("RGB", sizes[image["id"]], "white").save(folder / "images" / image["file_name"])
    # Run lengths go down the columns: all of the first two columns, then nothing.
    crowd = {"size": [30, 40], "counts": [0, 60, 1140]}
    annotations = [
        instance(5, 47, box(10, 5, 20, 15), 100),
        instance(6, 67, box(0, 10, 40, 30), 800),
        instance(7, 1, crowd, 60, crowd=1),
    ]
    categories = [{"id": 67, "name": "dining table"}, {"id": 1, "name": "person"}, {"id": 47, "name": "cup"}]
    captions = [
        {"id": 1, "image_id": 1, "caption": "A cup on\ta table.\n"},
        {"id": 2, "image_id": 1, "caption": "people by a table"},
        {"id": 3, "image_id": 2, "caption": "nothing"},
    ]
    (folder / "annotations").mkdir()
    for kind, content in (
        ("captions_mini", {"images": images, "annotations": captions}),
        ("instances_mini", {"images": images, "annotations": annotations, "categories": categories}),
    ):
        (folder / "annotations" / f"{kind}.json").write_text(json.dumps(content))
    return folder


def rewrite(source: Path, kind: str, change: Any) -> None:
    file = source / "annotations" / f"{kind}_mini.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_every_caption_is_a_link_and_captions_share_a_photo(source: Path, tmp_path: Path) -> None:
    coco_mini.prepare(source, tmp_path / "out")
    assert (tmp_path / "out" / "links.tsv").read_text().splitlines() == [
        "http://photos.coco.test/photo%201.jpg\tA cup on a table.",
        "http://photos.coco.test/photo%201.jpg\tpeople by a table",
        "http://photos.coco.test/photo%202.jpg\tnothing",
    ]


def test_the_benchmark_reader_reads_the_label_maps(source: Path, tmp_path: Path) -> None:
    coco_mini.prepare(source, tmp_path / "out")
    first, second = list_items(OBJECT, tmp_path / "out" / "benchmarks")
    label = read_label(OBJECT, first, (30, 40))
    person, cup, table = (OBJECT.names.index(name) for name in ("person", "cup", "dining table"))
    assert (person, cup, table) == (1, 42, 61)
    assert label[2, 30] == 0
    assert (label[:10, :2] == person).all()  # the crowd
    assert (label[10:, :2] == table).all()  # a single instance on the crowd, whatever their sizes
    assert label[7, 15] == cup
    assert label[13, 15] == cup  # the smaller one on top, though listed first
    assert label[20, 15] == table
    assert not read_label(OBJECT, second, (40, 30)).any()


def test_files_that_are_right_keep_their_times(source: Path, tmp_path: Path) -> None:
    def times() -> dict[Path, int]:
        return {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*") if file.is_file()}

    coco_mini.prepare(source, tmp_path / "out")
    before = times()
    broken = next(file for file in before if file.suffix == ".png")
    broken.write_bytes(b"half")
    coco_mini.prepare(source, tmp_path / "out")
    after = times()
    assert {file for file in before if before[file] != after[file]} == {broken}
    assert np.asarray(Image.open(broken)).any() or "2" in broken.name


def test_run_lengths_as_numbers_and_as_text_are_the_same() -> None:
    numbers = {"size": [3, 2], "counts": [1, 4, 1]}
    text = {"size": [3, 2], "counts": "141"}
    expected = [[False, True], [True, True], [True, False]]
    assert coco_mini.decode(numbers, (3, 2)).tolist() == expected
    assert coco_mini.decode(text, (3, 2)).tolist() == expected


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("instances", lambda content: content["categories"][0].update(name="unicorn"), "'unicorn' is none of COCO's 80"),
        ("instances", lambda content: content["images"][0].update(width=41), "40x30 pixels, annotated as 41x30"),
        ("instances", lambda content: content["images"][0].update(file_name="gone.jpg"), "gone.jpg: not a readable photo"),
        ("instances", lambda content: content.pop("annotations"), "no COCO annotations"),
        (
            "instances",
            lambda content: content["annotations"][2]["segmentation"].update(size=[40, 30]),
            "they must be the same size",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, change: Any, message: str
) -> None:
    rewrite(source, kind, change)
    assert coco_mini.main([str(source), str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_photos_of_another_source_are_refused(source: Path, tmp_path: Path) -> None:
    coco_mini.prepare(source, tmp_path / "out")
    rewrite(source, "instances", lambda content: content["images"].pop())
    with pytest.raises(ConfigError, match="photos of another source"):
        coco_mini.prepare(source, tmp_path / "out")


def test_a_run_may_go_on_with_its_photos_served_elsewhere(tmp_path: Path) -> None:
    def served_at(port: int, **fetch: Any) -> Config:
        settings = FetchConfig(connect_to={coco_mini.HOST: f"127.0.0.1:{port}"}, **fetch)
        return Config(run_dir=str(tmp_path), download=DownloadConfig(fetch=settings))

    prepare_run_dir(served_at(1000))
    write_marker(tmp_path, "filter", StageMarker(fingerprint="", digest="", seconds=0.0))
    prepare_run_dir(served_at(2000))
    assert digest_of_run(served_at(1000)) == digest_of_run(served_at(2000)) == digest_of_run(Config())
    prepare_run_dir(served_at(2000, max_bytes=1000))


@needs(COCO_MINI)
def test_real_annotations_become_label_maps_of_the_photos_size(tmp_path: Path) -> None:
    coco_mini.prepare(COCO_MINI, tmp_path)
    instances = json.loads(next((COCO_MINI / "annotations").glob("instances_*.json")).read_text())
    names = {category["id"]: category["name"] for category in instances["categories"]}
    annotated: dict[int, set[str]] = {}
    for one in instances["annotations"]:
        annotated.setdefault(one["image_id"], set()).add(names[one["category_id"]])
    items = list_items(OBJECT, tmp_path / "benchmarks")
    assert len(items) == 80
    seen: set[str] = set()
    for item in items:
        label = read_label(OBJECT, item, read_image(item.image).shape[:2])
        present = {OBJECT.names[value] for value in np.unique(label)} - {"background"}
        assert present <= annotated[int(item.id)]
        seen |= present
    assert seen == set(OBJECT.names[1:])


@needs(COCO_MINI)
def test_a_real_crowd_lies_in_the_box_that_coco_states() -> None:
    instances = json.loads(next((COCO_MINI / "annotations").glob("instances_*.json")).read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in instances["images"]}
    crowds = [one for one in instances["annotations"] if one["iscrowd"]]
    assert crowds
    for crowd in crowds:
        mask = coco_mini.decode(crowd["segmentation"], sizes[crowd["image_id"]])
        assert mask.sum() == sum(crowd["segmentation"]["counts"][1::2])  # COCO's own "area" of a crowd is something else
        rows, columns = np.nonzero(mask)
        assert [columns.min(), rows.min(), np.ptp(columns), np.ptp(rows)] == crowd["bbox"]


@pytest.mark.slow
@needs(COCO_MINI)
def test_the_chain_runs_to_the_end_and_then_has_nothing_left_to_do(tmp_path: Path) -> None:
    settings = ["method_settings.clip.phases=[{steps: 4, train: [clip.]}]", "session.num_cpus=2"]
    settings += ["evaluate.limit=8", "evaluate.short_side=64", "evaluate.window=64", "evaluate.stride=32"]
    settings += [
        "method_settings.tcl.phases=[{steps: 3, train: [decoder., projection.]}]",
        "method_settings.tcl.optim.batch_size=16",
    ]
    first = run(tmp_path, settings)
    assert first["filter"]["links"] == 400
    assert first["filter"]["kept"] > 300
    assert first["download"]["by_status"] == {"success": first["filter"]["kept"]}
    assert list((tmp_path / "run" / "shards").glob("*.tar"))
    assert first["evaluate"]["mIoU"].keys() == {"chance", "maskclip", "tcl"}
    for row in first["evaluate"]["mIoU"].values():
        assert row.keys() == {"coco_object", "average"}
        assert 0 < row["coco_object"] < 100

    second = run(tmp_path, settings)  # the photos are served from another port now
    assert {second[stage]["status"] for stage in ("filter", "download", "train", "evaluate")} == {"skipped"}
    assert {name: stage["digest"] for name, stage in second.items()} == {name: stage["digest"] for name, stage in first.items()}


def run(out: Path, settings: list[str]) -> dict[str, Any]:
    """The stages of `summary.json` after a run of the tool in a process of its own."""
    command = [sys.executable, str(REPO / "tools" / "coco_mini.py"), str(COCO_MINI), str(out), *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    stages: dict[str, Any] = json.loads((out / "run" / "summary.json").read_text())["stages"]
    return stages
