"""Any photo with any labels, through the Python call."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers import tiny
from helpers.paths import REPO
from owseg import InputError
from owseg.evaluation.datasets import BENCHMARKS
from owseg.evaluation.inference import predict
from owseg.evaluation.protocols import Protocol, View
from owseg.photos import read_photo
from owseg.predict import Model, load

ORIENTATION = 0x0112


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_a_mask_lies_on_the_upright_photo(tmp_path: Path, model: Model, orientation: int, suffix: str) -> None:
    """What a camera stores and how it was held: the mask equals that of the photo turned by hand (EXIF 2.3, tag 0x0112)."""
    stored = tiny.blocks(40, 56)
    turned = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a),
    }[orientation](stored)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(stored).save(path, exif=exif)
    expected = model.segment(np.ascontiguousarray(turned), tiny.LABELS)
    for given in (path, str(path), Image.open(path)):
        result = model.segment(given, tiny.LABELS)
        assert (result.image == turned).all()
        assert (result.labels == expected.labels).all()
    assert len(np.unique(expected.labels)) > 1


def test_a_photo_with_broken_exif_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    Image.fromarray(tiny.blocks(16, 16)).save(path, exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xffgarbage")
    assert read_photo(path).shape == (16, 16, 3)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "PA", "1", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I;16", "I"])
def test_every_mode_of_pixels_becomes_rgb(mode: str) -> None:
    colours = tiny.blocks(24, 24)
    grey = np.asarray(Image.fromarray(colours).convert("L"))
    sixteen = grey.astype(np.uint16) * 257
    if mode.startswith("I"):
        image, expected = Image.fromarray(sixteen.astype(np.int32) if mode == "I" else sixteen), grey[..., None].repeat(3, 2)
    else:
        image = Image.fromarray(colours).convert(mode)
        expected = np.asarray(image.convert("RGB"))
    assert image.mode == mode
    assert (read_photo(image) == expected).all()
    assert (read_photo(np.asarray(sixteen)) == grey[..., None]).all()


def test_transparent_pixels_lie_on_white() -> None:
    hidden = np.zeros((2, 2, 4), np.uint8)
    hidden[0] = (200, 30, 30, 255)
    rgb = read_photo(hidden)
    assert (rgb[0] == (200, 30, 30)).all()
    assert (rgb[1] == 255).all()


@pytest.mark.parametrize(
    "array",
    [np.zeros((0, 5, 3), np.uint8), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8), np.zeros((4, 4, 3), np.float32)],
    ids=["empty", "two channels", "a line", "floats"],
)
def test_an_array_that_is_no_picture_is_refused(array: np.ndarray) -> None:
    with pytest.raises(InputError, match="image: an array of"):
        read_photo(array)


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (500, 3), (1, 700), (20, 9000), (31, 33)])
def test_any_size_is_segmented_and_drawn(model: Model, size: tuple[int, int]) -> None:
    result = model.segment(tiny.blocks(*size), tiny.LABELS)
    assert result.labels.shape == result.scores.shape == size
    assert result.mask().size == size[::-1]
    assert result.overlay().width >= 1
    assert sum(result.shares().values()) + (result.labels == -1).mean() == pytest.approx(1)


def test_a_large_photo_needs_no_plane_for_each_label(tiny_run: Path) -> None:
    """40 planes of 4 megapixels would take 640 MB; the process grows by less than half of that."""
    code = (
        "import resource, sys, numpy as np; from owseg.predict import load\n"
        f"model = load({str(tiny_run)!r}); labels = [f'thing {{i}}' for i in range(40)]\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10\n"
        "model.segment(np.zeros((32, 32, 3), np.uint8), labels); before = peak()\n"
        "result = model.segment(np.zeros((2000, 2000, 3), np.uint8), labels); result.overlay(); result.mask()\n"
        "print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 320


def test_the_masks_are_those_that_the_evaluator_scores(model: Model, photo: Path) -> None:
    image = read_photo(photo)
    protocol = Protocol(
        benchmark=replace(BENCHMARKS["voc21"], names=("background", *tiny.LABELS)),
        view=tiny.VIEW,
        queries=tuple(tiny.LABELS),
        class_of_query=(1, 2, 3),
    )
    classes = model.segmenter.embed_classes(tiny.LABELS)
    scored = predict(model.segmenter, image, classes, protocol, model.checkpoint.normalisation).labels
    assert (model.segment(photo, tiny.LABELS).labels + 1 == scored).all()


def test_nothing_is_what_no_label_fits(tiny_run: Path, photo: Path) -> None:
    scores = load(tiny_run).segment(photo, tiny.LABELS).scores
    half = float(np.median(scores))
    result = load(tiny_run, background_threshold=half).segment(photo, tiny.LABELS)
    assert ((result.labels == -1) == (scores <= half)).all()
    assert 0.2 < (result.labels == -1).mean() < 0.8
    everywhere = load(tiny_run, background_threshold=half).segment(photo, tiny.LABELS, background=False)
    assert everywhere.labels.min() >= 0
    assert (everywhere.labels == result.labels)[result.labels >= 0].all()
    drawn = load(
        "chance", encoder_model=str(tiny_run / "train" / "tcl" / "model.json"), encoder_weights=str(tiny.encoder_of(tiny_run))
    )
    assert set(np.unique(drawn.segment(photo, tiny.LABELS).labels)) == {-1, 0, 1, 2}  # its background is a plane of its own


def test_sizes_and_settings_can_be_changed(tiny_run: Path, model: Model, photo: Path) -> None:
    finer = load(tiny_run, view=View(short_side=64, window=32, stride=16))
    assert (finer.segment(photo, tiny.LABELS).scores != model.segment(photo, tiny.LABELS).scores).any()
    assert load(tiny_run, pamr=True).checkpoint.method.pamr  # type: ignore[union-attr]
    with pytest.raises(InputError, match="threshold: tcl has no such setting; it has area_prior"):
        load(tiny_run, threshold=0.5)
    with pytest.raises(InputError, match="background_threshold: 2 is outside"):
        load(tiny_run, background_threshold=2)
    with pytest.raises(InputError, match="device: 'warp' cannot be used here"):
        load(tiny_run, device="warp")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "labels: there are none"),
        (["cat", "  "], "labels: number 2 is empty"),
        (["red  Wall", "cat", "red wall"], "labels: 'red wall' is given twice"),
        ("cat", "labels: give a list"),
    ],
)
def test_labels_that_cannot_be_meant(model: Model, photo: Path, labels: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.segment(photo, labels)


def test_any_text_is_a_label(model: Model, photo: Path) -> None:
    labels = ["{curly} braces {}", "ein Käse 🧀", "x" * 3000, "background", "cat, or dog"]
    result = model.segment(photo, labels, background=False)
    assert tuple(result.shares()) == tuple(labels)
    assert result.overlay().width < 2000  # a long name is cut


def test_more_labels_than_a_palette_has_colours(model: Model, photo: Path) -> None:
    result = model.segment(photo, [f"thing {i}" for i in range(300)], background=False)
    assert (np.asarray(result.mask()) == result.labels + 1).all()
    assert result.overlay().width > 0
