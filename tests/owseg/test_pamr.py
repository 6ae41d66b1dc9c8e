"""PAMR against its formula, pixel by pixel."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from owseg.pamr import DILATIONS, affinities, neighbours, pamr


def by_definition(image: np.ndarray, masks: np.ndarray, steps: int) -> np.ndarray:
    """Refine masks [n, h, w] on an image [3, h, w] of the same size, one pixel and one neighbour after the other."""
    height, width = image.shape[1:]

    def at(values: np.ndarray, y: int, x: int) -> np.ndarray:
        return values[:, min(max(y, 0), height - 1), min(max(x, 0), width - 1)]

    offsets = [(d * y, d * x) for d in DILATIONS for y in (-1, 0, 1) for x in (-1, 0, 1)]
    weights = {}
    for y in range(height):
        for x in range(width):
            samples = np.stack([at(image, y + dy, x + dx) for dy, dx in offsets])
            distances = np.abs(image[:, y, x] - samples) / (1e-8 + 0.1 * samples.std(axis=0, ddof=1))
            likeness = np.exp(-distances.mean(axis=1)) * [offset != (0, 0) for offset in offsets]
            weights[y, x] = likeness / likeness.sum()
    for _ in range(steps):
        refined = np.zeros_like(masks)
        for (y, x), row in weights.items():
            refined[:, y, x] = sum(a * at(masks, y + dy, x + dx) for a, (dy, dx) in zip(row, offsets, strict=True))
        masks = refined
    return masks


def example(batch: int, classes: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(height * width + classes)
    return (
        torch.randn(batch, 3, 4 * height, 4 * width, generator=generator),
        torch.rand(batch, classes, height, width, generator=generator),
    )


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (7, 5), (12, 31), (52, 3)])
def test_equals_the_formula(height: int, width: int) -> None:
    image, masks = example(1, 3, height, width)
    small = F.interpolate(image, size=(height, width), mode="bilinear", align_corners=True)
    expected = by_definition(small[0].double().numpy(), masks[0].double().numpy(), steps=3)
    assert np.abs(pamr(image, masks, steps=3)[0].numpy() - expected).max() <= 1e-5


def test_a_batch_equals_its_images_one_by_one() -> None:
    image, masks = example(3, 4, 20, 27)
    alone = torch.cat([pamr(one, own) for one, own in zip(image.split(1), masks.split(1), strict=True)])
    assert torch.equal(pamr(image, masks), alone)


def test_classes_do_not_see_each_other() -> None:
    image, masks = example(2, 5, 16, 16)
    assert (pamr(image, masks)[:, 1:2] - pamr(image, masks[:, 1:2])).abs().max() <= 1e-6


def test_weights_sum_to_one_so_range_and_constants_stay() -> None:
    image, masks = example(2, 3, 24, 18)
    weights = affinities(image[..., :24, :18], neighbours(24, 18))
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 24 * 18))
    refined = pamr(image, masks)
    assert masks.min() - 1e-5 <= refined.min()
    assert refined.max() <= masks.max() + 1e-5
    torch.testing.assert_close(pamr(image, torch.full_like(masks, 0.7)), torch.full_like(masks, 0.7))


def test_on_an_image_of_one_colour_all_neighbours_count_the_same() -> None:
    _, masks = example(1, 2, 30, 26)
    index = neighbours(30, 26).long()
    expected = masks.flatten(2)[..., index].mean(dim=-1).view_as(masks)
    torch.testing.assert_close(pamr(torch.zeros(1, 3, 120, 104), masks, steps=1), expected)


def test_mass_stays_on_its_side_of_an_edge() -> None:
    image = torch.zeros(1, 3, 40, 40)
    image[..., 20:] = 1
    mask = torch.zeros(1, 1, 40, 40)
    mask[..., 17:] = 1  # three pixels too far to the left
    refined = pamr(image, mask)
    assert refined[..., 18].max() < mask[..., 18].max() - 0.3
    assert refined[..., 21].min() > 0.9


def test_normalisation_of_the_image_does_not_matter() -> None:
    image, masks = example(1, 3, 21, 33)
    torch.testing.assert_close(pamr(image * 0.2 + 0.4, masks), pamr(image, masks), atol=2e-5, rtol=0)


def test_neighbours_beyond_a_border_are_the_border() -> None:
    index = neighbours(3, 4)
    left_above_by_24, right_below_by_24 = index[5, 40].item(), index[5, 47].item()
    assert (left_above_by_24, right_below_by_24) == (0, 11)
    assert int(index.min()) == 0
    assert int(index.max()) == 11
