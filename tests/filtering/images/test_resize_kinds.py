"""Images look as browsers show them: orientation, depth, transparency, colour spaces, animations."""

import io
import random
import struct
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from filtering.images.reasons import failure_of
from helpers.download_web import picture
from helpers.pictures import difference, kept, resize, saved, scene


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


def bitmap(bits: int, masks: bytes) -> bytes:
    """A BMP of 40 x 40 whose colours are where the masks say."""
    pixels = bytes(40 * 40 * bits // 8)
    header = struct.pack("<IiiHHIIiiII", 40, 40, 40, 1, bits, 3, len(pixels), 0, 0, 0, 0) + masks
    return b"BM" + struct.pack("<IHHI", 14 + len(header) + len(pixels), 0, 0, 14 + len(header)) + header + pixels


def test_bitmaps_with_masks() -> None:
    assert resize(bitmap(16, struct.pack("<III", 0xF800, 0x7E0, 0x1F)))[0] == "success"


@pytest.mark.parametrize("kind", ["PPM", "TGA", "PDF"])
def test_formats_that_browsers_do_not_show(kind: str) -> None:
    assert resize(saved(scene(), kind))[0] == "not_an_image"


@pytest.mark.parametrize(
    "data",
    [
        *(saved(scene(), kind) for kind in ("TIFF", "ICO", "JPEG2000")),
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99),
        b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(99),
        b"\xff\x0a" + bytes(99),
        bitmap(16, struct.pack("<III", 0xF00, 0xF0, 0xF)),
        bitmap(32, struct.pack("<III", 0x3FF00000, 0xFFC00, 0x3FF)),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\xef\xbb\xbf <?xml version='1.0'?>\n<!-- a --><!-- <b> -->\n<!DOCTYPE svg PUBLIC 'x' 'y'>\n<svg width='9'>",
    ],
)
def test_images_that_only_we_cannot_read_may_be_asked_for_again(data: bytes) -> None:
    status = resize(data)[0]
    assert (status, failure_of(status)) == ("unsupported_format", "policy")


def test_markup_that_is_made_to_be_hard_to_tell_from_svg() -> None:
    assert resize(b"<!---->" * 50_000 + b"<html>")[0] == "not_an_image"
