"""Operations of a step and MFU."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from helpers import tiny
from owseg import fit, flops
from owseg.flops import FlopCount, StepMeter, counted_flops, peak_tflops, utilisation
from owseg.methods.tcl.decoder import checkpointed
from owseg.training import LoopConfig, TrainJob, train

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


@pytest.mark.parametrize("peak", [1e-3, None])
def test_the_step_log_has_mfu_where_the_peak_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peak: float | None
) -> None:
    """Steps are counted once a phase, and cost what they cost whether or not they are counted."""
    counts: list[FlopCount] = []

    @contextmanager
    def counted() -> Iterator[FlopCount]:
        with counted_flops() as count:
            counts.append(count)
            yield count

    def meter(device: torch.device) -> StepMeter:
        made = StepMeter(device)
        made.peak = peak
        return made

    monkeypatch.setattr(flops, "counted_flops", counted)
    monkeypatch.setattr(fit, "StepMeter", meter)
    job = TrainJob(
        method=tiny.tcl_config(2, 2),
        encoder=tiny.encoder_config(tmp_path),
        shards=tuple(tiny.write_shards(tmp_path / "shards")),
        out=tmp_path / "out",
        train=LoopConfig(log_every=2),
    )
    train(job)
    lines = [json.loads(line) for line in job.log.read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    if peak is None:
        assert counts == []
        assert not any("mfu" in line for line in lines)
    else:
        assert len(counts) == 2
        assert counts[1].model > counts[0].model > 0, "the second phase learns a block more"
        rates = [line["samples_per_second"] * count.model / 8 for line, count in zip(lines, counts, strict=True)]
        assert [line["mfu"] * peak * 1e12 for line in lines] == pytest.approx(rates, rel=0.5), "but for what the log waits for"


def test_mfu_is_of_the_steps_since_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 15.0, 20.0])
    monkeypatch.setattr(flops.time, "monotonic", lambda: next(clock))
    meter = StepMeter(torch.device("cpu"))
    meter.peak = PRODUCT / 1e12
    found = []
    for steps in (2, 4, 0):
        for _ in range(steps):
            with meter.step():
                torch.ones(ROWS, IN) @ torch.ones(IN, OUT)
        found.append(meter.share()["mfu"])
    assert found == pytest.approx([2 / 10, 4 / 5, 0.0])
