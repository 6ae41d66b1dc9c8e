"""benchmarks/gpu.py on a CPU: its arithmetic, its time budget, and all of its rows at toy size."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gpu
import pytest
import torch
from gpu_report import OUT_OF_MEMORY, Report, tables
from gpu_work import Taken, Training, enlarged, loop_row, relative_differences, timed_calls, training_row

from helpers.paths import REPO
from owseg.data import Batch

CPU = torch.device("cpu")
TAKEN = Taken(steps=[0.5, 0.2, 0.3], waits=[0.1, 0.0, 0.05], flops=6 * 10**12, peak_memory_mb=2048.0)
BATCH = Batch(
    image=torch.zeros(2, 3, 8, 8),
    tokens=torch.tensor([[1, 2], [3, 4]]),
    captions=["a", "b"],
    keys=["0", "1"],
    texts={"answer": torch.tensor([[5], [6]])},
    views={"local": torch.zeros(2, 4, 3, 4, 4)},
)


class Measured(Training):
    """A training whose steps are known."""

    drawn = BATCH

    def __init__(self, peak: float | None) -> None:
        self.device, self.peak = CPU, peak

    def batches(self, size: int, workers: int) -> Any:
        return iter([BATCH] * size * workers)

    def take_steps(self, feed: Any, seconds: float, warm_up: int) -> Taken:
        return TAKEN


def test_rates_of_steps_are_those_of_the_median_step() -> None:
    row = training_row(Measured(peak=100.0), 30, 1.0)
    assert row["images_per_second"] == pytest.approx(30 / 0.3)
    assert row["mfu"] == pytest.approx(6 / 0.3 / 100)
    assert (row["seconds_least"], row["seconds_most"]) == (0.2, 0.5)
    assert training_row(Measured(peak=None), 30, 1.0)["mfu"] is None


def test_rates_of_a_loop_are_those_of_all_its_steps() -> None:
    row = loop_row(Measured(peak=100.0), 30, 2, 1.0)
    assert row["images_per_second"] == pytest.approx(3 * 30 / 1.0)
    assert row["data_wait_share"] == pytest.approx(0.15)
    assert row["mfu"] == pytest.approx(3 * 6 / 1.0 / 100)


def test_a_larger_batch_has_random_pixels_and_the_texts_again() -> None:
    large = enlarged(BATCH, 5, CPU)
    assert large.image.shape == (5, 3, 8, 8)
    assert large.views["local"].shape == (5, 4, 3, 4, 4)
    assert large.image.std() > 0.5
    assert large.texts["answer"].tolist() == [[5], [6], [5], [6], [5]]
    assert large.captions == ["a", "b", "a", "b", "a"]


def test_differences_are_relative_to_the_expected_numbers() -> None:
    assert relative_differences({"a": 1.1, "b": -2.0}, {"a": 1.0, "b": -2.0}) == {"a": pytest.approx(0.1), "b": 0.0}


def test_the_first_call_warms_up_and_one_is_measured_even_without_time() -> None:
    calls: list[int] = []
    assert len(timed_calls(lambda: calls.append(1), CPU, 0.0, most=3)) == 1
    assert len(calls) == 2
    assert len(timed_calls(lambda: calls.append(1), CPU, 60.0, most=3)) == 3


def report(folder: Path, seconds: float) -> Report:
    return Report({"device": {"name": "x", "peak_tflops": None}, "versions": {}, "commit": "c"}, seconds, folder / "out.json")


def test_rows_without_memory_time_or_luck_say_so_and_the_others_are_kept(tmp_path: Path) -> None:
    def full(seconds: float) -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def broken(seconds: float) -> dict[str, Any]:
        raise RuntimeError("no such\nkernel")

    rows = report(tmp_path, seconds=100.0)
    for measure in (lambda seconds: {"largest_difference": seconds}, full, broken):
        rows.add("losses", {"method": "m", "phase": 1, "precision": "float32"}, 4, measure)
    rows.began -= 1000
    rows.add("losses", {"method": "m", "phase": 2, "precision": "float32"}, 1, full)
    found = json.loads((tmp_path / "out.json").read_text())
    assert [row["status"] for row in found["losses"]] == [
        "measured",
        OUT_OF_MEMORY,
        "failed: RuntimeError: no such kernel",
        "left out: no time",
    ]
    assert found["losses"][0]["largest_difference"] == pytest.approx(100 * 0.2 / 4, rel=0.1), "its share of the section's time"
    assert all(row["status"] in tables(found) for row in found["losses"][1:])


def test_no_larger_batch_is_tried_after_one_that_did_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def measure(training: Training, size: int, seconds: float) -> dict[str, Any]:
        tried.append(size)
        if size > 2:
            raise torch.OutOfMemoryError
        return {}

    training = Measured(peak=None)
    training.name, training.phase = "m", 1
    monkeypatch.setattr(gpu, "training_row", measure)
    rows = report(tmp_path, seconds=100.0)
    gpu.time_training(rows, [training], (2, 4, 8))
    assert tried == [2, 4]
    assert [row["status"] for row in rows.rows["training"]] == ["measured", OUT_OF_MEMORY, OUT_OF_MEMORY]


@pytest.mark.parametrize(
    "wrong", [["--seconds", "0"], ["--peak-tflops", "-1"], ["--batch-sizes", "1"], ["--device", "cpux", "--toy"]]
)
def test_wrong_arguments_end_with_2(wrong: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path / "out.json"), *wrong])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2


@pytest.mark.slow
def test_all_rows_at_toy_size(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--toy", "--seconds", "600", "--peak-tflops", "0.1"]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run([*command, "--out", str(out)], cwd=REPO, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    phases = [("tcl", 1), ("tcl", 2), ("ovsegmentor", 1), ("ovsegmentor", 2), ("vilseg", 1), ("clip", 1)]
    losses, training, loop, evaluator = (found[section] for section in ("losses", "training", "loop", "evaluator"))
    assert all(row["status"] == "measured" for row in (*losses, *training, *loop, *evaluator))
    assert [(row["method"], row["phase"]) for row in losses] == [phase for phase in phases for _ in range(2)]
    assert [(row["method"], row["phase"]) for row in training] == [phase for phase in phases for _ in range(2)]
    assert [row["batch_size"] for row in training] == [4, 8] * len(phases)
    assert [(row["method"], row["phase"]) for row in loop] == [("tcl", 2), ("ovsegmentor", 2), ("vilseg", 1), ("clip", 1)]
    segmenters = ("tcl", "ovsegmentor", "vilseg", "maskclip")
    assert [(row["method"], row["classes"]) for row in evaluator] == [(name, n) for name in segmenters for n in (21, 60, 171)]
    assert all(row["largest_difference"] == 0 for row in losses), "a CPU against itself, with the same noise"
    assert all(math.isfinite(value) and value for row in losses for value in row["values"].values())
    for row in (*training, *loop):
        assert 0 < row["mfu"] < 1
        assert row["images_per_second"] > 0
        assert row["peak_memory_mb"] > 10
    assert all(0 < row["data_wait_share"] < 1 for row in loop)
    assert all(row["images_per_second"] == pytest.approx(1 / row["seconds_per_image"]) for row in evaluator)
    assert {"torch", "python"} <= found["versions"].keys()
    assert found["toy"]
    assert done.stdout == tables(found) + "\n"
    assert "images/s | s/step | TFLOP/step | MFU, % | peak memory, GiB" in done.stdout
