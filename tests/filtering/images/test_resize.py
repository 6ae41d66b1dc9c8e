"""Checks and pixels: the header decides first, sizes are img2dataset's, and images look as browsers show them."""

import io
import os
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pixels import photo, psnr

from filtering import InputError
from filtering.images.resize import ImageConfig, Resize, img2dataset_resizer
from helpers.download_web import picture, png_header
from helpers.paths import COCO_MINI

MODES = ("no", "keep_ratio", "keep_ratio_largest", "center_crop", "border")


def resize(data: bytes, **settings: Any) -> tuple[str, int | None, int | None, int | None, int | None]:
    done = Resize(ImageConfig(**settings))(data)
    assert (done.status == "success") == bool(done.jpeg) == (done.width is not None) == (done.phash is not None)
    return done.status, done.width, done.height, done.original_width, done.original_height


def kept(data: bytes, **settings: Any) -> NDArray[np.uint8]:
    """The kept picture in RGB."""
    done = Resize(ImageConfig(**{"resize_mode": "no", "min_side": 1, "quality": 100, **settings}))(data)
    assert done.status == "success", done
    with Image.open(io.BytesIO(done.jpeg)) as image:
        assert image.mode == "RGB" or settings.get("pixels") == "img2dataset"  # which keeps grey JPEGs grey
        assert image.size == (done.width, done.height)
        return np.asarray(image.convert("RGB"))


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def scene(size: tuple[int, int] = (96, 64), seed: int = 0) -> Image.Image:
    with Image.open(io.BytesIO(picture(seed, size, "PNG"))) as image:
        return image.convert("RGB")


def difference(one: NDArray[np.uint8], other: Any) -> float:
    """The mean over pixels; that of two unrelated pictures is some 60."""
    assert one.shape == np.asarray(other).shape
    return float(np.abs(one.astype(int) - np.asarray(other)).mean())


def differing_bits(one: str | None, other: str | None) -> int:
    assert one is not None
    assert other is not None
    assert len(one) == len(other) == 16
    return (int(one, 16) ^ int(other, 16)).bit_count()


# --- as img2dataset does it


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("only_if_bigger", [True, False])
def test_pixels_can_be_those_of_img2dataset(mode: str, kind: str, only_if_bigger: bool) -> None:
    for size in ((200, 120), (40, 60)):
        data = picture(1, size, kind)
        config = ImageConfig(image_size=64, resize_mode=mode, resize_only_if_bigger=only_if_bigger, pixels="img2dataset")  # type: ignore[arg-type]
        done = Resize(config)(data)
        jpeg, width, height, original_width, original_height, error = img2dataset_resizer()(64, mode, only_if_bigger)(
            io.BytesIO(data)
        )
        assert error is None
        assert done.jpeg == jpeg
        assert (done.width, done.height) == (width, height)
        assert (done.original_width, done.original_height) == (original_width, original_height) == size


@pytest.mark.parametrize("mode", ["border", "keep_ratio", "center_crop"])
def test_photos_can_have_the_pixels_of_img2dataset(mode: str) -> None:
    real = [path.read_bytes() for path in sorted((COCO_MINI / "images").glob("*.jpg"))[:12]]
    ours = Resize(ImageConfig(image_size=256, resize_mode=mode, quality=90, pixels="img2dataset"))  # type: ignore[arg-type]
    theirs = img2dataset_resizer()(256, mode, True, encode_quality=90)
    for data in [photo(seed, size) for seed, size in enumerate([(640, 427), (333, 500), (801, 600)])] + real:
        assert ours(data).jpeg == theirs(io.BytesIO(data))[0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("only_if_bigger", [True, False])
def test_sizes_and_lossless_pixels_are_always_those_of_img2dataset(mode: str, only_if_bigger: bool) -> None:
    chance = random.Random(f"{mode} {only_if_bigger}")
    sizes = [(chance.randint(1, 90), chance.randint(1, 90)) for _ in range(25)]
    sizes += [(1, 1), (1, 64), (64, 1), (1, 900), (900, 1), (33, 32), (32, 33), (31, 32), (32, 32), (64, 63), (96, 65)]
    sizes += [(64, side) for side in range(1, 130, 4)]  # exact ties when halved
    for i, size in enumerate(sizes):
        side = 32 if i % 2 else 31
        config = ImageConfig(
            image_size=side,
            resize_mode=mode,  # type: ignore[arg-type]
            resize_only_if_bigger=only_if_bigger,
            min_side=1,
            max_aspect=1000,
        )
        pixels = np.random.default_rng(i).integers(0, 256, (size[1], size[0], 3), np.uint8)
        data = saved(Image.fromarray(pixels), "BMP")
        done = Resize(config)(data)
        jpeg, width, height, _, _, error = img2dataset_resizer_of(side, mode, only_if_bigger)(io.BytesIO(data))
        assert error is None
        assert (done.width, done.height) == (width, height), size
        assert done.jpeg == jpeg, size


def img2dataset_resizer_of(side: int, mode: str, only_if_bigger: bool) -> Any:
    return img2dataset_resizer()(side, mode, only_if_bigger)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("grey", [False, True])
def test_reduced_decoding_gives_nearly_the_same_picture(mode: str, grey: bool) -> None:
    """Sizes that 2, 4 and 8 do not divide: a picture shifted by half a pixel falls below this bound."""
    for size, target in (((640, 427), 256), ((427, 641), 200), ((1001, 751), 120), ((805, 743), 65)):
        data = photo(7, size)
        if grey:
            data = saved(Image.open(io.BytesIO(data)).convert("L"), "JPEG", quality=95)
        fast, same = (kept(data, image_size=target, resize_mode=mode, pixels=pixels) for pixels in ("fast", "img2dataset"))
        assert psnr(fast, same) > 37
        one, other = (hash_of(data, image_size=target, resize_mode=mode, pixels=pixels) for pixels in ("fast", "img2dataset"))
        assert differing_bits(one, other) <= 6


def test_what_is_not_reduced_is_nearly_averaged_too() -> None:
    """Noise, of which interpolation alone would keep too much: 29 dB."""
    noise = np.random.default_rng(0).integers(60, 196, (200, 300, 3), np.uint8)
    data = saved(Image.fromarray(noise), "JPEG", quality=98, subsampling="4:4:4")
    fast, same = (kept(data, image_size=155, resize_mode="border", pixels=pixels) for pixels in ("fast", "img2dataset"))
    assert 34 < psnr(fast, same) < 60


def test_a_picture_of_far_more_pixels_is_averaged() -> None:
    """Beyond 16 times the target, where reduced decoding ends."""
    data = photo(3, (901, 702))
    fast, same = (kept(data, image_size=32, resize_mode="border", pixels=pixels) for pixels in ("fast", "img2dataset"))
    assert psnr(fast, same) > 33


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


@pytest.mark.parametrize(("pixels", "loaded"), [("fast", False), ("img2dataset", True)])
def test_what_is_imported(pixels: str, loaded: bool) -> None:
    code = f"import sys; from filtering.images.resize import *; Resize(ImageConfig(pixels={pixels!r})); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "cv2" in modules
    assert ("albumentations" in modules) == loaded
    assert not {"torch", "ray", "wandb", "img2dataset"} & set(modules)


@pytest.mark.parametrize("pixels", ["fast", "img2dataset"])
def test_standard_output_survives(capfd: pytest.CaptureFixture[str], pixels: str) -> None:
    Resize(ImageConfig(pixels=pixels))(picture())  # type: ignore[arg-type]
    os.write(1, b"still here")
    assert capfd.readouterr().out == "still here"


# --- right on purpose


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("pixels", ["fast", "img2dataset"])
def test_exif_orientation(kind: str, orientation: int, pixels: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(scene((400, 250)), kind, exif=exif)
    with Image.open(io.BytesIO(data)) as stored:
        seen = ImageOps.exif_transpose(stored).convert("RGB")
    assert seen.size == ((250, 400) if orientation >= 5 else (400, 250))
    assert resize(data, image_size=90, pixels=pixels)[3:] == seen.size
    assert difference(kept(data, pixels=pixels), seen) < 3
    small = kept(data, pixels=pixels, resize_mode="keep_ratio", image_size=90)  # decoded at half its scale
    assert difference(small, seen.resize(small.shape[1::-1], Image.Resampling.BOX)) < 3
    assert resize(data, max_aspect=1.5)[0] == "too_elongated"
    assert resize(data, max_aspect=1.5)[3:] == seen.size


@pytest.mark.filterwarnings("ignore::UserWarning")  # as `filtering.images.resize` has it, until pytest sets its own filters
@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0",
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(range(256)),
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0\0\0\x08\0\0\0",  # orientation 9, next directory: this one
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\xff\xff\xff\x7f\x06\0\0\0\0\0\0\0",  # a text of 2 GB
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x05\0\x01\0\0\0\x08\0\0\0\0\0\0\0",  # a fraction
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x02\0\0\0\x06\0\x06\0\0\0\0\0",  # two of them
        random.Random(0).randbytes(60_000),
    ],
)
def test_malformed_exif_is_harmless(exif: bytes) -> None:
    jpeg = saved(scene(), "JPEG", exif=exif) if exif else picture()
    for data in (jpeg, saved(scene(), "PNG", exif=exif)):
        assert resize(data) in (("success", 96, 64, 96, 64), ("success", 64, 96, 64, 96))


@pytest.mark.parametrize("pixels", ["fast", "img2dataset"])
def test_16_bits_are_scaled_to_8(pixels: str) -> None:
    ramp = np.tile(np.linspace(0, 65535, 128).astype(np.uint16), (64, 1))
    ok, grey = cv2.imencode(".png", ramp)
    assert ok
    assert difference(kept(grey.tobytes(), pixels=pixels), np.stack([ramp >> 8] * 3, axis=2)) < 1
    blue, green, red = ramp, ramp[:, ::-1], ramp // 2
    ok, colours = cv2.imencode(".png", np.stack([blue, green, red], axis=2))
    assert ok
    expected = np.stack([red, green, blue], axis=2) >> 8
    assert difference(kept(colours.tobytes(), pixels=pixels), expected) < 3
    alpha = np.where(np.arange(128) < 64, 0, 65535).astype(np.uint16) * np.ones((64, 1), np.uint16)
    ok, transparent = cv2.imencode(".png", np.stack([blue, green, red, alpha], axis=2))
    assert ok
    assert difference(kept(transparent.tobytes(), pixels=pixels), np.where(alpha[..., None] > 0, expected, 255)) < 3


def left_transparent(image: Image.Image, mode: str) -> Image.Image:
    """The image, its left half transparent."""
    image = image.convert(mode)
    alpha = Image.new("L", image.size, 255)
    alpha.paste(0, (0, 0, image.width // 2, image.height))
    image.putalpha(alpha)
    return image


def on_white(image: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")


@pytest.mark.parametrize("pixels", ["fast", "img2dataset"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "AVIF"])
def test_transparency_is_put_on_white(kind: str, pixels: str) -> None:
    image = left_transparent(scene(), "RGB")
    data = saved(image, kind)
    result = kept(data, pixels=pixels)
    assert result[:, :40].min() > 250
    with Image.open(io.BytesIO(data)) as stored:
        assert difference(result, on_white(stored)) < 3
    assert difference(result[:, 52:], scene().crop((52, 0, 96, 64))) < 12  # a GIF has few colours


@pytest.mark.parametrize("pixels", ["fast", "img2dataset"])
def test_kinds_of_png(pixels: str) -> None:
    image = scene()
    grey_alpha = left_transparent(image, "L")
    palette = image.quantize(32)
    spotted = image.quantize(32)
    spotted.paste(5, (0, 0, 48, 64))
    holes = np.array(spotted.convert("RGB"))
    holes[np.asarray(spotted) == 5] = 255
    keyed = np.asarray(image).copy()
    keyed[:10] = (1, 2, 3)
    cases: dict[str, tuple[bytes, Any]] = {
        "1 bit": (saved(image.convert("1"), "PNG"), image.convert("1").convert("RGB")),
        "grey": (saved(image.convert("L"), "PNG"), image.convert("L").convert("RGB")),
        "grey and alpha": (saved(grey_alpha, "PNG"), on_white(grey_alpha)),
        "palette": (saved(palette, "PNG"), palette.convert("RGB")),
        "palette of 4 bits": (saved(image.quantize(16), "PNG", bits=4), image.quantize(16).convert("RGB")),
        "transparent palette colour": (saved(spotted, "PNG", transparency=5), holes),
        "palette with alphas": (saved(spotted, "PNG", transparency=bytes([255] * 5 + [0] + [255] * 26)), holes),
        "transparent colour": (
            saved(Image.fromarray(keyed), "PNG", transparency=(1, 2, 3)),
            np.where(np.arange(64)[:, None, None] < 10, 255, keyed),
        ),
    }
    for name, (data, expected) in cases.items():
        shown = saved(expected if isinstance(expected, Image.Image) else Image.fromarray(expected), "PNG")
        assert difference(kept(data, pixels=pixels), kept(shown)) < 0.1, name


def cmyk_jpeg(image: Image.Image, kind: str) -> bytes:
    """The image in four inks, which every program stores inverted. "YCCK" holds the first three as luma and chroma."""
    inks = ImageOps.invert(image)  # without black
    if kind == "YCCK":  # decoding turns what is stored into RGB and inverts that; Pillow inverts all four when it writes
        inks = Image.merge("RGB", [ImageOps.invert(band) for band in inks.convert("YCbCr").split()])
    data = saved(Image.merge("CMYK", [*inks.split(), Image.new("L", image.size)]), "JPEG", quality=98)
    at = data.index(b"\xff\xee\x00\x0eAdobe")
    if kind == "bare":
        return data[:at] + data[at + 16 :]
    return data[: at + 15] + bytes([2 if kind == "YCCK" else 0]) + data[at + 16 :]


@pytest.mark.parametrize("pixels", ["fast", "img2dataset"])
@pytest.mark.parametrize("kind", ["CMYK", "YCCK", "bare"])
def test_cmyk_is_converted(kind: str, pixels: str) -> None:
    shown = scene((401, 303))
    data = cmyk_jpeg(shown, kind)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "CMYK"
    assert difference(kept(data, pixels=pixels), shown) < 3
    small = kept(data, pixels=pixels, resize_mode="keep_ratio", image_size=90)
    assert difference(small, shown.resize(small.shape[1::-1], Image.Resampling.BOX)) < 3


def test_kinds_of_jpeg() -> None:
    image = scene((301, 203))
    grey = image.convert("L")
    assert difference(kept(saved(grey, "JPEG", quality=95)), grey.convert("RGB")) < 3
    for options in ({"progressive": True}, {"subsampling": "4:4:4"}, {"subsampling": "4:1:1"}, {"keep_rgb": True}):
        assert difference(kept(saved(image, "JPEG", quality=95, **options)), image) < 3
        small = kept(saved(image, "JPEG", quality=95, **options), resize_mode="keep_ratio", image_size=60)
        assert difference(small, image.resize(small.shape[1::-1], Image.Resampling.BOX)) < 3


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF"])
def test_the_first_frame_of_an_animation_counts(kind: str) -> None:
    frames = [scene(seed=seed) for seed in range(3)]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=100)
    with Image.open(io.BytesIO(data)) as image:
        assert getattr(image, "n_frames", 1) == 3
    assert difference(kept(data), frames[0]) < 12
    assert difference(kept(data), frames[1]) > 20


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF"])
def test_formats_of_the_web(kind: str) -> None:
    assert resize(picture(0, (96, 64), kind)) == ("success", 96, 64, 96, 64)


@pytest.mark.parametrize("kind", ["TIFF", "ICO", "PPM", "TGA", "JPEG2000"])
def test_formats_that_browsers_do_not_show(kind: str) -> None:
    assert resize(saved(scene(), kind))[0] == "not_an_image"


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


# --- the perceptual hash


def hash_of(data: bytes, **settings: Any) -> str:
    done = Resize(ImageConfig(**{"image_size": 256, **settings}))(data)
    assert done.phash is not None
    return done.phash


def test_pictures_that_look_alike_have_nearly_the_same_hash() -> None:
    for seed in range(4):
        original = photo(seed, (640, 430))
        expected = hash_of(original)
        with Image.open(io.BytesIO(original)) as image:
            assert differing_bits(hash_of(saved(image, "JPEG", quality=40)), expected) <= 6
            assert differing_bits(hash_of(saved(image.resize((400, 269)), "PNG")), expected) <= 6
            assert differing_bits(hash_of(saved(image, "WEBP", quality=60)), expected) <= 6
            brighter = image.point(lambda value: min(255, int(value * 1.1) + 5))
            assert differing_bits(hash_of(saved(brighter, "JPEG")), expected) <= 8
        for mode in ("no", "keep_ratio_largest", "border"):  # the border does not count
            assert differing_bits(hash_of(original, resize_mode=mode), expected) <= 6
            assert differing_bits(hash_of(original, resize_mode=mode, pixels="img2dataset"), expected) <= 6


def test_different_pictures_have_different_hashes() -> None:
    hashes = [hash_of(photo(seed, (320, 240))) for seed in range(12)]
    assert min(differing_bits(*pair) for pair in combinations(hashes, 2)) >= 12
    assert all(int(text, 16).bit_count() == 32 for text in hashes)


def test_a_picture_of_one_colour_has_the_hash_zero() -> None:
    for colour in ("white", "black", (200, 30, 90)):
        assert hash_of(saved(Image.new("RGB", (300, 200), colour), "JPEG")) == "0" * 16
