"""The digest of a benchmark's data: of its bytes, wherever they lie, and read once."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.voc import write_voc
from owseg.evaluation.protocols import EvaluateConfig
from pipelines.app import benchmark_data as module
from pipelines.app.benchmark_data import benchmark_data


@pytest.fixture
def config(tmp_path: Path) -> EvaluateConfig:
    write_voc(tmp_path / "sets", count=3)
    return EvaluateConfig(root=str(tmp_path / "sets"), datasets=("voc21", "voc20"))


def digests(config: EvaluateConfig, out: Path) -> dict[str, str]:
    out.mkdir(exist_ok=True)
    return {name: data.digest for name, data in benchmark_data(config, out).items()}


def test_the_same_data_elsewhere_is_the_same(config: EvaluateConfig, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "sets", tmp_path / "copy")
    here = digests(config, tmp_path / "out")
    assert digests(replace(config, root=str(tmp_path / "copy")), tmp_path / "other") == here
    assert here["voc21"] == here["voc20"], "they are scored on the same files"


@pytest.mark.parametrize("kind", ["JPEGImages", "SegmentationClass"])
def test_another_pixel_is_other_data(kind: str, config: EvaluateConfig, tmp_path: Path) -> None:
    before = digests(config, tmp_path / "out")
    file = next(path for path in sorted((tmp_path / "sets").rglob("*")) if path.parent.name == kind)
    with Image.open(file) as image:
        changed = np.asarray(image).copy()
        palette = image.getpalette()
    changed[0, 0] = 1 - np.minimum(changed[0, 0], 1)
    written = Image.fromarray(changed)
    if palette:
        written = Image.fromarray(changed, mode="P")
        written.putpalette(palette)
    written.save(file)
    assert digests(config, tmp_path / "out")["voc21"] != before["voc21"]


def test_fewer_images_are_other_data_and_the_profile_counts_them(config: EvaluateConfig, tmp_path: Path) -> None:
    whole = benchmark_data(config, tmp_path)["voc20"]
    part = benchmark_data(replace(config, limit=2), tmp_path)["voc20"]
    assert whole.digest != part.digest
    assert whole.profile == {"images": 3, "classes": 20, "background": False}
    assert part.profile["images"] == 2


def test_files_are_read_once(config: EvaluateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    digest_of_file = module.digest_of_file

    def reading(path: Path) -> str:
        read.append(path)
        return digest_of_file(path)

    monkeypatch.setattr(module, "digest_of_file", reading)
    first = digests(config, tmp_path)
    assert len(read) == len({*read}) == 6
    assert digests(config, tmp_path) == first
    assert len(read) == 6
