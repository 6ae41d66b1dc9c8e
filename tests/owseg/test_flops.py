"""Operations of a step and MFU."""

import pytest
import torch
from torch import nn

from owseg.flops import counted_flops, peak_tflops, utilisation
from owseg.methods.tcl.decoder import checkpointed

ROWS, IN, OUT = 6, 16, 24
PRODUCT = 2 * ROWS * IN * OUT


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H200", 989.4),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L40", None),
        ("Intel(R) Xeon(R) Processor", None),
    ],
)
def test_a_device_is_known_by_whole_words_of_its_name(name: str, expected: float | None) -> None:
    assert peak_tflops(name) == expected


def test_mfu_is_operations_over_what_the_device_could_do_in_that_time() -> None:
    assert utilisation(50e12, seconds=0.5, peak=400.0) == pytest.approx(0.25)
    assert utilisation(50e12, seconds=0.5, peak=None) is None


def test_operations_of_forward_and_backward_are_counted() -> None:
    layer, x = nn.Linear(IN, OUT, bias=False), torch.randn(ROWS, IN)
    with counted_flops() as count:
        layer(x).sum().backward()
    assert (count.executed, count.recomputed) == (2 * PRODUCT, 0), "the gradient of the input is not asked for"
    assert count.model == 2 * PRODUCT


def test_what_checkpoints_run_again_is_no_work_of_the_model() -> None:
    """The second product is the function's last operation, so backward runs the first one alone again."""
    first, second = nn.Linear(IN, OUT, bias=False), nn.Linear(OUT, IN, bias=False)
    x = torch.randn(ROWS, IN, requires_grad=True)
    with counted_flops() as plain:
        second(first(x)).sum().backward()
    with counted_flops() as again:
        checkpointed(lambda tokens: second(first(tokens)), x).sum().backward()
    assert plain.recomputed == 0
    assert again.recomputed == PRODUCT
    assert again.model == plain.executed == 6 * PRODUCT


def test_checkpoints_outside_a_count_are_not_counted() -> None:
    x = torch.randn(ROWS, IN, requires_grad=True)
    with counted_flops() as count:
        pass
    checkpointed(nn.Linear(IN, OUT), x).sum().backward()
    assert (count.executed, count.recomputed) == (0, 0)
