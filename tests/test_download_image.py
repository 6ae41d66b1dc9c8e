"""Checks and pixels: the header decides first, and the pixels are img2dataset's own."""

import io
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
from download_web import picture, png_header
from PIL import Image

from filtering.image import ImageConfig, Resize
from filtering.stage import InputError


def resize(data: bytes, **settings: object) -> tuple[str, int | None, int | None, int | None, int | None]:
    done = Resize(ImageConfig(**settings))(data)  # type: ignore[arg-type]
    assert (done.status == "success") == bool(done.jpeg) == (done.width is not None)
    return done.status, done.width, done.height, done.original_width, done.original_height


@pytest.mark.parametrize("mode", ["no", "keep_ratio", "keep_ratio_largest", "center_crop", "border"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("only_if_bigger", [True, False])
def test_pixels_are_those_of_img2dataset(mode: str, kind: str, only_if_bigger: bool) -> None:
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # what Resize sets before its own import
    from img2dataset.resizer import Resizer

    for size in ((200, 120), (40, 60)):
        data = picture(1, size, kind)
        done = Resize(ImageConfig(image_size=64, resize_mode=mode, resize_only_if_bigger=only_if_bigger))(data)  # type: ignore[arg-type]
        jpeg, width, height, original_width, original_height, error = Resizer(64, mode, only_if_bigger)(io.BytesIO(data))
        assert error is None
        assert done.jpeg == jpeg
        assert (done.width, done.height) == (width, height)
        assert (done.original_width, done.original_height) == (original_width, original_height) == size
        assert cv2.imdecode(np.frombuffer(done.jpeg, np.uint8), cv2.IMREAD_COLOR).shape == (height, width, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF"])
def test_formats_of_the_web(kind: str) -> None:
    assert resize(picture(0, (96, 64), kind)) == ("success", 96, 64, 96, 64)


@pytest.mark.parametrize("data", [b"", b"<html>gone</html>", b"\xff\xd8\xff", b"GIF89a", bytes(1000), b"%PDF-1.4 ..."])
def test_what_is_no_image(data: bytes) -> None:
    assert resize(data)[0] in ("not_an_image", "undecodable")


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
    file = io.BytesIO()
    Image.open(io.BytesIO(picture(0, (300, 200)))).save(file, "JPEG", exif=exif, progressive=progressive)
    return file.getvalue()


@pytest.mark.parametrize("progressive", [False, True])
def test_truncated_jpegs_are_refused(progressive: bool) -> None:
    whole = thumbnailed(progressive)
    assert whole.count(b"\xff\xd9") == 2
    assert resize(whole)[0] == "success"
    assert resize(whole + b"trailing bytes \xff\xd8")[0] == "success"
    for cut in (1, 2, 20, 500, 2000):
        assert resize(whole[:-cut])[0] == "truncated"


def test_several_pictures_in_one_jpeg() -> None:
    """As phones write them; the first one counts."""
    first, second = (Image.open(io.BytesIO(picture(seed))) for seed in (0, 1))
    file = io.BytesIO()
    first.save(file, "MPO", save_all=True, append_images=[second])
    both = file.getvalue()
    end_of_first = both.index(b"\xff\xd9") + 2
    assert end_of_first < len(both) - 500
    assert resize(both) == resize(both[:end_of_first]) == ("success", 96, 64, 96, 64)
    assert resize(both[: end_of_first - 100])[0] == "truncated"


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "AVIF"])
def test_other_truncated_images_are_refused(kind: str) -> None:
    whole = picture(0, (96, 64), kind)
    for cut in (20, len(whole) // 2):
        assert resize(whole[:-cut])[0] != "success"


def test_16_bit_png_is_refused() -> None:
    ok, data = cv2.imencode(".png", np.full((64, 64, 3), 30_000, np.uint16))
    assert ok
    assert resize(data.tobytes())[0] == "unsupported_depth"


def test_the_resizer_comes_without_the_rest_of_img2dataset() -> None:
    code = "import sys; from filtering.image import *; Resize(ImageConfig()); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"cv2", "albumentations"} <= set(modules)
    assert not {"torch", "ray", "wandb"} & set(modules)


def test_standard_output_survives(capfd: pytest.CaptureFixture[str]) -> None:
    Resize(ImageConfig())(picture())
    os.write(1, b"still here")
    assert capfd.readouterr().out == "still here"


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"image_size": 0}, "image_size"), ({"max_aspect": 0.5}, "max_aspect"), ({"quality": 101}, "quality")],
)
def test_bad_settings_are_named(settings: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=f"^{named}: "):
        ImageConfig(**settings)  # type: ignore[arg-type]
