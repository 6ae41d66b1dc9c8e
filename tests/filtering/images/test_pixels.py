"""Pixels and sizes are img2dataset's, or nearly so where decoding is reduced."""

import io
import random
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pixels import photo, psnr

from filtering.images.image_config import ImageConfig
from filtering.images.resize import Resize, img2dataset_resizer
from helpers.download_web import picture
from helpers.paths import COCO_MINI
from helpers.pictures import MODES, differing_bits, hash_of, kept, saved


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
        assert done.image == jpeg
        assert (done.width, done.height) == (width, height)
        assert (done.original_width, done.original_height) == (original_width, original_height) == size


@pytest.mark.parametrize("mode", ["border", "keep_ratio", "center_crop"])
def test_photos_can_have_the_pixels_of_img2dataset(mode: str) -> None:
    real = [path.read_bytes() for path in sorted((COCO_MINI / "images").glob("*.jpg"))[:12]]
    ours = Resize(ImageConfig(image_size=256, resize_mode=mode, quality=90, pixels="img2dataset"))  # type: ignore[arg-type]
    theirs = img2dataset_resizer()(256, mode, True, encode_quality=90)
    for data in [photo(seed, size) for seed, size in enumerate([(640, 427), (333, 500), (801, 600)])] + real:
        assert ours(data).image == theirs(io.BytesIO(data))[0]


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
        assert done.image == jpeg, size


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
