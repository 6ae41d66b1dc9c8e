"""A training is the same on any number of ranks, with either engine and any ZeRO stage, and goes on where they change."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import tiny
from helpers.rank_losses import METHODS, record
from helpers.ranks import start_ranks, wait_for_ranks

STEPS = 20
ENGINES = ("torch", "1", "2", "3")
FLOAT32, BF16 = 1e-4, 0.05
"""Largest relative difference that is rounding, of any step's total loss; in bfloat16, which has 3 digits and flips hard
assignments, of the mean over the steps."""


def run(folder: Path, ranks: int, port: int, steps: int, *cells: str) -> None:
    wait_for_ranks(start_ranks(record, folder, ranks, port, str(steps), *cells), timeout=3600.0)


def difference(folder: Path, name: str, reference: str) -> float:
    """The relative difference of total losses: the largest of all steps; in bfloat16 that of their means."""
    found, expected = (json.loads((folder / f"{one}.json").read_text()) for one in (name, reference))
    assert found.keys() == expected.keys()
    totals = [(sum(found[step].values()), sum(losses.values())) for step, losses in expected.items()]
    assert len({total for _, total in totals}) == len(totals), "a loss that stays proves nothing"
    if "bf16" in name:
        return abs(sum(one for one, _ in totals) / sum(other for _, other in totals) - 1)
    return max(abs(one - other) / abs(other) for one, other in totals)


def test_two_ranks_take_the_steps_of_one(tmp_path: Path, free_port: Callable[[], int]) -> None:
    tiny.write_shards(tmp_path)
    run(tmp_path, 1, free_port(), 3, *(f"{method}-1 {method} torch float32 0 3" for method in METHODS))
    cells = [f"{method}-2 {method} torch float32 0 3" for method in METHODS]
    cells += [f"{method}-parts {method} 3 parts 0 3" for method in METHODS]
    run(tmp_path, 2, free_port(), 3, *cells)
    for method in METHODS:
        assert difference(tmp_path, f"{method}-2", f"{method}-1") < FLOAT32, method
        assert difference(tmp_path, f"{method}-parts", f"{method}-1") < FLOAT32, f"{method} in micro-batches"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_table(tmp_path: Path, free_port: Callable[[], int]) -> None:
    """Writes the table of docs/training_measured.md, and a training that goes from 2 to 1 to 4 ranks and over all stages."""
    tiny.write_shards(tmp_path)
    for ranks in (1, 2, 4):
        cells = [(method, engine) for method in METHODS for engine in ENGINES]
        alike = [f"{method}-{engine}-{ranks} {method} {engine} float32 0 {STEPS}" for method, engine in cells]
        alike += [f"{method}-bf16-{ranks} {method} 1 bf16 0 {STEPS}" for method in METHODS]
        alike += [f"{method}-parts-{ranks} {method} 2 parts 0 {STEPS}" for method in METHODS]
        run(tmp_path, ranks, free_port(), STEPS, *alike)
    for ranks, engine, first, last in ((2, "1", 0, 7), (1, "3", 7, 14), (4, "2", 14, STEPS)):
        run(
            tmp_path,
            ranks,
            free_port(),
            STEPS,
            *(f"{method}-moved {method} {engine} float32 {first} {last}" for method in METHODS),
        )
    columns = {
        **{f"{engine} on {ranks}": f"{engine}-{ranks}" for ranks in (1, 2, 4) for engine in ENGINES},
        **{f"bf16 on {ranks}": f"bf16-{ranks}" for ranks in (1, 2, 4)},
        **{f"in micro-batches of 3 on {ranks}": f"parts-{ranks}" for ranks in (1, 2, 4)},
        "2 to 1 to 4": "moved",
    }
    found = {
        method: {title: difference(tmp_path, f"{method}-{name}", f"{method}-torch-1") for title, name in columns.items()}
        for method in METHODS
    }
    lines = [f"| engine and ranks | {' | '.join(METHODS)} |", f"|---|{'---|' * len(METHODS)}"]
    lines += [f"| {title} | {' | '.join(f'{found[method][title]:.0e}' for method in METHODS)} |" for title in columns]
    print("\n".join(lines))
    for method, row in found.items():
        for title, value in row.items():
            assert value < (BF16 if "bf16" in title else FLOAT32), (method, title)
