"""Scoring in parts: the same counts however the work is cut and spread, resumed where it stopped, and clear about bad files."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cluster import evaluate as cluster_evaluate
from cluster.evaluate import Contender, evaluate, list_parts
from cluster.session import SessionConfig, close_session
from helpers.chain import SMOKE, summary
from helpers.paths import REPO
from helpers.scored import IMAGES, LABELS, Inline, assert_equal, cut
from helpers.voc import write_voc
from owseg import InputError
from owseg.evaluation.intervals import read_image_counts
from owseg.evaluation.protocols import EvaluateConfig
from owseg.methods.chance import ChanceConfig
from owseg.methods.zero_shot import ZeroShotConfig
from pipelines.app.cli import main
from pipelines.app.outcome import explain
from pipelines.evaluate import run as evaluate_verb


def test_scores_do_not_depend_on_workers_parts_and_batches(
    tmp_path: Path, voc: EvaluateConfig, contenders: list[Contender], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_evaluate, "ITEMS_PER_PART", 2)
    try:
        three = evaluate(contenders, voc, SessionConfig(num_cpus=3), tmp_path / "three")
        (tmp_path / "faulty").mkdir()
        write_voc(tmp_path / "faulty", count=1)
        bad = tmp_path / "faulty" / IMAGES / "2007_000000.jpg"
        cut(bad)
        with pytest.raises(Exception, match="not a readable image") as stopped:
            evaluate(contenders, replace(voc, root=str(tmp_path / "faulty")), SessionConfig(num_cpus=3), tmp_path / "faulty")
        assert str(explain(stopped.value)).startswith(f"{bad}: not a readable image")
    finally:
        close_session()
    inline = Inline(monkeypatch)
    for size in (1, 3, 100):
        monkeypatch.setattr(cluster_evaluate, "ITEMS_PER_PART", size)
        # One folder for all sizes: parts of another size must not be taken for each other.
        assert_equal(three, evaluate(contenders, replace(voc, window_batch=size), SessionConfig(), tmp_path / "one"))
        assert_equal(three, evaluate(contenders, voc, SessionConfig(), tmp_path / f"size {size}"))
    assert inline.scored
    assert three["maskclip"]["voc21"].thresholds[:3] == (0.05, 0.1, 0.15)
    assert three["maskclip"]["voc20"].thresholds == three["chance"]["voc21"].thresholds == ()
    assert len(three["maskclip"]["voc21"].images) == 7
    assert three["maskclip"]["voc21"].seconds > 0


def test_finished_parts_are_read_back_and_changed_images_scored_anew(
    tmp_path: Path, voc: EvaluateConfig, contenders: list[Contender], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_evaluate, "ITEMS_PER_PART", 2)
    inline = Inline(monkeypatch)
    first = evaluate(contenders, voc, SessionConfig(), tmp_path / "out")
    assert len(inline.scored) == len(set(inline.scored)) == 2 * 2 * 4
    inline.scored.clear()
    assert_equal(first, evaluate(contenders, voc, SessionConfig(), tmp_path / "out"))
    assert not inline.scored
    lost = list_parts(contenders, voc, tmp_path / "out")[5].file
    lost.unlink()
    assert_equal(first, evaluate(contenders, voc, SessionConfig(), tmp_path / "out"))
    assert inline.scored == [lost]
    inline.scored.clear()
    image = Path(voc.root) / IMAGES / "2007_000003.jpg"
    Image.fromarray(255 - np.asarray(Image.open(image))).save(image)
    changed = evaluate(contenders, voc, SessionConfig(), tmp_path / "out")
    assert len(inline.scored) == 2 * 2  # its part, for both contenders and benchmarks
    assert (changed["maskclip"]["voc21"].counts != first["maskclip"]["voc21"].counts).any()
    inline.scored.clear()
    assert evaluate(contenders, replace(voc, preset="sclip"), SessionConfig(), tmp_path / "out").keys() == first.keys()
    assert len(inline.scored) == 2 * 2 * 4


def test_a_worker_loads_a_contender_and_embeds_a_benchmark_once(
    tmp_path: Path, voc: EvaluateConfig, contenders: list[Contender], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    embedded: list[int] = []
    original = cluster_evaluate.load_segmenter

    class Counting(torch.nn.Module):
        def __init__(self, inside: torch.nn.Module) -> None:
            super().__init__()
            self.inside, self.segment, self.background_threshold = inside, inside.segment, inside.background_threshold

        def embed_classes(self, names: list[str]) -> torch.Tensor:
            embedded.append(len(names))
            return self.inside.embed_classes(names)

    def load(method: ChanceConfig | ZeroShotConfig, *rest: object) -> Counting:
        loaded.append(method.name)
        return Counting(original(method, *rest))

    monkeypatch.setattr(cluster_evaluate, "load_segmenter", load)
    monkeypatch.setattr(cluster_evaluate, "ITEMS_PER_PART", 1)
    Inline(monkeypatch)
    evaluate(contenders, voc, SessionConfig(), tmp_path / "out")
    assert sorted(loaded) == sorted(contender.method.name for contender in contenders)
    assert embedded == [20, 20] * 2


def other_size(path: Path) -> None:
    Image.open(path).resize((20, 20), Image.Resampling.NEAREST).save(path)


def other_value(path: Path) -> None:
    label = np.array(Image.open(path))
    label[0, 0] = 77
    Image.fromarray(label).save(path)


@pytest.mark.parametrize(
    ("fault", "folder", "suffix", "told", "skippable"),
    [
        (cut, IMAGES, "jpg", "not a readable image", True),
        (cut, LABELS, "png", "not a readable label map", True),
        (other_size, LABELS, "png", "they must be the same size", False),
        (other_value, LABELS, "png", "label value 77 is outside the 21 classes of voc21", False),
    ],
)
def test_a_bad_file_stops_with_its_name_or_is_left_out_and_counted(
    tmp_path: Path,
    voc: EvaluateConfig,
    contenders: list[Contender],
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[Path], None],
    folder: str,
    suffix: str,
    told: str,
    skippable: bool,
) -> None:
    inline = Inline(monkeypatch)
    monkeypatch.setattr(cluster_evaluate, "ITEMS_PER_PART", 2)
    voc = replace(voc, datasets=("voc21",))
    whole = evaluate(contenders, voc, SessionConfig(), tmp_path / "whole")
    bad = Path(voc.root) / folder / f"2007_000002.{suffix}"
    fault(bad)
    inline.scored.clear()
    with pytest.raises(InputError, match=told) as stopped:
        evaluate(contenders, voc, SessionConfig(), tmp_path / "out")
    assert str(bad) in str(stopped.value)
    assert not inline.scored, "it stops before hours of work"
    skipping = replace(voc, unreadable="skip")
    if not skippable:
        with pytest.raises(InputError, match=told):
            evaluate(contenders, skipping, SessionConfig(), tmp_path / "out")
        return
    scores = evaluate(contenders, skipping, SessionConfig(), tmp_path / "out")["maskclip"]["voc21"]
    assert list(scores.skipped) == ["2007_000002"]
    assert str(bad) in scores.skipped["2007_000002"]
    assert scores.images == {id_: value for id_, value in whole["maskclip"]["voc21"].images.items() if id_ != "2007_000002"}
    with pytest.raises(InputError, match=told):  # what was left out once must not stay out unasked
        evaluate(contenders, voc, SessionConfig(), tmp_path / "out")


def test_a_set_with_no_readable_image_has_no_score(
    tmp_path: Path, voc: EvaluateConfig, contenders: list[Contender], monkeypatch: pytest.MonkeyPatch
) -> None:
    Inline(monkeypatch)
    for path in (Path(voc.root) / IMAGES).iterdir():
        cut(path)
    with pytest.raises(InputError, match="voc21: none of its 7 images can be read"):
        evaluate(contenders, replace(voc, unreadable="skip"), SessionConfig(), tmp_path / "out")


def test_a_set_in_which_every_pixel_is_ignored_has_no_score(
    voc: EvaluateConfig, contenders: list[Contender], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Inline(monkeypatch)
    for path in (Path(voc.root) / LABELS).iterdir():
        Image.fromarray(np.zeros_like(np.asarray(Image.open(path)))).save(path)  # voc20 ignores the background
    with pytest.raises(
        InputError, match="voc20: no pixel of its label maps has a class that is scored; look at the label maps"
    ):
        evaluate(contenders, voc, SessionConfig(), tmp_path / "out")
    first = replace(voc, datasets=("voc_unseen_all",), limit=3)
    with pytest.raises(InputError, match=r"^voc_unseen_all: .*; raise evaluate\.limit$"):
        evaluate(contenders, first, SessionConfig(), tmp_path / "out")


def stage_settings(run_dir: Path) -> str:
    settings: str = summary(run_dir)["stages"]["evaluate"]["settings"]["maskclip"]
    return settings


def assert_told_what_was_left_out(run_dir: Path, datasets: Sequence[str]) -> None:
    """The summary and the files of a run that left one image out."""
    stage = summary(run_dir)["stages"]["evaluate"]
    assert stage["mIoU"].keys() == {"chance", "maskclip"}
    row = stage["mIoU"]["maskclip"]
    assert row["average"] == pytest.approx((row["voc21"] + row["voc20"]) / 2)
    assert row["voc_unseen"] != pytest.approx(row["average"])
    assert stage["skipped"] == {name: ["2007_000002"] for name in datasets}
    folder = run_dir / "evaluate"
    scored = json.loads((folder / "maskclip" / "voc21.json").read_text())
    assert scored["preset"] == "tcl"
    assert scored["images"] == 6
    assert scored["mIoU"] == row["voc21"]
    assert {"fwIoU", "pixel_accuracy", "boundary_IoU", "seconds_per_image", "threshold_sweep", "settings"} <= scored.keys()
    assert (folder / "pictures" / "maskclip" / "threshold_sweep.png").is_file()
    assert "2007_000002" not in read_image_counts(folder / "maskclip" / "voc21.npz").ids
    assert "oracle_mIoU" not in stage


def test_the_verb_tells_the_protocol_the_rows_settings_and_what_was_left_out(
    tmp_path: Path,
    voc: EvaluateConfig,
    contenders: list[Contender],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Inline(monkeypatch)
    encoder_settings = contenders[1].encoder
    arguments = [
        "--config",
        str(REPO / SMOKE),
        f"run_dir={tmp_path / 'run'}",
        "tracking.enabled=false",
        "methods=[chance,maskclip]",
        "method_settings.maskclip={templates: simple, background_threshold: 0.1}",
        f"encoder={{model: {encoder_settings.model}, pretrained: {encoder_settings.pretrained}}}",
        f"evaluate={{root: {voc.root}, datasets: [voc21, voc20, voc_unseen], short_side: 32, window: 32, stride: 16}}",
    ]
    bad = Path(voc.root) / IMAGES / "2007_000002.jpg"
    cut(bad)
    assert main(evaluate_verb, doc="", argv=[*arguments, "evaluate.bootstrap=99"]) == 2
    assert "bootstrap: 99 resamples are too few; give at least 100, or 0" in capsys.readouterr().err
    assert main(evaluate_verb, doc="", argv=arguments) == 2
    (told,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert str(bad) in told
    assert not (tmp_path / "run" / "summary.json").exists()
    later = ("evaluate.unreadable=skip", "evaluate.bootstrap=0", "evaluate.oracle=true")

    assert main(evaluate_verb, doc="", argv=[*arguments, "evaluate.unreadable=skip"]) == 0
    printed = capsys.readouterr().out
    assert "preset tcl, short side 32, window 32, stride 16" in printed
    assert "mode maskclip, templates simple" in printed
    assert "boundary IoU" in printed
    assert stage_settings(tmp_path / "run") == "mode maskclip, templates simple, unit prompts off, background 0.1"
    for dataset in (*voc.datasets, "voc_unseen"):
        assert f"{dataset}: 1 of 7 images left out, unreadable: 2007_000002" in printed
    assert_told_what_was_left_out(tmp_path / "run", (*voc.names, "voc_unseen"))
    stage = summary(tmp_path / "run")["stages"]["evaluate"]

    # Asked for later, in the same folder: no intervals, and the regions under their best names.
    assert main(evaluate_verb, doc="", argv=[*arguments, *later]) == 0
    printed = capsys.readouterr().out
    again = summary(tmp_path / "run")["stages"]["evaluate"]
    assert again["mIoU"] == stage["mIoU"]
    assert again["intervals"] == again["differences"] == {}
    assert "±" not in printed
    assert "lead of the best average" not in printed
    oracle = again["oracle_mIoU"]["maskclip"]
    assert oracle["average"] == pytest.approx((oracle["voc21"] + oracle["voc20"]) / 2)
    for dataset in voc.datasets:
        scored = json.loads((tmp_path / "run" / "evaluate" / "maskclip" / f"{dataset}.json").read_text())
        assert scored["oracle_mIoU"] == oracle[dataset]
        assert 1 <= scored["regions_per_image"] <= 21
        assert "mIoU_interval" not in scored
    others = [line for line in printed.splitlines() if line.startswith("│ maskclip")][1]
    assert f" {oracle['average']:.1f} │" in others

    assert main(evaluate_verb, doc="", argv=arguments) == 2  # a finished run with images left out is no answer to "stop"
    assert str(bad) in capsys.readouterr().err
