"""`--check`: sound benchmark folders pass, and each fault is told in one line that names the file."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from helpers.paths import REPO
from miniature.world import WorldConfig, build_world
from owseg import InputError
from owseg.evaluation.check import SAMPLE, WHOLE, Report, check_benchmark
from owseg.evaluation.convert import SOURCE
from owseg.evaluation.datasets import BENCHMARKS, EvalDataset, Item, list_items, read_indices, read_names
from owseg.evaluation.protocols import EvaluateConfig
from pipelines import benchmark_check
from pipelines.app.settings import Config

IMAGES = 10
VOC = Path("VOCdevkit/VOC2012")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature benchmarks."""
    folder = tmp_path_factory.mktemp("world")
    build_world(WorldConfig(links=20, size=64, benchmark_images=IMAGES, tuning_images=10), folder, processes=1)
    return folder / "benchmarks"


@pytest.fixture
def root(world: Path, tmp_path: Path) -> Path:
    """A copy of the VOC and Cityscapes sets, to be broken."""
    for folder in ("VOCdevkit/VOC2012", "cityscapes", "classes"):
        shutil.copytree(world / folder, tmp_path / folder)
    return tmp_path


def benchmark_in(root: Path, name: str) -> EvalDataset:
    return replace(BENCHMARKS[name], names=read_names(root / "classes" / f"{name}.txt"))


def report(root: Path, name: str = "voc21") -> Report:
    return check_benchmark(benchmark_in(root, name), root)


def items(root: Path, name: str = "voc21") -> list[Item]:
    return list_items(benchmark_in(root, name), root)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_miniature_benchmarks_are_sound(world: Path, name: str) -> None:
    found = report(world, name)
    assert found == Report(images=IMAGES, decoded=IMAGES)
    assert found.verdict == "OK"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def save(array: np.ndarray, path: Path) -> None:
    Image.fromarray(array).save(path)


def wrong_size(path: Path) -> None:
    save(read_indices(path)[1:], path)


def unknown_value(path: Path) -> None:
    label = read_indices(path).copy()
    label[0, 0] = 13
    save(label, path)


def colours(path: Path) -> None:
    save(np.stack([read_indices(path)] * 3, axis=-1), path)


def sixteen_bits(path: Path) -> None:
    save(read_indices(path).astype(np.uint16) + 300, path)


@pytest.mark.parametrize(
    ("kind", "spoil", "message"),
    [
        ("label", wrong_size, "they must be the same size"),
        ("label", unknown_value, "label value 13 is outside the 13 classes of voc21"),
        ("label", colours, "mode RGB; a label map has one channel"),
        ("label", sixteen_bits, "label value 300 is outside the"),
        ("label", cut, "not a readable label map"),
        ("image", cut, "not a readable image"),
        ("image", lambda path: path.write_bytes(b""), "not a readable image"),
        ("label", lambda path: path.write_text("<html>404</html>"), "not a readable label map"),
    ],
)
def test_a_fault_is_told_in_one_line(root: Path, kind: str, spoil: Callable[[Path], object], message: str) -> None:
    path = getattr(items(root)[-1], kind)
    spoil(path)
    (problem,) = report(root).problems
    assert problem.startswith(f"{path}: ")
    assert message in problem
    assert "\n" not in problem


def test_of_a_big_set_a_spread_sample_is_decoded_and_all_that_is_cut_short(root: Path) -> None:
    folder = root / VOC
    ids = [f"2012_{index:06}" for index in range(1, WHOLE + 51)]
    for id_ in ids[IMAGES:]:
        for image in (folder / "JPEGImages" / f"{id_}.jpg", folder / "SegmentationClass" / f"{id_}.png"):
            image.hardlink_to(image.with_name(f"{ids[0]}{image.suffix}"))
    (folder / "ImageSets/Segmentation/val.txt").write_text("\n".join(ids))
    assert report(root) == Report(images=WHOLE + 50, decoded=SAMPLE)
    last = items(root)[-1].label  # of the sample
    label = read_indices(last).copy()
    label[0, 0] = 13
    last.unlink()
    save(label, last)
    (problem,) = report(root).problems
    assert problem.startswith(f"{last}: label value 13 ")
    cut(items(root)[0].image)  # and so all that share this file
    found = report(root)
    assert found.decoded > WHOLE
    assert len(found.problems) == 4
    assert found.problems[-1] == f"and {WHOLE + 50 - IMAGES + 1 - 3} more files like these"


def test_trailing_bytes_are_no_fault(root: Path) -> None:
    path = items(root)[7].image
    path.write_bytes(path.read_bytes() + b"\0" * 20)
    assert report(root).problems == ()


def test_missing_files_are_counted_and_the_remedy_is_told(root: Path) -> None:
    first, second, *_ = items(root, "cityscapes")
    first.label.unlink()
    second.label.unlink()
    (problem,) = report(root, "cityscapes").problems
    assert problem == (
        f"2 of {IMAGES} label maps are missing, the first is {first.label}: "
        f"run python pipelines/convert.py cityscapes GTFINE {root}"
    )
    with pytest.raises(InputError, match=r"labelTrainIds\.png is missing; run python pipelines/convert\.py cityscapes"):
        items(root, "cityscapes")


def test_missing_images_say_which_archive(root: Path) -> None:
    item = items(root)[3]
    item.image.unlink()
    (problem,) = report(root).problems
    assert problem == (
        f"1 of {IMAGES} images are missing, the first is {item.image}: unpack PASCAL VOC 2012's VOCtrainval_11-May-2012.tar "
        f"in {root}"
    )


def test_a_missing_split_is_a_problem(root: Path) -> None:
    split = root / VOC / "ImageSets/Segmentation/val.txt"
    split.unlink()
    (problem,) = report(root).problems
    assert problem.startswith(f"voc21: {split} is missing; ")
    shutil.rmtree(root / "cityscapes" / "leftImg8bit")
    (problem,) = report(root, "cityscapes").problems
    assert "no images; evaluate.root must hold cityscapes/leftImg8bit/val/*/*_leftImg8bit.png" in problem


def test_another_number_than_the_official_is_a_warning(root: Path) -> None:
    found = check_benchmark(BENCHMARKS["voc21"], root)
    assert found.problems == ()
    assert found.warnings == (f"{IMAGES} images, the official set has 1449: its scores cannot be compared with published ones",)
    assert found.verdict == "warning"


def test_maps_of_the_panoptic_annotations_are_told(root: Path) -> None:
    for item in items(root):
        text = PngInfo()
        text.add_text(SOURCE, "coco_panoptic")
        Image.open(item.label).save(item.label, pnginfo=text)
    assert "panoptic" in report(root).warnings[0]


def test_official_counts() -> None:
    counts = {"voc21": 1449, "voc20": 1449, "context60": 5104, "context59": 5104, "coco_object": 5000, "coco_stuff": 5000}
    counts |= {"cityscapes": 500, "ade20k": 2000}
    assert {name: benchmark.files.count for name, benchmark in BENCHMARKS.items()} == counts


# ------------------------------------------------------------------------------------------------------- the command line


def check(root: Path, run_dir: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPO / "pipelines" / "evaluate.py"), "--check", f"run_dir={run_dir}"]
    places = [f"evaluate.root={root}", f"evaluate.classes={root / 'classes'}", "evaluate.datasets=[voc21, voc20, cityscapes]"]
    return subprocess.run([*command, *places, *settings], capture_output=True, text=True, check=False)


def test_the_command_tells_a_sound_folder_and_leaves_no_run_behind(root: Path, tmp_path: Path) -> None:
    result = check(root, tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    rows = [line for line in result.stdout.splitlines() if "OK" in line]
    assert [row.split()[1] for row in rows] == ["voc21", "voc20", "cityscapes"]
    assert not (tmp_path / "run").exists()


def test_the_command_exits_2_with_a_line_for_each_problem(root: Path, tmp_path: Path) -> None:
    first, second, *_ = items(root)
    first.label.unlink()
    cut(second.image)
    (root / "classes" / "cityscapes.txt").unlink()
    result = check(root, tmp_path / "run")
    assert result.returncode == 2
    problems = [line for line in result.stdout.splitlines() if line.startswith("problem: ")]
    for name in ("voc21", "voc20"):
        lines = [line for line in problems if line.startswith(f"problem: {name}: ")]
        assert len(lines) == 2
        assert str(first.label) in lines[0]
        assert str(second.image) in lines[1]
    assert len(problems) == 5
    assert "cityscapes.txt" in problems[-1]
    (error,) = result.stderr.splitlines()
    assert error == "error: 3 of 3 benchmarks cannot be scored as they are: voc21, voc20, cityscapes"


def test_a_missing_root_is_told(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    with pytest.raises(InputError, match=rf"evaluate\.root: {nowhere} is no folder; it must hold VOCdevkit"):
        benchmark_check.check(Config(evaluate=EvaluateConfig(root=str(nowhere))))


def test_without_a_root_the_miniature_world_of_the_run_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = WorldConfig(links=20, size=64, benchmark_images=IMAGES, tuning_images=10)
    benchmark_check.check(Config(run_dir=str(tmp_path), miniature=world))
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "OK" in line]
    assert [row[1] for row in rows] == list(BENCHMARKS)
    assert {(row[3], row[5]) for row in rows} == {(str(IMAGES), str(IMAGES))}
