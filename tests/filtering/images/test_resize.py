"""Checks of images: the header decides first, and what cannot be used is named."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from PIL import Image
from pixels import photo

from filtering import InputError
from filtering.images.image_config import ImageConfig
from filtering.images.resize import Resize
from helpers.download_web import picture, png_header
from helpers.pictures import difference, kept, resize, saved, scene


def test_several_threads_at_once() -> None:
    images = [photo(seed, (300 + seed, 200)) for seed in range(8)]
    resize = Resize(ImageConfig(image_size=64))
    alone = [resize(data) for data in images]
    barrier = threading.Barrier(4)

    def work(_: int) -> list[object]:
        barrier.wait(20)
        return [resize(data) for data in images]

    with ThreadPoolExecutor(4) as threads:
        assert all(done == alone for done in threads.map(work, range(4)))


@pytest.mark.parametrize("pixels", ["fast", "img2dataset"])
def test_what_is_imported(pixels: str) -> None:
    code = f"import sys; from filtering.images.resize import *; Resize(ImageConfig(pixels={pixels!r})); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "cv2" in modules
    assert not {"albumentations", "torch", "ray", "wandb", "img2dataset"} & set(modules)


@pytest.mark.parametrize("pixels", ["fast", "img2dataset"])
def test_standard_output_survives(capfd: pytest.CaptureFixture[str], pixels: str) -> None:
    Resize(ImageConfig(pixels=pixels))(picture())  # type: ignore[arg-type]
    os.write(1, b"still here")
    assert capfd.readouterr().out == "still here"


# --- what is refused


def test_what_is_no_image() -> None:
    resize = Resize(ImageConfig())
    for data in (b"", b"<html>gone</html>", bytes(1000), b"%PDF-1.4 ..."):
        done = resize(data)
        assert (done.status, done.message) == ("not_an_image", f"begins with {data[:16]!r}")
    assert resize(b"\xff\xd8\xff").status == "truncated"
    assert resize(b"GIF89a").status == "undecodable"


def test_too_many_pixels_are_refused_by_the_header() -> None:
    bomb = png_header(60_000, 60_000)
    assert len(bomb) < 200  # decoded it would take 10 GB
    assert resize(bomb)[0] == "too_many_pixels"
    assert resize(png_header(10_000, 8_000)) == ("too_many_pixels", None, None, 10_000, 8_000)
    assert resize(picture(), max_area=96 * 64)[0] == "success"
    assert resize(picture(), max_area=96 * 64 - 1)[0] == "too_many_pixels"


def test_size_and_shape() -> None:
    assert resize(picture(0, (96, 31)), min_side=32)[0] == "too_small"
    assert resize(picture(0, (96, 32)), min_side=32)[0] == "success"
    assert resize(picture(0, (97, 32)), max_aspect=3.0) == ("too_elongated", None, None, 97, 32)
    assert resize(picture(0, (32, 96)), max_aspect=3.0)[0] == "success"


def thumbnailed(progressive: bool) -> bytes:
    """A JPEG whose EXIF segment holds a whole other JPEG, end marker included."""
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x927C] = picture(5, (40, 40))  # MakerNote: free bytes
    return saved(scene((300, 200)), "JPEG", exif=exif, progressive=progressive)


@pytest.mark.parametrize("progressive", [False, True])
def test_truncated_jpegs_are_refused(progressive: bool) -> None:
    whole = thumbnailed(progressive)
    assert whole.count(b"\xff\xd9") == 2
    assert resize(whole)[0] == "success"
    assert resize(whole + b"trailing bytes \xff\xd8")[0] == "success"
    for cut in (1, 2, 20, 500, 2000):
        assert resize(whole[:-cut])[0] == "truncated"
        assert resize(whole[:-cut] + bytes(cut))[0] == "truncated"
    assert resize(whole[: whole.index(b"\xff\xd9") + 2])[0] != "success"


def test_several_pictures_in_one_jpeg() -> None:
    """As phones write them; the first one counts."""
    both = saved(scene(seed=0), "MPO", save_all=True, append_images=[scene(seed=1)])
    end_of_first = both.index(b"\xff\xd9") + 2
    assert end_of_first < len(both) - 500
    assert resize(both) == resize(both[:end_of_first]) == ("success", 96, 64, 96, 64)
    assert difference(kept(both), scene(seed=0)) < 3
    assert resize(both[: end_of_first - 100])[0] == "truncated"


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "AVIF"])
def test_other_truncated_images_are_refused(kind: str) -> None:
    whole = picture(0, (96, 64), kind)
    for cut in (20, len(whole) // 2):
        done = Resize(ImageConfig())(whole[:-cut])
        assert done.status == ("truncated" if kind == "PNG" else "undecodable")
        assert (done.message is None) == (kind == "PNG")


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"image_size": 0}, "image_size"), ({"max_aspect": 0.5}, "max_aspect"), ({"quality": 101}, "quality")],
)
def test_bad_settings_are_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=f"^{named}: "):
        ImageConfig(**settings)
