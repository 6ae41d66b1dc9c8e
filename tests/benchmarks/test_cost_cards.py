"""Cost cards stand on what docs/ says was measured, and their arithmetic is what they claim."""

import json
import sys
from pathlib import Path

import cost_cards
import pytest
from paper_steps import PaperStep

STEP = PaperStep(method="tcl", phase=1, steps=3600, batch=1024, parameters=0, trained=1000, flops_pair=1e12, flops_text=0.0)


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> cost_cards.argparse.Namespace:
    given = ["--gpus", "8", "--tflops", "100", "--mfu", "0.5", "--per-hop", "0"]
    monkeypatch.setattr(sys, "argv", ["cost_cards.py", *given])
    return cost_cards.parse()


def test_every_figure_is_still_in_the_docs(monkeypatch: pytest.MonkeyPatch) -> None:
    cost_cards.check_measured()
    gone = cost_cards.LABEL_RATE._replace(words="| 171 | no | 0.128 | 0.9 |")
    monkeypatch.setattr(cost_cards, "MEASURED", (gone,))
    with pytest.raises(ValueError, match=r"docs/performance\.md no longer has"):
        cost_cards.check_measured()


def test_hours_are_operations_over_what_gpus_reach(options: cost_cards.argparse.Namespace) -> None:
    card = cost_cards.train_card(STEP, 0.5, {}, options)
    assert card.hours == pytest.approx(1024 * 1e12 / (8 * 100e12 * 0.5), rel=1e-3)  # as many seconds a step, for 3600 steps
    assert card.gpu_hours == 8 * card.hours
    assert card.money(options) == pytest.approx(card.gpu_hours * options.gpu_hour)


def test_measured_rates_take_the_assumed_mfus_place(tmp_path: Path, options: cost_cards.argparse.Namespace) -> None:
    rows = [
        {"method": "tcl", "phase": 1, "status": "measured", "images_per_second": 100.0},
        {"method": "tcl", "phase": 1, "status": "measured", "images_per_second": 128.0},
        {"method": "tcl", "phase": 2, "status": "left out: out of memory"},
    ]
    (tmp_path / "gpu.json").write_text(json.dumps({"training": rows}))
    rates = cost_cards.read_rates(tmp_path / "gpu.json")
    assert rates == {("tcl", 1): 128.0}
    card = cost_cards.train_card(STEP, 0.5, rates, options)
    assert card.hours == pytest.approx(1.0, rel=1e-3)
    assert card.basis == "measured 128 pairs/s a GPU"
