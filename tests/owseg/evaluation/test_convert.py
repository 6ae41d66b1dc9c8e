"""The convert verb: it goes on where it stopped, tells mistakes in a line; and sets that are read as published."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.files import files_under
from helpers.paths import MASKS, REPO, needs
from helpers.sources import put
from owseg.evaluation import convert_coco
from owseg.evaluation.datasets import BENCHMARKS, find_items, read_image, read_label
from pipelines import convert

COCO_LABELS = Path("coco_stuff164k/annotations/val2017")


def call(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPO / "pipelines" / "convert.py"), *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def error_line(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def coco_source(folder: Path, images: int = 30) -> Path:
    rng = np.random.default_rng(0)
    for index in range(images):
        ids = rng.choice([*convert_coco.USED, 255], (48, 64))
        put(folder / "val2017" / f"{index + 1:012}.png", ids)
    return folder


def test_a_stopped_conversion_goes_on_and_the_bytes_do_not_depend_on_it(tmp_path: Path) -> None:
    source = coco_source(tmp_path / "maps")
    broken = source / "val2017" / f"{21:012}.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:200])
    folder = tmp_path / "root" / COCO_LABELS
    result = call("coco", source, tmp_path / "root")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith(f"error: {broken}: not a readable label map (")
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert before
    assert not [path for path in before if path.name.startswith(".")]
    broken.write_bytes(whole)
    result = call("coco", source, tmp_path / "root")
    assert result.returncode == 0, result.stderr
    assert f"of {len(before) // 2} kept" in result.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert call("coco", source, tmp_path / "other").returncode == 0
    assert len(files_under(tmp_path / "root")) == 60
    assert files_under(tmp_path / "root") == files_under(tmp_path / "other")
    one, two, three = sorted(folder.iterdir())[:3]
    for path, content in ((one, b""), (two, two.read_bytes()[:-30]), (three, b'{"no": "map"}')):
        path.write_bytes(content)
    mended = call("coco", source, tmp_path / "root")
    assert mended.stderr.count(": not a readable label map; it is made again") == 3, mended.stderr
    assert files_under(tmp_path / "root") == files_under(tmp_path / "other")
    again = call("coco", source, tmp_path / "root")
    assert "label maps of 0 images written, of 30 kept" in again.stdout
    assert "coco: val2017: 30 of 5000 images, 4970 not in " in again.stdout


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["coco", "{empty}", "{root}"], "val2017 holds no pixel maps; unpack COCO-Stuff's stuffthingmaps_trainval2017.zip"),
        (["coco_panoptic", "{empty}", "{root}"], "panoptic_val2017.json is missing; unpack COCO's panoptic_annotations"),
        (
            ["context", "{empty}", "{root}"],
            "trainval_merged.json is missing; it is the annotation file of the Pascal in Detail",
        ),
        (["cityscapes", "{empty}", "{root}"], "gtFine holds no {split}/{city}/*_gtFine_labelIds.png or *_gtFine_polygons.json"),
        (["coco", "{maps}", "/dev/null"], "cannot be written (Not a directory)"),
        (
            ["cocoa", "a", "b"],
            "unknown set 'cocoa' (did you mean 'coco'?); choose from coco, coco_panoptic, context, cityscapes",
        ),
        (["coco"], "the following arguments are required: SOURCE, ROOT"),
    ],
)
def test_mistakes_are_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    put(tmp_path / "maps" / "val2017" / "000000000139.png", [[0]])
    folders = {"{empty}": str(tmp_path), "{root}": str(tmp_path / "root"), "{maps}": str(tmp_path / "maps")}
    assert convert.main([folders.get(word, word) for word in argv]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    assert message in line
    assert [path.name for path in tmp_path.iterdir()] == ["maps"]


def test_a_truncated_json_is_named_by_a_real_process(tmp_path: Path) -> None:
    file = tmp_path / "trainval_merged.json"
    file.write_text('{"images": [')
    assert f"{file}: not JSON (" in error_line(call("context", file, tmp_path))


def test_help_names_every_set() -> None:
    result = call("--help")
    assert result.returncode == 0
    for name in convert.SETS:
        assert f"\n  {name} " in result.stdout


@needs(MASKS)
def test_real_ade20k_and_voc_label_maps_are_read(tmp_path: Path) -> None:
    ade = tmp_path / "ade" / "ADEChallengeData2016"
    for kind in ("images", "annotations"):
        (ade / kind).mkdir(parents=True)
        (ade / kind / "validation").symlink_to(MASKS / "ade20k" / kind)
    benchmark = BENCHMARKS["ade20k"]
    items = find_items(benchmark, tmp_path)
    assert [item.id for item in items] == [f"ADE_val_{index:08}" for index in (1, 2, 3)]
    for item in items:
        stored = np.asarray(Image.open(item.label)).astype(int)
        label = read_label(benchmark, item, read_image(item.image).shape[:2]).astype(int)
        assert ((label == 255) == (stored == 0)).all()
        assert (label[stored > 0] == stored[stored > 0] - 1).all()

    voc = tmp_path / "VOCdevkit" / "VOC2012"
    for folder, name in (("JPEGImages", "2007_000129.jpg"), ("SegmentationClass", "2007_000129.png")):
        (voc / folder).mkdir(parents=True)
        (voc / folder / name).symlink_to(MASKS / "voc2012" / name)
    (voc / "ImageSets" / "Segmentation").mkdir(parents=True)
    (voc / "ImageSets" / "Segmentation" / "val.txt").symlink_to(MASKS / "voc2012" / "val.txt")
    assert len(find_items(BENCHMARKS["voc21"], tmp_path)) == BENCHMARKS["voc21"].files.count
    (item,) = [item for item in find_items(BENCHMARKS["voc21"], tmp_path) if item.id == "2007_000129"]
    label = read_label(BENCHMARKS["voc21"], item, read_image(item.image).shape[:2])
    assert {BENCHMARKS["voc21"].names[value] for value in np.unique(label) if value != 255} == {
        "background",
        "bicycle",
        "person",
    }
