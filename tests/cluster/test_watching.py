"""What the driver tells of a training while it runs."""

import json
from pathlib import Path
from typing import Any

import pytest

from cluster import train
from cluster.train_config import RayTrainJob, TrainConfig
from cluster.tuning import AVERAGE, SCORES
from helpers import tiny
from owseg.evaluation.protocols import EvaluateConfig


def line(step: int) -> dict[str, Any]:
    return {"step": step, "lr": 0.1, "samples_per_second": 10.0, "loss/total": 1.0 / step}


def watch(folder: Path, seen: list[dict[str, Any]], *steps: int) -> Any:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line(step)) + "\n" for step in steps))
    job = RayTrainJob(
        method=tiny.tcl_config(4, 4),
        encoder=tiny.encoder_config(folder),
        shards=(),
        out=folder,
        train=TrainConfig(workers=1),
        tuning=EvaluateConfig(),
    )
    return train._watch(job, seen.extend)


def test_a_resumed_training_that_starts_slowly_is_not_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The steps of before are sent on, and are no sign that this one is under way."""
    monkeypatch.setattr(train, "POLL_SECONDS", 60.0)
    seen: list[dict[str, Any]] = []
    watching = watch(tmp_path, seen, 1, 2, 3)
    with watching:
        watching._look()
    assert [one["step"] for one in seen] == [1, 2, 3]
    assert "starting 1 worker ... 0 s" in capsys.readouterr().err


def test_until_the_first_step_it_says_where_the_first_rank_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train, "POLL_SECONDS", 60.0)
    (tmp_path / "ranks").mkdir()
    (tmp_path / "ranks" / "0.json").write_text('{"place": "reads the batch of step 1"}')
    with watch(tmp_path, []):
        pass
    assert "0/8 steps" in (told := capsys.readouterr().err)
    assert "rank 0 reads the batch of step 1 ... 0 s" in told


def test_scores_on_the_tuning_split_are_told_and_sent_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train, "POLL_SECONDS", 60.0)
    seen: list[dict[str, Any]] = []
    watching = watch(tmp_path, seen, 1)
    with watching:
        for text in (f'{{"step": 4, "{AVERAGE}": 21.5}}\n', f'{{"step": 4, "{AVERAGE}": 21.5}}\n{{"step": 8, "{AVERAGE}": 20'):
            (tmp_path / SCORES).write_text(text)
            watching._look()
    assert [one for one in seen if AVERAGE in one] == [{"step": 4, AVERAGE: 21.5}]
    assert capsys.readouterr().err.count("step 4: 21.5 mIoU on the tuning split") == 1
