"""Numbers for Prometheus, through Ray, which exports them from each node beside its own. docs/operations.md says how to scrape.

Ray writes `ray_` before each name. A board that shows them is in deploy/grafana.json.
"""

import sys
from collections.abc import Mapping
from typing import Any

from cluster import progress

METRICS = {
    "owseg_done": "Units of the work under way that are done (rows filtered, links asked for, steps, images scored).",
    "owseg_total": "Units of the work under way in all.",
    "owseg_rate": "Units in a second, over the last minute.",
    "owseg_links": "Links of the download by what became of them.",
    "owseg_train_step": "The last logged step of the training under way.",
    "owseg_train_loss": "A loss of the last logged steps, weighted, by its name; total is their sum.",
    "owseg_train_images_per_second": "Image-caption pairs in a second, over all ranks.",
    "owseg_train_data_wait_share": "Share of the time, 0 to 1, in which the training loop waits for its next batch.",
    "owseg_train_peak_memory_mb": "The most memory held, in MiB, summed over ranks: of their GPUs where they train on these.",
}
"""All that this program exports, with their meanings. Each has the tags `TAGS`."""
TAGS = ("run", "work", "name")
"""The run's folder, what the terminal calls the work ("download", "train tcl"), and a status, loss or unit."""

_gauges: dict[str, Any] = {}


def show(metric: str, value: float, *, work: str, name: str = "") -> None:
    """Let a metric have a value from now on. Does nothing where this process is not connected to Ray."""
    if "ray" not in sys.modules:
        return
    import ray
    from ray.util.metrics import Gauge

    if not ray.is_initialized():
        return
    if metric not in _gauges:
        _gauges[metric] = Gauge(metric, METRICS[metric], TAGS)
    _gauges[metric].set(float(value), {"run": _run, "work": work, "name": name})


def show_training(method: str, line: Mapping[str, Any]) -> None:
    """A line of a training's step log."""
    work = f"train {method}"
    show("owseg_train_step", line["step"], work=work)
    named = {
        "samples_per_second": "owseg_train_images_per_second",
        "data_wait_share": "owseg_train_data_wait_share",
        "peak_memory_mb": "owseg_train_peak_memory_mb",
    }
    for key, metric in named.items():
        if key in line:
            show(metric, line[key], work=work)
    for key, value in line.items():
        if key.startswith("loss/"):
            show("owseg_train_loss", value, work=work, name=key.removeprefix("loss/"))


def show_links(counts: Mapping[str, int]) -> None:
    """The counts of a download."""
    for key, count in counts.items():
        if key.startswith("status/"):
            show("owseg_links", count, work="download", name=key.removeprefix("status/"))


def show_progress(state: progress.State) -> None:
    """How far the work under way is."""
    for metric, value in (("owseg_done", state.done), ("owseg_total", state.total), ("owseg_rate", state.rate)):
        show(metric, value, work=state.label, name=state.unit)


_run = ""


def of_run(name: str) -> None:
    """From now on metrics are of this run."""
    global _run
    _run = name
