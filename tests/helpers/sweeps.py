"""Cells of a sweep, and the works that they need."""

from pathlib import Path

from cluster.tracking import TrackingConfig
from helpers.chain import SMOKE
from helpers.paths import REPO
from pipelines.app.config import load
from pipelines.app.settings import Config
from pipelines.sweeps.grid import Cell, make_grid
from pipelines.sweeps.work import Work, plan

ABLATION = "method_settings.tcl={contrast: {area_weight: 0, tv_weight: 0}, whole: {}}"


def cells_of(folder: Path, *vary: str, seeds: int = 1, settings: tuple[str, ...] = ()) -> list[Cell]:
    config = load(Config, REPO / SMOKE, [*settings, f"run_dir={folder}"])
    return list(make_grid(config, vary, str(seeds)).cells)


def works_of(cells: list[Cell], folder: Path) -> dict[str, list[str]]:
    """The works' names without digests, and those that each needs."""

    def short(work: Work) -> str:
        return work.name if work.verb == "full" else work.name.rpartition("-")[0]

    return {work.name: sorted(map(short, work.needs)) for work in plan(cells, folder, TrackingConfig())}
