"""What trainings cost: processor time and memory, over starts of one training."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cluster.train_config import TrainConfig
from helpers import tiny
from helpers.paths import PYTHONPATH
from owseg import costs
from owseg.costs import Waits, cpu_seconds, peak_memory_mb
from owseg.step_log import Spent, StepLog, costs_of
from owseg.training import TrainJob

CPU = torch.device("cpu")
BLOCK = 64 * 2**20
"""Bytes."""


FORGOTTEN = f"""
import torch
from owseg.costs import forget_peak_memory, peak_memory_mb
cpu = torch.device("cpu")
held = bytearray(b"\\1") * {BLOCK}
before = peak_memory_mb(cpu)
del held
assert abs(peak_memory_mb(cpu) - before) < 0.01 * before, "a peak stays"
forget_peak_memory(cpu)
after = peak_memory_mb(cpu)
assert after < before - 32
again = bytearray(b"\\1") * {BLOCK}
assert peak_memory_mb(cpu) > after + 32
"""


def test_a_peak_of_earlier_work_is_forgotten() -> None:
    """In a process of its own: one that is large already may give memory back while it is looked at."""
    subprocess.run([sys.executable, "-c", FORGOTTEN], check=True, env={**os.environ, "PYTHONPATH": PYTHONPATH})


def test_without_proc_the_peak_is_that_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = peak_memory_mb(CPU)
    monkeypatch.setattr(costs, "PEAK", "VmNone:")
    assert peak_memory_mb(CPU) >= exact * 0.99


def test_processor_time_passes_with_work_alone() -> None:
    before = cpu_seconds()
    while cpu_seconds() < before + 0.05:
        sum(range(10_000))


def test_a_resumed_training_goes_on_counting_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kill lost is not counted, as its steps are taken again."""
    job = TrainJob(
        method=tiny.clip_config(steps=6),
        encoder=tiny.encoder_config(tmp_path),
        shards=(),
        out=tmp_path,
        seed=0,
        train=TrainConfig(),
    )
    spent = iter([(5.0, 900.0), (7.0, 1000.0), (9.0, 1000.0), (3.0, 800.0), (4.0, 800.0)])

    def over_ranks(self: Spent) -> dict[str, float]:
        seconds, memory = next(spent)
        return {"cpu_seconds": seconds, "peak_memory_mb": memory}

    monkeypatch.setattr(Spent, "over_ranks", over_ranks)
    log = StepLog(job, None, Spent(CPU), write=True)
    for step in (2, 4, 5):
        log(step, {"contrastive": 1.0}, 1e-3, {})
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "position.json").write_text(json.dumps({"step": 4}))
    log = StepLog(job, checkpoint, Spent(CPU), write=True)
    for step in (5, 6):
        log(step, {"contrastive": 1.0}, 1e-3, {"alarm": 0.0})
    assert costs_of(job) == {"steps": 6, "pairs": 48, "cpu_seconds": 7.0 + 4.0, "peak_memory_mb": 1000.0}
    assert [json.loads(line)["step"] for line in job.log.read_text().splitlines()] == [2, 4, 5, 6]


def test_ranks_that_do_not_write_spend_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = TrainJob(
        method=tiny.clip_config(), encoder=tiny.encoder_config(tmp_path), shards=(), out=tmp_path, seed=0, train=TrainConfig()
    )
    asked = []
    monkeypatch.setattr(Spent, "over_ranks", lambda self: asked.append(1) or {})
    StepLog(job, None, Spent(CPU), write=False)(1, {"contrastive": 1.0}, 1e-3, {})
    assert asked, "it takes part in the sum"
    assert not job.log.exists()


def test_waits_are_a_share_of_the_time_since_they_were_last_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0

    def passes(seconds: float) -> None:
        nonlocal clock
        clock += seconds

    monkeypatch.setattr(costs.time, "monotonic", lambda: clock)
    waits = Waits()
    slow = waits.timed(passes(seconds) for seconds in (1.0, 2.0, 0.0))
    next(slow)
    passes(3.0)
    next(slow)
    assert waits.share() == pytest.approx(3 / 6), "1 and 2 seconds of waiting, 3 of work"
    passes(5.0)
    next(slow)
    assert waits.share() == 0.0
    assert list(slow) == []
