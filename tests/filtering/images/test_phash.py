"""The perceptual hash: near for pictures that look alike, far for others."""

import io
from itertools import combinations

from PIL import Image
from pixels import photo

from helpers.pictures import differing_bits, hash_of, saved


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
