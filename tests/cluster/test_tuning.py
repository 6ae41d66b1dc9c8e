"""The best checkpoint by its mIoU on labelled tuning images is kept, and nothing but that."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster import tuning
from cluster.tuning import AVERAGE, BEST, SCORES, best_of, of_tuning, read_scores, scorer
from helpers import tiny
from helpers.chain import SMOKE, run_well, summary
from helpers.paths import REPO
from owseg import InputError
from owseg.evaluation.protocols import EvaluateConfig
from owseg.fit import WEIGHTS
from owseg.normalisation import Normalisation
from owseg.snapshots import POSITION
from owseg.step_log import read_log
from pipelines.app.checks import check_tuning
from pipelines.app.config import load, override
from pipelines.app.settings import Config


class Checkpoint:
    """One of Ray Train's, as far as it is looked at."""

    def __init__(self, folder: Path, step: int) -> None:
        self.folder = folder / str(step)
        self.folder.mkdir()
        (self.folder / POSITION).write_text(json.dumps({"step": step}))
        (self.folder / WEIGHTS).write_text(f"weights of step {step}")

    @contextmanager
    def as_directory(self) -> Iterator[str]:
        yield str(self.folder)


def test_the_best_weights_are_kept_the_first_of_equals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {10: 12.0, 20: 31.5, 30: 31.5, 40: 7.0}

    def score_of(*given: object) -> dict[str, float]:
        step = int(Path(str(given[-1])).parent.name)
        return {AVERAGE: scores[step], f"{AVERAGE}_voc20": scores[step]}

    monkeypatch.setattr(tuning, "score_weights", score_of)
    score = scorer(tiny.tcl_config(), tiny.encoder_config(tmp_path), Normalisation(), EvaluateConfig(), tmp_path)
    kept = []
    for step in (10, 20, 30, 40):
        assert score(Checkpoint(tmp_path, step)) == {AVERAGE: scores[step], f"{AVERAGE}_voc20": scores[step]}  # type: ignore[arg-type]
        kept.append((tmp_path / BEST).read_text())
    assert kept == [f"weights of step {step}" for step in (10, 20, 20, 20)]
    best = best_of(read_scores(tmp_path))
    assert best is not None
    assert best["step"] == 20


def test_a_step_that_is_done_again_counts_once(tmp_path: Path) -> None:
    assert read_scores(tmp_path) == []
    assert best_of([]) is None
    lines = [{"step": 20, AVERAGE: 30.0}, {"step": 10, AVERAGE: 20.0}, {"step": 20, AVERAGE: 31.0}]
    (tmp_path / SCORES).write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3')  # being written
    assert read_scores(tmp_path) == [lines[1], lines[2]]


def test_only_what_the_average_needs_is_scored() -> None:
    config = of_tuning(EvaluateConfig(oracle=True, limit=3), "/there")
    assert (config.root, config.thresholds, config.oracle, config.bootstrap, config.limit) == ("/there", (), False, 0, 3)


def test_without_images_to_tell_by_it_is_refused(tmp_path: Path) -> None:
    world = load(Config, REPO / SMOKE, ["train.keep_best=true"])
    check_tuning(world)
    real = override(world, [f"evaluate.root={tmp_path}"])
    with pytest.raises(InputError, match=r"train\.keep_best: there are no labelled images .* set evaluate\.tuning"):
        check_tuning(real)
    with pytest.raises(InputError, match=r"evaluate\.tuning: it is evaluate\.root"):
        check_tuning(override(real, [f"evaluate.tuning={tmp_path}/."]))
    with pytest.raises(InputError, match=str(tmp_path / "tuning")):
        check_tuning(override(real, [f"evaluate.tuning={tmp_path / 'tuning'}", "evaluate.datasets=[voc20]"]))
    check_tuning(override(real, ["train.keep_best=false"]))


@pytest.mark.slow
def test_each_checkpoint_is_scored_beside_training_and_the_best_kept(tmp_path: Path) -> None:
    run = tmp_path / "run"
    steps = ("method_settings.tcl.phases.0.steps=4", "method_settings.tcl.phases.1.steps=8", "train.checkpoint_every=4")
    settings = ("methods=[tcl]", *steps, "evaluate.datasets=[cityscapes,voc20]", "train.keep_best=true")
    run_well("train", run, *settings)
    folder = run / "train" / "tcl"
    scores = read_scores(folder)
    assert [line["step"] for line in scores] == [4, 8, 12]
    assert all(line[AVERAGE] == (line[f"{AVERAGE}_cityscapes"] + line[f"{AVERAGE}_voc20"]) / 2 for line in scores)
    assert (folder / WEIGHTS).read_bytes() == (folder / BEST).read_bytes()
    assert [line["step"] for line in read_log(folder / "metrics.jsonl")][-1] == 12
    assert "train" in summary(run)["stages"]
    assert "train-tcl: skipped, complete already" in run_well("train", run, *settings)
