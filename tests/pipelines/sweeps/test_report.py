"""The table of a sweep: rows, differences, and what they are compared with."""

from pathlib import Path

import numpy as np
import pytest

from helpers.sweeps import ABLATION, cells_of
from owseg.evaluation.intervals import ImageCounts, write_image_counts
from pipelines.sweeps.report import Finished, compare, rows_of
from pipelines.sweeps.tables import tables_of


def test_rows_tables_and_differences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = cells_of(tmp_path, ABLATION, "evaluate.short_side=[64, 80]", seeds=2, settings=("evaluate.bootstrap=0",))
    scores = {"chance": 2.0, "maskclip": 9.0, "tcl": 20.0}
    finished = []
    for cell in cells[:-1]:  # the last one failed
        extra = cell.seed + 10 * (cell.column == "short_side=80") + 5 * (cell.setting == "whole")
        miou = {name: {"voc21": value + extra, "average": value + extra} for name, value in scores.items()}
        averages = {name: {"seconds_per_image": 0.01, "peak_memory_mb": 1500.0} for name in scores}
        costs = {name: {"pairs": 48, "cpu_seconds": 100.0 + cell.seed, "peak_memory_mb": 900.0} for name in ("clip", "tcl")}
        stages = {"evaluate": {"mIoU": miou, "averages": averages}, "train": {"costs": costs}}
        finished.append(Finished(cell, "id", "digest", stages))
    rows = rows_of(finished)
    assert [(row.setting, row.column, row.method) for row in rows][::3] == [
        (setting, f"short_side={side}", "chance") for setting in ("contrast", "whole") for side in (64, 80)
    ]
    assert list(compare(rows)) == [], "no intervals are asked for"
    score, cost = tables_of(rows, [])
    assert score.head == ("setting", "method", "voc21", "average, short_side=64", "average, short_side=80")
    assert score.rows[-1] == ("whole", "tcl", "25.5 (25.0..26.0)", "25.5 (25.0..26.0)", "35.0")
    assert cost.rows[0][:6] == ("contrast", "clip, the encoder", "text", "48", "100", "900")
    assert cost.rows[1][:6] == ("contrast", "chance", "none", "", "", "")
    assert cost.rows[3] == ("contrast", "tcl", "text", "48", "100", "900", "0.010", "1,500", "0.010", "1,500")
    assert "| whole | tcl | 25.5 (25.0..26.0) |" in score.markdown()


def test_what_rows_are_compared_with(tmp_path: Path) -> None:
    """The same method under the setting above, the best row, and the first column; by images and seeds."""
    finished = []
    for cell in cells_of(tmp_path, ABLATION, "evaluate.limit=[0, 9]", seeds=2, settings=("evaluate.datasets=[voc21]",)):
        right = {"chance": 10, "maskclip": 40, "tcl": 50 + 20 * (cell.setting == "whole") + 10 * (cell.column == "limit=9")}
        for method, pixels in right.items():
            folder = Path(cell.config.run_dir) / "evaluate" / method
            folder.mkdir(parents=True)
            intersection = np.full((6, 2), pixels + cell.seed)
            ids = tuple(f"image{number}" for number in range(6))
            write_image_counts(folder / "voc21.npz", ImageCounts(ids, intersection, np.full((6, 2), 100)))
        miou = {method: {"voc21": pixels + cell.seed, "average": pixels + cell.seed} for method, pixels in right.items()}
        finished.append(Finished(cell, "id", "digest", {"evaluate": {"mIoU": miou}}))
    compared = list(compare(rows_of(finished)))
    found = {(pair.row.setting, pair.row.method, pair.row.column, pair.why): pair.difference.mean for pair in compared}
    assert len(found) == len(compared) == 3 + 5 + 6
    assert found["whole", "tcl", "limit=0", "above"] == pytest.approx(20)
    assert found["contrast", "chance", "limit=0", "best"] == pytest.approx(-60)
    assert found["whole", "tcl", "limit=9", "column"] == pytest.approx(10)
    assert {pair.difference.significant for pair in compared if abs(pair.difference.mean) > 1} == {True}
