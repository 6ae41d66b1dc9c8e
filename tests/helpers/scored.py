"""Evaluations without Ray, and what tests compare and break of them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cluster import evaluate as cluster_evaluate
from cluster.evaluate import Evaluator, Part
from owseg.evaluation.protocols import EvaluateConfig
from owseg.evaluation.scoring import Score

IMAGES = "VOCdevkit/VOC2012/JPEGImages"
LABELS = "VOCdevkit/VOC2012/SegmentationClass"
Scores = dict[str, dict[str, Score]]


class Inline:
    """Stands in for Ray: one worker in this process, last part first."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.scored: list[Path] = []
        monkeypatch.setattr(cluster_evaluate, "_score_on_ray", self)

    def __call__(self, todo: list[Part], config: EvaluateConfig, *_: object) -> Iterator[Part]:
        worker = Evaluator(config, False)
        for part in reversed(todo):
            yield worker.score(part)
            self.scored.append(part.file)


def assert_equal(one: Scores, other: Scores) -> None:
    """All but what predictions cost."""
    assert one.keys() == other.keys()
    for name, row in one.items():
        assert row.keys() == other[name].keys()
        for dataset, score in row.items():
            for key, value in vars(score).items():
                if key not in ("seconds", "peak_memory_mb"):
                    np.testing.assert_array_equal(value, getattr(other[name][dataset], key), err_msg=f"{name} {dataset} {key}")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])
