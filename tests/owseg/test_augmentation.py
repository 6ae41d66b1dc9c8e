"""The training transform: timm's to the bit, also where RandAugment keeps no bit; reduced decoding, and what that leaves."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from helpers.pictures import saved, scene
from owseg.augmentation import AugmentConfig, Decoded, TrainingTransform
from owseg.data import seed_sample
from owseg.normalisation import Normalisation
from owseg.photos import UNREADABLE, upright
from references.timm_transform import timm_transform

PLAIN = {"rand_augment": "", "erase": 0.0}
LEVELS = 1.0


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8))


def transform(**settings: object) -> TrainingTransform:
    return TrainingTransform(AugmentConfig(**settings), Normalisation())  # type: ignore[arg-type]


def decoded(made: TrainingTransform, encoded: bytes, place: int = 0) -> Decoded:
    """A photo as the sample of a place in the batch."""
    seed_sample(0, 0, place)
    with Image.open(io.BytesIO(encoded)) as image:
        return made.decode(image)


def whole(encoded: bytes) -> Image.Image:
    with Image.open(io.BytesIO(encoded)) as image:
        return upright(image)


@pytest.mark.parametrize(
    "settings", [PLAIN, {}, {"erase": 1.0, "rand_augment": "rand-m10-mstd0-n15-inc1"}, {"min_area": 1.0, "rand_augment": ""}]
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_it_is_timms_to_the_bit(settings: dict[str, object], kind: str) -> None:
    """Photos that are enlarged, and such that no crop fits; with reduced decoding off, and on where nothing can be reduced."""
    augment = AugmentConfig(size=32, reduced_decoding=kind == "PNG", **settings)  # type: ignore[arg-type]
    ours, theirs = TrainingTransform(augment, Normalisation()), timm_transform(augment, Normalisation())
    for size in ((40, 48), (200, 20), (20, 200), (9, 9), (131, 77)):
        encoded = saved(noise(*size), kind)
        for place in range(6):
            found = ours(decoded(ours, encoded, place))
            after = random.random(), np.random.random(), torch.rand(())
            seed_sample(0, 0, place)
            assert torch.equal(found, theirs(whole(encoded)))
            assert after == (random.random(), np.random.random(), torch.rand(())), "as much is drawn"


@pytest.mark.parametrize("size", [(40, 48), (200, 20), (21, 200), (9, 9), (131, 77), (448, 448)])
def test_the_middle_is_what_torchvision_cuts_out(size: tuple[int, int]) -> None:
    """Resize (bicubic) and CenterCrop, to a level; and nothing is drawn."""
    ours = transform(size=32, crop="centre", reduced_decoding=False, **PLAIN)
    encoded = saved(noise(*size), "PNG")
    found = ours(decoded(ours, encoded))
    after = random.random(), torch.rand(())
    cut = Compose([Resize(32, InterpolationMode.BICUBIC), CenterCrop(32)])(whole(encoded))
    usual = Normalisation()
    mean, std = (torch.tensor(values)[:, None, None] for values in (usual.mean, usual.std))
    levels = (found * std + mean) * 255 - torch.from_numpy(np.array(cut)).permute(2, 0, 1)
    assert levels.abs().max() <= 1.001
    seed_sample(0, 0, 0)
    assert after == (random.random(), torch.rand(()))


def test_no_bits_are_black() -> None:
    """One in some thousand images of a training draws it; here one in three."""
    made, encoded = transform(size=32, erase=0.0, rand_augment="rand-m10-mstd0-n15-inc1"), saved(noise(40, 40), "PNG")
    for place in range(20):
        assert made(decoded(made, encoded, place)).shape == (3, 32, 32)


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}], ids=str)
@pytest.mark.parametrize("size", [(256, 256), (319, 257), (601, 435)])
def test_reduced_photos_show_the_same(size: tuple[int, int], options: dict[str, object]) -> None:
    """No crop has fewer pixels than are made of it, none lies elsewhere: half a reduced pixel aside is farther off."""
    encoded, scales = saved(scene(size), "JPEG", quality=95, **options), set()
    reduced, full = (transform(size=32, min_area=0.02, reduced_decoding=on, **PLAIN) for on in (True, False))
    for place in range(12):
        photo, other = decoded(reduced, encoded, place), decoded(full, encoded, place)
        assert other.image.size == size
        left, top, right, bottom = photo.crop
        scale = next(scale for scale in (1, 2, 4, 8) if photo.image.size == tuple(-(-side // scale) for side in size))
        assert other.crop == (left * scale, top * scale, right * scale, bottom * scale)
        assert scale == 1 or min(right - left, bottom - top) >= 32
        scales.add(scale)
        found = reduced(photo)
        decoded(full, encoded, place)  # draws the same again
        apart = (found - full(other)).abs().mean() * 255 * 0.27  # some standard deviation of the normalisation
        assert apart < LEVELS, (place, scale)
    assert scales & {4, 8}
    assert len(scales) > 1


@pytest.mark.parametrize(("size", "kind"), [((120, 90), "JPEG"), ((400, 300), "PNG"), ((400, 300), "WEBP")])
def test_what_has_no_pixels_to_spare_is_decoded_whole(size: tuple[int, int], kind: str) -> None:
    encoded = saved(scene(size), kind)
    assert np.array_equal(decoded(transform(size=64), encoded).image, whole(encoded))


@pytest.mark.parametrize("orientation", [0, 2, 3, 6, 8])
def test_what_exif_turns_is_decoded_whole(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    encoded = saved(scene((400, 300)), "JPEG", exif=exif)
    assert np.array_equal(decoded(transform(size=32), encoded).image, whole(encoded))


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=str)
def test_damage_is_found_at_any_scale(options: dict[str, object]) -> None:
    """Cut anywhere, the same reason is given."""
    encoded = saved(scene((160, 128)), "JPEG", **options)
    reduced, full = transform(size=16, min_area=1.0), transform(size=16, min_area=1.0, reduced_decoding=False)
    assert decoded(reduced, encoded).image.size == (20, 16)

    def wrong(made: TrainingTransform, end: int) -> str:
        try:
            decoded(made, encoded[:end])
        except UNREADABLE as error:
            return str(error)
        return ""

    ends = range(len(encoded) // 3, len(encoded), len(encoded) // 40)
    found = [wrong(reduced, end) for end in ends]
    assert found == [wrong(full, end) for end in ends]
    assert any(found)
