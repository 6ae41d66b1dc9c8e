"""benchmarks/parity.py: Talk2DINO against the official code's recorded numbers, where they lie beside the repository."""

from pathlib import Path

import numpy as np
import pytest

from helpers.golden import run_parity, the_failed_quantity
from helpers.paths import GOLDEN, needs

CASES = sorted(GOLDEN.glob("talk2dino_case*.npz")) or [GOLDEN / "talk2dino_case1.npz"]


@needs(GOLDEN)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_official_numbers(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_parity("talk2dino", case) == 0
    told = capsys.readouterr().out
    assert {"loss", "head_index", "infer/mask_clean_pamr", "grad/linear_layer.weight"} <= {
        line.split()[0] for line in told.splitlines()
    }


@needs(GOLDEN)
@pytest.mark.parametrize("name", ["head_index", "loss", "grad/hidden_layers.0.bias", "infer/clean_grid_0.2", "similarity"])
def test_another_number_is_seen(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(CASES[0]) as arrays:
        case = {key: arrays[key] for key in arrays.files}
    changed = case[name].copy()
    changed.flat[0] += 1
    np.savez(tmp_path / "case.npz", **{**case, name: changed})
    assert run_parity("talk2dino", tmp_path / "case.npz") == 1
    assert the_failed_quantity(capsys.readouterr().out).startswith(name)


def test_a_file_that_holds_no_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "case.npz", loss=np.zeros(()))
    assert run_parity("talk2dino", tmp_path / "case.npz") == 2
    assert "not a Talk2DINO case (linear_layer.weight is missing)" in capsys.readouterr().err
