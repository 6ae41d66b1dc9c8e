"""The best checkpoint by its mIoU on labelled tuning images is kept, and nothing but that."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from torch import nn

from cluster import InputError as ClusterInputError
from cluster import tuning
from cluster.tuning import AVERAGE, SCORES, best_weights, of_tuning, read_scores, scorer
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
        self.folder.mkdir(exist_ok=True)
        (self.folder / POSITION).write_text(json.dumps({"step": step}))
        (self.folder / WEIGHTS).write_text(f"weights of step {step}")

    @contextmanager
    def as_directory(self) -> Iterator[str]:
        yield str(self.folder)


@pytest.mark.parametrize(
    ("scored", "kept"),
    [
        ([(10, 12.0), (20, 31.5), (30, 31.5), (40, 7.0)], [10, 20, 20, 20]),  # the first of equals
        ([(10, 10.0), (20, 30.0), (20, 5.0), (30, 6.0)], [10, 20, 20, 30]),  # done again, with other numbers
    ],
)
def test_the_weights_with_the_best_score_are_kept(
    scored: list[tuple[int, float]], kept: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter(scored)
    monkeypatch.setattr(tuning, "score_weights", lambda *given: {AVERAGE: next(scores)[1]})
    score = scorer(tiny.tcl_config(), tiny.encoder_config(tmp_path), Normalisation(), EvaluateConfig(), tmp_path)
    for (step, value), best in zip(scored, kept, strict=True):
        assert score(Checkpoint(tmp_path, step)) == {AVERAGE: value}  # type: ignore[arg-type]
        assert best_weights(tmp_path) == (best, tmp_path / f"best.{best}.safetensors")
        assert (tmp_path / f"best.{best}.safetensors").read_text() == f"weights of step {best}"
    assert {step: line[AVERAGE] for step, line in read_scores(tmp_path).items()} == dict(scored)
    assert [*tmp_path.glob("best.*")] == [tmp_path / f"best.{kept[-1]}.safetensors"]


def test_lines_that_were_damaged_count_as_not_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_scores(tmp_path) == {}
    assert best_weights(tmp_path) is None
    whole = json.dumps({"step": 20, AVERAGE: 31.0})
    broken = ["", "null", "[1, 2]", '{"step": 4}', '{"step": "x", "tuning/mIoU": 1}', "\0\0", whole[:12], '{"step": 3, "tuning']
    (tmp_path / SCORES).write_text("\n".join([*broken[:4], whole, *broken[4:]]))
    assert read_scores(tmp_path) == {20: {"step": 20, AVERAGE: 31.0}}
    monkeypatch.setattr(tuning, "score_weights", lambda *given: {AVERAGE: 40.0})
    score = scorer(tiny.tcl_config(), tiny.encoder_config(tmp_path), Normalisation(), EvaluateConfig(), tmp_path)
    score(Checkpoint(tmp_path, 30))  # type: ignore[arg-type]
    assert (tmp_path / SCORES).read_text() == whole + "\n" + json.dumps({"step": 30, AVERAGE: 40.0}) + "\n"


def test_a_split_in_which_nothing_is_scored_is_no_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of nothing is no number, and would be better or worse than none."""
    empty = SimpleNamespace(counts=np.zeros((21, 21), dtype=np.int64))
    monkeypatch.setattr(tuning, "load_segmenter", lambda *given: nn.Identity())
    monkeypatch.setattr(tuning, "list_items", lambda *given: [])
    monkeypatch.setattr(tuning, "embed_queries", lambda *given: None)
    monkeypatch.setattr(tuning, "score_items", lambda *given, **named: empty)
    config = EvaluateConfig(root=str(tmp_path), datasets=("voc21",))
    with pytest.raises(ClusterInputError, match=r"evaluate\.tuning: no pixel of voc21's label maps has a class that is scored"):
        tuning.score_weights(tiny.tcl_config(), tiny.encoder_config(tmp_path), Normalisation(), config, tmp_path, tmp_path)


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
    assert [*scores] == [4, 8, 12]
    assert all(line[AVERAGE] == (line[f"{AVERAGE}_cityscapes"] + line[f"{AVERAGE}_voc20"]) / 2 for line in scores.values())
    kept = best_weights(folder)
    assert kept is not None
    assert scores[kept[0]][AVERAGE] == max(line[AVERAGE] for line in scores.values())
    assert (folder / WEIGHTS).read_bytes() == kept[1].read_bytes()
    assert [line["step"] for line in read_log(folder / "metrics.jsonl")][-1] == 12
    assert "train" in summary(run)["stages"]
    assert "train: skipped, complete already" in run_well("train", run, *settings)
    last = run_well("train", run, *settings, "train.keep_best=false", "train.score_checkpoints=true", "--restart")
    assert "train-tcl: begins anew with other settings, data or weights; what was trained is kept in " in last
    assert (run / "train" / "before" / "tcl.1" / SCORES).is_file()
    assert [*read_scores(folder)] == [4, 8, 12]
    assert "are kept" not in last
