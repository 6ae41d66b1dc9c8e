"""Cross-image mask consistency, without its full-size maps, against the loss as it is written down."""

import math

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from owseg.methods.ovsegmentor.consistency import mask_consistency, match, stretched, upsampling
from owseg.methods.ovsegmentor.grouping import Binding, assignment_logits

SHAPES = [  # batch, groups, width, grid, size
    (3, 8, 32, (14, 14), (224, 224)),
    (2, 8, 16, (7, 10), (112, 160)),
    (2, 5, 16, (4, 3), (61, 47)),  # an odd number of groups, edges that the patches do not divide
    (2, 1, 8, (3, 5), (5, 17)),  # pixels that lie on patches' centres
]


def inputs(batch: int, groups: int, width: int, patches: int, seed: int) -> tuple[Tensor, Binding, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, other = (3 * torch.randn(batch, groups, width, generator=generator) for _ in range(2))
    k, relevance = torch.randn(batch, patches, width, generator=generator), torch.randn(batch, groups, generator=generator)
    return q.requires_grad_(), Binding(other, k), relevance


def reference(q: Tensor, other: Binding, relevance: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Dice distances [B], at full size and sample by sample."""
    distances = []
    for own, their, k, relevant in zip(q, other.q, other.k, relevance, strict=True):
        least = set(relevant.argsort()[: len(own) // 2].tolist())
        rows = torch.stack([row.detach() if i in least else row for i, row in enumerate(own)])
        logits = torch.stack([rows @ k.T, their @ k.T]) * k.shape[-1] ** -0.5
        maps = F.interpolate(logits.unflatten(-1, grid), size=size, mode="bilinear", align_corners=True).flatten(-2)
        predicted, target = maps
        units = F.normalize(maps.detach(), dim=-1)
        cost = (units[0][:, None] - units[1][None]).norm(dim=-1)
        target = torch.sigmoid(target[linear_sum_assignment(cost.numpy())[1]])
        target = (target >= 0.6 * target.amax(dim=-1, keepdim=True)).float()
        low, high = predicted.min(dim=-1, keepdim=True).values, predicted.max(dim=-1, keepdim=True).values
        predicted = (predicted - low) / (high - low)
        distances.append(1 - (2 * (predicted * target).sum() + 1) / (predicted.sum() + target.sum() + 1))
    return torch.stack(distances)


@pytest.mark.parametrize(("batch", "groups", "width", "grid", "size"), SHAPES)
@pytest.mark.parametrize("official", [True, False])
def test_value_and_gradient(
    batch: int, groups: int, width: int, grid: tuple[int, int], size: tuple[int, int], official: bool
) -> None:
    for seed in range(3):
        q, other, relevance = inputs(batch, groups, width, grid[0] * grid[1], seed)
        distances = reference(q, other, relevance, grid, size)
        expected = distances.sum() / groups if official else distances.mean() * 16
        loss = mask_consistency(q, other, relevance, grid=grid, size=size, official=official)

        torch.testing.assert_close(loss, expected, rtol=2e-6, atol=0)
        ours, theirs = (torch.autograd.grad(x, q)[0] for x in (loss, expected))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6 * float(theirs.abs().max()) + 1e-12)


def test_least_relevant_half_of_the_groups_learns_nothing() -> None:
    """Though they count in the value."""
    q, other, relevance = inputs(2, 5, 16, 12, seed=0)
    form = {"grid": (3, 4), "size": (24, 32), "official": False}
    loss = mask_consistency(q, other, relevance, **form)
    (gradient,) = torch.autograd.grad(loss, q)

    least = relevance.argsort(dim=1)[:, :2]
    learns = torch.ones(2, 5, dtype=torch.bool).scatter_(1, least, False)
    assert torch.equal(gradient.abs().sum(dim=-1) > 0, learns)
    assert mask_consistency(q, other, -relevance, **form).item() == loss.item()
    with torch.no_grad():
        q[0, least[0, 0]] *= -1
    assert mask_consistency(q, other, relevance, **form).item() != loss.item()


def test_only_the_image_learns_from_the_others_binding() -> None:
    q, other, relevance = inputs(2, 4, 16, 12, seed=1)
    learning = [x.requires_grad_() for x in (*other, relevance)]
    loss = mask_consistency(q, other, relevance, grid=(3, 4), size=(24, 32), official=True)
    gradients = torch.autograd.grad(loss, [q, *learning], allow_unused=True)

    assert [gradient is None for gradient in gradients] == [False, True, True, True]


def test_official_and_exact_forms_are_equal_at_the_papers_batch() -> None:
    q, other, relevance = inputs(128, 8, 16, 12, seed=2)
    official, exact = (
        mask_consistency(q, other, relevance, grid=(3, 4), size=(24, 32), official=form).item() for form in (True, False)
    )

    assert exact == pytest.approx(official, rel=1e-5)
    half = (q[:64], Binding(other.q[:64], other.k[:64]), relevance[:64])
    halved = [mask_consistency(*half, grid=(3, 4), size=(24, 32), official=form).item() for form in (True, False)]
    assert halved[0] < 0.6 * official
    assert halved[1] == pytest.approx(exact, rel=0.2)


@pytest.mark.parametrize("height", [0.0, 1.7])
def test_constant_map(height: float) -> None:
    """A group that favours no patch: not a number in the official form, nothing covered in the exact one."""
    q, other, relevance = inputs(2, 4, 16, 12, seed=3)
    with torch.no_grad():
        other.k[..., 0] = height  # along this axis all patches are alike
        q[1, 2] = 0.0
        q[1, 2, 0] = 1.0
    relevance[1, 2] = 9.0
    form = {"grid": (3, 4), "size": (48, 64)}
    official = mask_consistency(q, other, relevance, **form, official=True)
    exact = mask_consistency(q, other, relevance, **form, official=False)
    (gradient,) = torch.autograd.grad(exact, q)

    assert math.isnan(official.item())
    assert math.isfinite(exact.item())
    assert torch.isfinite(gradient).all()
    assert gradient[1, 2].abs().max() == 0
    assert gradient[0].abs().max() > 0
    # The covered area alone counts for that map: the others' Dice as if its own product and sum were nought.
    upsample, _ = upsampling((3, 4), (48, 64), q)
    predicted, target = (assignment_logits(x, other.k).unflatten(-1, (3, 4)).detach() for x in (q, other.q))
    matched = upsample(target.gather(1, match(predicted, target, upsample)[..., None, None].expand_as(target)))[1].sigmoid()
    covers = (matched >= 0.6 * matched.amax(dim=(-2, -1), keepdim=True)).float()
    maps = upsample(predicted)[1]
    low, high = maps.amin(dim=(-2, -1), keepdim=True), maps.amax(dim=(-2, -1), keepdim=True)
    maps = (maps - low) / (high - low)
    maps[2] = 0.0
    second = 1 - (2 * (maps * covers).sum() + 1) / (maps.sum() + covers.sum() + 1)
    first = reference(q[:1], Binding(other.q[:1], other.k[:1]), relevance[:1], (3, 4), (48, 64))[0]
    assert exact.item() == pytest.approx(8 * (first + second).item(), rel=1e-5)


@pytest.mark.parametrize(("variation", "constant"), [(1e-6, True), (1e-4, False)])
def test_what_varies_by_rounding_alone_is_constant(variation: float, constant: bool) -> None:
    """Else that rounding, stretched to 0..1, would be learned from."""
    maps = 3 + variation * torch.rand(2, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    pixels, corners = upsampling((5, 6), (50, 60), maps)
    upsampled = pixels(stretched(maps, corners, 0.0))

    assert torch.equal(upsampled == 0, torch.ones_like(upsampled, dtype=torch.bool)) == constant
    if not constant:
        extremes = torch.stack([upsampled.amin(dim=(-2, -1)), upsampled.amax(dim=(-2, -1))])
        torch.testing.assert_close(extremes, torch.tensor([0.0, 1.0])[:, None, None].expand(2, 2, 4), rtol=0, atol=1e-2)


def test_groups_that_find_the_same_are_matched_and_near() -> None:
    """The other's own groups in another order: each is matched with itself, to the last digit."""
    _, other, relevance = inputs(2, 8, 16, 30, seed=4)
    order = torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])
    upsample, _ = upsampling((5, 6), (40, 48), other.q)
    maps = assignment_logits(other.q, other.k).unflatten(-1, (5, 6))

    assert torch.equal(match(maps[:, order], maps, upsample), order.expand(2, -1))
    losses = [
        mask_consistency(q, other, relevance, grid=(5, 6), size=(40, 48), official=False)
        for q in (other.q, other.q[:, order], -other.q)
    ]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    assert losses[0] < losses[2]


@pytest.mark.parametrize(
    ("grid", "size"), [((14, 14), (224, 224)), ((4, 3), (61, 47)), ((3, 5), (9, 9)), ((1, 2), (4, 2)), ((6, 7), (4, 1))]
)
def test_extremes_lie_at_the_corners(grid: tuple[int, int], size: tuple[int, int]) -> None:
    """Upsampling as a product, and the few pixels in which its extremes must lie."""
    maps = torch.randn(50, *grid, generator=torch.Generator().manual_seed(0))
    upsample, few = upsampling(grid, size, maps)
    pixels, corners = upsample(maps), few(maps)
    expected = F.interpolate(maps[None], size=size, mode="bilinear", align_corners=True)[0]
    torch.testing.assert_close(pixels, expected)

    for extreme in (torch.amin, torch.amax):
        torch.testing.assert_close(extreme(corners, dim=(-2, -1)), extreme(pixels, dim=(-2, -1)), rtol=0, atol=1e-6)
    assert all(len(matrix) <= 2 * short for matrix, short in zip(few, grid, strict=True))


def test_transpose_of_upsampling() -> None:
    generator = torch.Generator().manual_seed(0)
    upsample, _ = upsampling((3, 4), (30, 20), torch.empty(0))
    patches, pixels = torch.randn(3, 4, generator=generator), torch.randn(30, 20, generator=generator)
    torch.testing.assert_close((upsample(patches) * pixels).sum(), (patches * upsample.back(pixels)).sum())


def test_under_autocast_it_computes_in_float32() -> None:
    q, other, relevance = inputs(2, 8, 32, 196, seed=5)
    form = {"grid": (14, 14), "size": (224, 224), "official": False}
    expected = mask_consistency(q, other, relevance, **form)
    with torch.autocast("cpu", torch.bfloat16):
        loss = mask_consistency(q, other, relevance, **form)
        short = mask_consistency(q.bfloat16(), Binding(*(x.bfloat16() for x in other)), relevance.bfloat16(), **form)

    assert torch.equal(loss, expected)
    assert short.dtype == torch.float32
