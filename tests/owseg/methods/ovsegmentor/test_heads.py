"""Projection heads: batch norm as torch's, over ranks as over one joined batch, and statistics that are only observed."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from helpers.head_ranks import step_of_each_case
from helpers.ranks import start_ranks, wait_for_ranks
from helpers.tensors import assert_same
from owseg.methods.ovsegmentor.heads import BatchNorm, ProjectionHead


class Case(NamedTuple):
    """A module and two ranks' shares of a batch, with the weights of the outputs in the loss."""

    module: BatchNorm | ProjectionHead
    parts: list[Tensor]
    weights: list[Tensor]


class Step(NamedTuple):
    """What a training step gave."""

    out: Tensor
    input_gradient: Tensor
    gradients: list[Tensor]
    buffers: list[Tensor]


def case(module: BatchNorm | ProjectionHead, *shapes: tuple[int, ...], offset: float = 0.0) -> Case:
    """Random tensors, of other mean and scale on each rank; the module's too."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
            if name.endswith("running_var"):
                tensor.abs_()
    dtype = next(module.parameters()).dtype
    parts = [
        offset + rank + (rank + 1) * torch.randn(shape, generator=generator).to(dtype) for rank, shape in enumerate(shapes)
    ]
    with torch.no_grad():
        weights = [torch.randn(module.eval()(part).shape, generator=generator).to(dtype) for part in parts]
    module.train()
    return Case(module, parts, weights)


CASES = {
    "unequal shares": case(BatchNorm(6, synced=True).double(), (5, 3, 6), (2, 3, 6)),
    "float32": case(BatchNorm(6, synced=True), (32, 6), (32, 6)),
    "far from 0": case(BatchNorm(6, synced=True), (32, 6), (32, 6), offset=1000.0),
    "head": case(ProjectionHead(6, 10, 4, synced=True).double(), (4, 2, 6), (4, 2, 6)),
    "not synced": case(BatchNorm(6, synced=False).double(), (5, 6), (5, 6)),
}


def torch_twin(module: BatchNorm | ProjectionHead) -> nn.Module:
    """The same in torch's own modules, in float64."""
    twin: nn.Module = (
        nn.BatchNorm1d(module.num_features)
        if isinstance(module, BatchNorm)
        else nn.Sequential(
            nn.Linear(module.hidden.in_features, module.hidden.out_features),
            nn.BatchNorm1d(module.hidden.out_features),
            nn.ReLU(),
            nn.Linear(module.out.in_features, module.out.out_features),
        )
    )
    twin.load_state_dict(dict(zip(twin.state_dict(), module.state_dict().values(), strict=True)))
    return twin.double()


def alone(given: Case, ranks: slice) -> Step:
    """The step of one process with torch's modules on the joined shares of `ranks`."""
    twin = torch_twin(given.module)
    x, weights = (torch.cat(parts[ranks]).double() for parts in (given.parts, given.weights))
    twin(3 * x.flatten(0, -2))
    out = twin(x.requires_grad_().flatten(0, -2)).reshape(weights.shape)
    (out * weights).sum().backward()
    assert x.grad is not None
    return Step(out.detach(), x.grad, [p.grad for p in twin.parameters() if p.grad is not None], list(twin.buffers()))


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]) -> list[dict[str, Step]]:
    """What each of two processes got for each case."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.save({name: tuple(given) for name, given in CASES.items()}, folder / "cases.pt")
    wait_for_ranks(start_ranks(step_of_each_case, folder, 2, free_port()))
    loaded: list[dict[str, Any]] = [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]
    return [{name: Step(*step) for name, step in found.items()} for found in loaded]


def close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Equal up to a share of the largest value; where all but rounding is 0, up to the share itself."""
    for ours, theirs in zip(found, expected, strict=True):
        largest = max(1.0, theirs.detach().abs().max().item())
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize(
    ("name", "tolerance"), [("unequal shares", 1e-12), ("head", 1e-12), ("float32", 1e-6), ("far from 0", 1e-5)]
)
def test_two_ranks_equal_one_process_on_the_joined_batch(steps: list[dict[str, Step]], name: str, tolerance: float) -> None:
    """Outputs, gradients of inputs and parameters, and running statistics, to which an observed batch adds too."""
    first, second = (found[name] for found in steps)
    expected = alone(CASES[name], slice(None))

    close([torch.cat([first.out, second.out])], [expected.out], tolerance)
    close([torch.cat([first.input_gradient, second.input_gradient])], [expected.input_gradient], tolerance)
    for rank in (first, second):
        close(rank.gradients, expected.gradients, tolerance)
        close(rank.buffers, expected.buffers, tolerance)


def test_unsynced_ranks_each_have_their_own_statistics(steps: list[dict[str, Step]]) -> None:
    for rank, found in enumerate(steps):
        expected = alone(CASES["not synced"], slice(rank, rank + 1))
        close([found["not synced"].out], [expected.out], 1e-12)
        close([2 * found["not synced"].input_gradient], [2 * expected.input_gradient], 1e-12)
        close(found["not synced"].buffers, expected.buffers, 1e-12)


@pytest.mark.parametrize("name", ["head", "float32"])
def test_one_process_equals_torch(name: str) -> None:
    """In training, observed batches included, and in eval mode."""
    module, parts, _ = CASES[name]
    ours, twin = copy.deepcopy(module), torch_twin(module)

    def both(x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        out = ours(x)
        return [out], [twin(x.double().flatten(0, -2)).reshape(out.shape)]

    for part in parts:
        ours.observe(part)
        twin(part.double().flatten(0, -2))
        close(*both(part), 1e-6)
    close(list(ours.buffers()), list(twin.buffers()), 1e-6)
    ours.eval()
    twin.eval()
    close(*both(parts[0]), 1e-6)
    close(list(ours.buffers()), list(twin.buffers()), 1e-6)


def test_observing_leaves_all_but_the_statistics_alone() -> None:
    """No graph, no change in eval mode."""
    head = copy.deepcopy(CASES["head"].module)
    x = CASES["head"].parts[0].clone().requires_grad_()
    before = copy.deepcopy(head.state_dict())
    assert isinstance(head, ProjectionHead)
    head.eval().observe(x)
    assert_same(head.state_dict(), before)

    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda _: x):
        head.train().observe(x)
    assert not kept
    changed = {name for name, tensor in head.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}


def test_observing_between_a_forward_and_its_backward() -> None:
    """A head reads several batches before backward, as torch's batch norm may."""
    ours = copy.deepcopy(CASES["head"].module)
    twin = torch_twin(ours)
    first, second = CASES["head"].parts
    for module, see in ((ours, ours.observe), (twin, twin)):
        out = module(first.flatten(0, -2))
        see(second.flatten(0, -2))
        out.square().sum().backward()

    close(*([p.grad for p in module.parameters() if p.grad is not None] for module in (ours, twin)), 1e-12)
    close(list(ours.buffers()), list(twin.buffers()), 1e-12)


def test_statistics_under_autocast_are_taken_in_float32() -> None:
    """Of activations in bfloat16, whose own sums would lose all but two digits."""
    head = ProjectionHead(6, 10, 4, synced=True)
    twin = torch_twin(head)
    x = 5 + torch.randn(512, 6, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        out = head(x)
        rounded = head.hidden(x)
        head.observe(x)
    for _ in range(2):
        twin[1](rounded.double())

    assert (out.dtype, rounded.dtype) == (torch.bfloat16, torch.bfloat16)
    close(list(head.buffers()), list(twin.buffers()), 1e-5)
