"""What is exported to Prometheus, and that the board in deploy/ asks for nothing else."""

import json
import re
from typing import Any, ClassVar

import pytest

from cluster import metrics
from cluster.progress import State
from helpers.paths import REPO


class Gauge:
    """Stands in for Ray's, and remembers."""

    set_to: ClassVar[dict[tuple[str, ...], float]] = {}

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        self.name = name
        assert description
        assert tag_keys == metrics.TAGS

    def set(self, value: float, tags: dict[str, str]) -> None:
        self.set_to[(self.name, *(tags[key] for key in metrics.TAGS))] = value


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, ...], float]:
    import ray.util.metrics

    Gauge.set_to = {}
    monkeypatch.setattr(ray.util.metrics, "Gauge", Gauge)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(metrics, "_gauges", {})
    monkeypatch.setattr(metrics, "_run", "demo")
    return Gauge.set_to


def show_everything() -> None:
    state = State("download", 3, 10, "images", 2.5, 4.0, None, "", False)
    metrics.show_progress(state)
    metrics.show_links({"status/success": 2, "status/timeout": 1, "bytes": 99})
    line: dict[str, Any] = {"step": 7, "samples_per_second": 60.0, "data_wait_share": 0.1, "peak_memory_mb": 900.0}
    metrics.show_training("tcl", {**line, "loss/total": 2.0, "lr": 0.1})


def test_what_work_tells_is_exported_with_its_tags(exported: dict[tuple[str, ...], float]) -> None:
    show_everything()
    assert exported[("owseg_done", "demo", "download", "images")] == 3
    assert exported[("owseg_rate", "demo", "download", "images")] == 2.5
    assert exported[("owseg_links", "demo", "download", "timeout")] == 1
    assert exported[("owseg_train_loss", "demo", "train tcl", "total")] == 2.0
    assert exported[("owseg_train_step", "demo", "train tcl", "")] == 7
    assert {key[0] for key in exported} == metrics.METRICS.keys()


def test_every_query_of_the_board_names_what_is_exported() -> None:
    board = json.loads((REPO / "deploy" / "grafana.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    queries += [one["query"]["query"] for one in board["templating"]["list"] if one["type"] == "query"]
    named = [re.findall(r"\bray_\w+", query) for query in queries]
    assert all(named)
    ours = {name for names in named for name in names if not name.startswith("ray_node_")}
    assert ours == {f"ray_{name}" for name in metrics.METRICS}


def test_without_ray_nothing_is_exported(exported: dict[tuple[str, ...], float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    show_everything()
    assert not exported
