"""What systems and editors leave in folders is nobody's data, wherever folders are listed."""

import os
from pathlib import Path

import pytest

from helpers.leftovers import LEFTOVER_FOLDERS, LEFTOVERS
from helpers.voc import write_voc
from owseg import InputError
from owseg.checkpoint import files_at
from owseg.evaluation.convert_cityscapes import IDS, plan_cityscapes
from owseg.evaluation.datasets import BENCHMARKS, list_items
from owseg.evaluation.own_dataset import OwnDataset
from owseg.listing import files_below
from owseg.training import shards_of


def litter(folder: Path, content: bytes = b"") -> None:
    """All that systems leave, beside and below what is in a folder; `._NAME` for each file of it, as macOS does."""
    for name in (*LEFTOVERS, *(f"._{path.name}" for path in folder.iterdir())):
        (folder / name).write_bytes(content)
    for name in LEFTOVER_FOLDERS:
        (folder / name).mkdir()
        for path in [path for path in folder.iterdir() if path.is_file()][:3]:
            (folder / name / path.name).write_bytes(content)


def test_every_file_once_and_no_leftover(tmp_path: Path) -> None:
    """A link to another folder is followed once, one back up ends, and one that leads nowhere is a file that is missed."""
    photos, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    for file in (photos / "a.png", photos / "day one" / "b.png", elsewhere / "c.png"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    litter(photos)
    litter(photos / "day one")
    (photos / "more").symlink_to(elsewhere)
    (photos / "again").symlink_to(elsewhere)
    (photos / "day one" / "up").symlink_to(photos)
    (photos / "z.png").symlink_to(tmp_path / "nothing")
    found = [path.relative_to(photos).as_posix() for path in files_below(photos)]
    assert found == ["a.png", "z.png", "again/c.png", "day one/b.png"]


def test_a_folder_that_may_not_be_looked_into_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"/photos: cannot be listed \(Permission denied\)"):
        list(files_below(tmp_path / "photos"))


def test_benchmarks_that_are_listed_by_their_files(tmp_path: Path) -> None:
    for name, images, label in (
        ("ade20k", "ade/ADEChallengeData2016/images/validation", "ade/ADEChallengeData2016/annotations/validation/x.png"),
        ("coco_stuff", "coco_stuff164k/images/val2017", "coco_stuff164k/annotations/val2017/x_labelTrainIds.png"),
        ("coco_object", "coco_stuff164k/images/val2017", "coco_stuff164k/annotations/val2017/x_instanceTrainIds.png"),
    ):
        file = tmp_path / images / "x.jpg"
        if not file.exists():
            file.parent.mkdir(parents=True)
            file.write_bytes(b"jpeg")
            litter(file.parent)
            (file.parent / "._x.jpg").write_bytes(b"AppleDouble")
        (tmp_path / label).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / label).write_bytes(b"png")
        assert [item.id for item in list_items(BENCHMARKS[name], tmp_path)] == ["x"]
    city = tmp_path / "cityscapes" / "leftImg8bit" / "val" / "ulm"
    city.mkdir(parents=True)
    (city / "a_leftImg8bit.png").write_bytes(b"png")
    litter(city)
    hidden = city.parent / "__MACOSX"
    hidden.mkdir()
    (hidden / "a_leftImg8bit.png").write_bytes(b"AppleDouble")
    label = tmp_path / "cityscapes" / "gtFine" / "val" / "ulm" / "a_gtFine_labelTrainIds.png"
    label.parent.mkdir(parents=True)
    label.write_bytes(b"png")
    assert [item.id for item in list_items(BENCHMARKS["cityscapes"], tmp_path)] == ["a"]


def test_benchmarks_that_have_a_list_do_not_look_around(tmp_path: Path) -> None:
    write_voc(tmp_path, count=2)
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        litter(tmp_path / "VOCdevkit" / "VOC2012" / folder)
    assert [item.id for item in list_items(BENCHMARKS["voc20"], tmp_path)] == ["2007_000000", "2007_000001"]


def test_the_converters_source(tmp_path: Path) -> None:
    city = tmp_path / "gtFine" / "val" / "ulm"
    city.mkdir(parents=True)
    (city / f"a{IDS}").write_bytes(b"png")
    litter(city)
    assert [job.source.name for job in plan_cityscapes(tmp_path, tmp_path / "root").jobs] == [f"a{IDS}"]


def test_an_own_dataset(tmp_path: Path) -> None:
    for folder, file in (("images", "a.jpg"), ("labels", "a.png")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_bytes(b"picture")
        litter(tmp_path / folder)
    (tmp_path / "names.txt").write_text("cat\n")
    own = OwnDataset(name="own", images=f"{tmp_path}/images", labels=f"{tmp_path}/labels", names=f"{tmp_path}/names.txt")
    assert [item.id for item in list_items(own.dataset(), tmp_path)] == ["a"]


def test_shards_and_the_files_of_a_tower(tmp_path: Path) -> None:
    (tmp_path / "00000.tar").touch()
    litter(tmp_path)
    assert [path.name for path in shards_of(tmp_path)] == ["00000.tar"]
    assert [path.name for path in files_at(str(tmp_path))] == ["00000.tar"]
