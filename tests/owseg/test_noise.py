"""Noise by place: the same on any number of ranks, in any micro-batch and order, and as random as it should be."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from owseg.noise import DropPath, PlacedDropout, gumbel, in_parts, of_places, of_step, placed, uniform

CPU = torch.device("cpu")


@contextmanager
def rows(first: int, count: int, *, seed: int = 0, step: int = 0) -> Iterator[None]:
    with of_step(seed, step), of_places(first, count, CPU):
        yield


@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 4), (2, 2, 3, 4)])
def test_a_rows_numbers_are_its_own(shape: tuple[int, ...]) -> None:
    with rows(0, 8):
        whole = [uniform((8, *shape), CPU) for _ in range(3)]
    for first, count in ((0, 2), (6, 2), (3, 1), (4, 4)):
        with rows(first, count):
            for each in whole:
                assert torch.equal(uniform((count, *shape), CPU), each[first : first + count])


def test_copies_of_the_rows_follow_each_other() -> None:
    """Two views of eight images, view by view: each rank's rows of both."""
    with rows(0, 8):
        whole = uniform((16, 5), CPU)
    with rows(6, 2):
        assert torch.equal(uniform((4, 5), CPU), whole[[6, 7, 14, 15]])
    assert len({tuple(row) for row in whole.tolist()}) == 16


def test_parts_of_the_rows_draw_what_the_rows_draw_in_whatever_order_they_come() -> None:
    def drawn(parts: list[Tensor]) -> Tensor:
        with rows(0, 6):
            uniform((6,), CPU)
            found = [torch.cat([uniform((len(part), 3), CPU), uniform((len(part), 3), CPU)], dim=1) for part in in_parts(parts)]
            after = uniform((6, 1), CPU)
        return torch.cat(
            [torch.cat(found)[torch.cat(parts).argsort()], torch.cat([after, after])[: len(torch.cat(parts))]], dim=1
        )

    whole = drawn([torch.arange(6)])
    assert torch.equal(drawn([torch.tensor([5, 0]), torch.tensor([2, 1, 3]), torch.tensor([4])]), whole)
    assert torch.equal(
        drawn([torch.tensor([7, 0, 11]), torch.arange(1, 7), torch.arange(8, 11)])[:6], drawn([torch.arange(12)])[:6]
    )


def test_seed_step_and_number_of_the_draw_decide() -> None:
    seen = []
    for seed, step in ((0, 0), (0, 1), (1, 0), (1, 1)):
        with rows(0, 4, seed=seed, step=step):
            seen += [tuple(uniform((4,), CPU).tolist()), tuple(uniform((4,), CPU).tolist())]
    assert len(set(seen)) == 8


def test_outside_a_step_torchs_generator_draws() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4, 2)
    torch.manual_seed(3)
    with of_places(0, 4, CPU):
        assert not placed()
        assert torch.equal(uniform((4, 2), CPU), expected)
        assert list(in_parts([expected])) == [expected]


def test_numbers_are_uniform_independent_and_never_0_or_1() -> None:
    with rows(0, 128):
        drawn = uniform((128, 64, 64), CPU)
        again = uniform((128, 64, 64), CPU)
    assert 0 < drawn.min() < 1e-4
    assert 1 - 1e-4 < drawn.max() < 1
    counts = torch.histc(drawn, 256, 0, 1)
    chi = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
    assert 150 < chi < 370  # 255 degrees of freedom: five deviations
    for one, other in (
        (drawn, again),
        (drawn[1:], drawn[:-1]),
        (drawn[:, 1:], drawn[:, :-1]),
        (drawn[:, :, 1:], drawn[:, :, :-1]),
        (drawn.triu(1), drawn.mT.triu(1)),
    ):
        seen = one.flatten() != 0
        pair = torch.stack([one.flatten()[seen], other.flatten()[seen]])
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.01


def test_gumbel_noise_has_its_mean_and_variance() -> None:
    with rows(0, 100):
        drawn = gumbel((100, 1000), CPU)
    assert float(drawn.mean()) == pytest.approx(0.5772, abs=0.02)
    assert float(drawn.var()) == pytest.approx(torch.pi**2 / 6, abs=0.05)


def test_paths_are_dropped_by_row() -> None:
    drop, x = DropPath(0.25), torch.ones(4000, 3, 2)
    with rows(0, 4000):
        found = drop(x)
    assert found.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert torch.equal(found, found[:, :1, :1].expand_as(found))
    assert float((found[:, 0, 0] == 0).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert torch.equal(drop.eval()(x), x)
    assert torch.equal(DropPath(0.0)(x), x)


class Others(nn.Module):
    """A block of another library: dropout on features, and in attention."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        read = F.scaled_dot_product_attention(x, x, x, attn_mask=mask, dropout_p=0.3 if self.training else 0.0)
        dropped: Tensor = F.dropout(read, 0.2, self.training)
        return dropped


@pytest.mark.parametrize("masked", [False, True])
def test_dropout_of_other_libraries_is_drawn_by_place(masked: bool) -> None:
    x = torch.randn(6, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(5) < 4)[None] if masked else None
    with rows(0, 6), PlacedDropout():
        whole = Others()(x, mask)
    with rows(4, 2), PlacedDropout():
        torch.testing.assert_close(Others()(x[4:], mask), whole[4:])
    with rows(0, 6), PlacedDropout():
        many = torch.stack([Others()(x, mask) for _ in range(3000)]).mean(dim=0)
        still = Others().eval()(x, mask)
    torch.testing.assert_close(many, still, atol=0.12, rtol=0)
    torch.testing.assert_close(still, F.scaled_dot_product_attention(x, x, x, attn_mask=mask))
    if mask is not None:
        changed = x.clone()
        changed[:, :, 4] = 100.0  # not looked at
        with rows(0, 6), PlacedDropout():
            torch.testing.assert_close(Others()(changed, mask)[:, :, :4], whole[:, :, :4])


def test_dropout_does_not_depend_on_how_far_texts_are_padded() -> None:
    with rows(0, 3):
        long = uniform((3, 2, 9, 9), CPU)
    with rows(0, 3):
        assert torch.equal(uniform((3, 2, 5, 5), CPU), long[:, :, :5, :5])


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63, 2**64 - 1])
def test_no_row_of_a_step_has_the_numbers_of_a_row_of_another_step(seed: int) -> None:
    drawn = []
    for step in range(12):
        with of_step(seed, step), of_places(0, 12, CPU):
            drawn.append(uniform((12, 4), CPU))
    rows = torch.cat(drawn)
    assert len(rows.unique(dim=0)) == len(rows)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_types_are_drawn_as_float32(dtype: torch.dtype) -> None:
    with of_step(0, 0), of_places(0, 4000, CPU):
        drawn, noise = uniform((4000, 50), CPU, dtype), gumbel((4000, 50), CPU, dtype)
    assert drawn.dtype == noise.dtype == torch.float32
    assert drawn.max() < 1
    assert noise.isfinite().all()


def test_more_dimensions_than_there_are_numbers_for_are_refused() -> None:
    with of_step(0, 0), of_places(0, 2, CPU), pytest.raises(ValueError, match="noise of 7 dimensions; 6 are the most"):
        uniform((2, 1, 1, 1, 1, 1, 2), CPU)
