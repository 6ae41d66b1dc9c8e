"""Random numbers that depend on (seed, step, place in the global batch) alone: the same on any number of ranks or devices.

A method draws its noise here; the training loop says which step it is, and which rows of the global batch are at hand. Where
nothing was said (a forward outside training), torch's own generator draws.

The numbers are hashes of their place (SplitMix64's finaliser, Steele et al., OOPSLA 2014) instead of a generator's sequence:
a row's are the same whatever rows lie beside it, and on a GPU they are those of a CPU.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Gumbel
from torch.overrides import TorchFunctionMode

from owseg.losses import at_least_float32

T = TypeVar("T")

_ODD = (0x9E3779B97F4A7C15, 0xD1B54A32D192ED03, 0x8CB92BA72F3D8DD7, 0xABC98388FB8FAC03, 0xF1357AEA2E62A9C5)
"""Of one dimension each: products of coordinates with them hardly ever add up to the same."""
_DRAW, _COPY, _SEED, _PLACE = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0x2545F4914F6CDD1D, 0xDA942042E4DD58B5
"""Of what else has a say: without them a step's row 5 would have what another step's row 9 has."""
_BITS = 23
"""Of each number: with half a bit more, as many as a float32 keeps, so that neither 0 nor 1 is drawn."""


@dataclass(frozen=True)
class _Rows:
    """What is drawn for."""

    keys: Tensor
    """[R] int64, a key for each row."""
    draws: Iterator[int] = field(default_factory=count)
    """Numbers the draws."""


_step: ContextVar[int | None] = ContextVar("step", default=None)
_rows: ContextVar[_Rows | None] = ContextVar("rows", default=None)


@contextmanager
def of_step(seed: int, step: int) -> Iterator[None]:
    """Inside, `of_places` draws for this step of this seed."""
    with _set(_step, int(_mix(_mix(torch.tensor(_signed(seed + _SEED))) + step))):
        yield


@contextmanager
def of_places(first: int, rows: int, device: torch.device) -> Iterator[None]:
    """Inside, draws are for the rows first, first + 1, ... of the global batch; torch's generator's where no step was named."""
    step = _step.get()
    places = torch.arange(first, first + rows, device=device)
    with _set(_rows, None if step is None else _Rows(_mix(_mix(places + _signed(_PLACE)) + step))):
        yield


def in_parts(parts: Sequence[Tensor]) -> Iterator[Tensor]:
    """Each part [n] int64 of the rows (or of copies of them, one behind the other); until the next, draws are for it alone.

    What a row draws is the same in whatever part it is.
    """
    rows = _rows.get()
    if rows is None:
        yield from parts
        return
    keys = _mix(_keys(rows, sum(map(len, parts))) + _signed(_DRAW * (next(rows.draws) + 1)))
    for part in parts:
        token = _rows.set(_Rows(keys[part]))
        try:
            yield part
        finally:
            _rows.reset(token)


def placed() -> bool:
    """Whether draws are by place; otherwise torch's generator draws."""
    return _rows.get() is not None


def uniform(shape: Sequence[int], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers in (0, 1), of at least float32. The first dimension is the rows, or copies of them, one behind the other.

    Six dimensions at most.
    """
    rows, dtype = _rows.get(), torch.promote_types(dtype, torch.float32)  # a shorter one would round to 0 and 1
    if rows is None:
        return torch.rand(tuple(shape), device=device, dtype=dtype)
    counters = _mix(_keys(rows, shape[0]) + _signed(_DRAW * (next(rows.draws) + 1)))
    if len(shape) > len(_ODD) + 1:
        raise ValueError(f"noise of {len(shape)} dimensions; {len(_ODD) + 1} are the most")
    for size, odd in zip(shape[1:], _ODD, strict=False):
        counters = counters[..., None] + torch.arange(size, device=device) * _signed(odd)
    return (_shifted(_mix(counters), 64 - _BITS) + 0.5).to(dtype) * 2.0**-_BITS


def uniform_like(x: Tensor) -> Tensor:
    """Numbers in (0, 1) for each of x, whose rows are those of the batch."""
    return uniform(x.shape, x.device, at_least_float32(x)) if placed() else torch.rand_like(x)


def gumbel(shape: Sequence[int], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard Gumbel noise; dimensions and type as of `uniform`."""
    if placed():
        return -(-uniform(shape, device, dtype).log()).log()
    # Through torch.distributions, as GroupViT does: F.gumbel_softmax draws other numbers from the same seed.
    zero = torch.zeros((), device=device, dtype=dtype)
    noise = Gumbel(zero, torch.ones_like(zero), validate_args=False)  # validation would wait for the GPU
    drawn: Tensor = noise.sample(tuple(shape))  # type: ignore[no-untyped-call]
    return drawn


class DropPath(nn.Module):
    """Stochastic depth (1603.09382): whole rows are zeroed with probability `rate`, and the others scaled up."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.rate:
            return x
        kept = uniform((len(x), *(1 for _ in x.shape[1:])), x.device) >= self.rate
        return x * kept.to(x.dtype).div_(1 - self.rate)


class PlacedDropout(TorchFunctionMode):
    """Inside, dropout of others' modules is drawn by place as well, that of attention included."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if placed() and function is F.dropout:
            return _dropout(*args, **kwargs)
        if placed() and function is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        return function(*args, **kwargs)


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    del inplace  # a new tensor serves
    if not training or not p:
        return x
    return x * (uniform(x.shape, x.device) >= p).to(x.dtype).div_(1 - p)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **others: Any,
) -> Tensor:
    if not dropout_p:
        found: Tensor = F.scaled_dot_product_attention(query, key, value, attn_mask, is_causal=is_causal, **others)
        return found
    if is_causal or others.get("enable_gqa"):
        raise NotImplementedError("dropout by place in causal or grouped attention")
    scores = query @ key.mT * (others.get("scale") or query.shape[-1] ** -0.5)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return _dropout(scores.softmax(dim=-1), dropout_p) @ value


@contextmanager
def _set(variable: ContextVar[T], value: T) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def _keys(rows: _Rows, wanted: int) -> Tensor:
    """Keys of at least so many rows: a copy's are others."""
    copies = -(-wanted // len(rows.keys))
    if copies == 1:
        return rows.keys
    numbers = torch.arange(copies, device=rows.keys.device) * _signed(_COPY)
    return _mix(rows.keys + numbers[:, None]).flatten()


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser, of int64 that are taken for unsigned ones."""
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """x >> bits of unsigned numbers: int64 would fill up with its sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    """The int64 of the same 64 bits."""
    x &= (1 << 64) - 1
    return x - (1 << 64) if x >> 63 else x
