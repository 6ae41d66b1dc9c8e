"""OVSegmentor through what stands around methods: its checkpoints, with and without a CLIP, a run's checks, and its row."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cluster.evaluate import Contender, Evaluator, draw, evaluate, list_parts
from cluster.session import SessionConfig
from helpers import tiny
from helpers.bert import save_bert
from helpers.paths import REPO
from helpers.voc import CONFIG, write_voc
from owseg import InputError
from owseg.checkpoint import Checkpoint, find_checkpoint, read_model, write_model
from owseg.encoders import EncoderConfig, load_encoder
from owseg.evaluation.protocols import EvaluateConfig
from owseg.evaluation.scoring import Score
from owseg.fit import WEIGHTS, learned_state
from owseg.methods.ovsegmentor import OvSegmentorConfig
from owseg.normalisation import Normalisation
from owseg.predict import load
from owseg.published import export_official
from pipelines.app.checks import check_encoder, check_methods, check_weights
from pipelines.app.config import load as load_config
from pipelines.app.resolve import located_model
from pipelines.app.settings import Config
from pipelines.evaluate import settings_of
from pipelines.segment import main as segment

MISSING = EncoderConfig(pretrained="/nowhere/clip.pt")
"""A CLIP that is not there: nobody may ask for it."""


def save(folder: Path, config: OvSegmentorConfig, encoder: EncoderConfig) -> Path:
    """A trained folder with random weights, as the train stage writes it."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    method = config.build(load_encoder(encoder) if config.uses_clip else None)
    state = {name: tensor.clone() for name, tensor in learned_state(method, config.phases).items()}
    save_file(state, folder / WEIGHTS)
    write_model(Checkpoint(method=config, encoder=encoder, view=tiny.VIEW, weights=folder / WEIGHTS))
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `bert` and `run/train/ovsegmentor`, which stands on a ViT and that BERT."""
    folder = tmp_path_factory.mktemp("own")
    save_bert(folder / "bert")
    config = tiny.ovsegmentor_config(image_tower="vit_tiny_patch16_224", text_tower=str(folder / "bert"), heads=3)
    save(folder / "run" / "train" / "ovsegmentor", config, MISSING)
    return folder


def test_a_checkpoint_without_clip_tells_none_and_needs_none(own: Path, photo: Path) -> None:
    folder = own / "run" / "train" / "ovsegmentor"
    text = (folder / "model.json").read_text()
    written = json.loads(text)
    assert "encoder" not in written
    assert written["normalisation"] == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    assert written["sha256"].keys() == {WEIGHTS}
    assert written["method"]["text_tower"] == "../../../bert"
    assert str(own) not in text
    found = find_checkpoint(own / "run")
    assert isinstance(found.method, OvSegmentorConfig)
    assert found.method.text_tower == str(own / "bert")
    assert found.method.phases == tiny.ovsegmentor_config().phases  # with an optimiser of its own within
    result = load(own / "run", background_threshold=1.0).segment(photo, tiny.LABELS)
    assert result.labels.shape == (40, 56)
    assert (load(own / "run").segment(photo, tiny.LABELS, background=False).labels >= 0).all()


def test_it_is_the_same_wherever_it_lies(own: Path, tmp_path: Path, photo: Path) -> None:
    shutil.copytree(own, tmp_path / "moved")
    folders = [place / "run" / "train" / "ovsegmentor" for place in (own, tmp_path / "moved")]
    masks = [load(folder).segment(photo, tiny.LABELS).labels for folder in folders]
    assert (masks[0] == masks[1]).all()
    assert len({write_model(read_model(folder)).read_bytes() for folder in folders}) == 1


def test_the_verb_speaks_of_its_own_options(own: Path, tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--checkpoint", str(own / "run"), "--set", f"text_tower={tmp_path}/none", "--out", str(tmp_path / "out")]
    assert segment([str(photo), "--labels", "red", *given]) == 2
    assert f"error: --set text_tower: '{tmp_path}/none' is no folder here" in capsys.readouterr().err


def test_training_free_modes_need_a_clip_to_read(own: Path) -> None:
    with pytest.raises(InputError, match=r"naclip: .*run has no CLIP that it could read"):
        find_checkpoint(own / "run", "naclip")


def test_a_run_of_several_methods_asks_which(tiny_run: Path, tmp_path: Path, photo: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    (architecture := tmp_path / "clip").mkdir()
    encoder = tiny.encoder_config(architecture, str(tmp_path / "run" / "train" / "clip" / "encoder.safetensors"))
    save(tmp_path / "run" / "train" / "ovsegmentor", tiny.ovsegmentor_config(), encoder)
    with pytest.raises(InputError, match=r"which method of this run\? name one of ovsegmentor, tcl"):
        load(tmp_path / "run")
    model = load(tmp_path / "run", method="ovsegmentor", background_threshold=0.0)
    assert (model.segment(photo, tiny.LABELS).labels >= 0).all()  # the method draws background itself: here, nowhere
    assert find_checkpoint(tmp_path / "run", "naclip").encoder.pretrained.endswith("clip/encoder.safetensors")


def test_official_files_are_told_apart(own: Path, tiny_run: Path, tmp_path: Path) -> None:
    for name, run in (("ovsegmentor", own / "run"), ("tcl", tiny_run)):
        torch.save(export_official(load(run).segmenter), tmp_path / "best.pth")  # type: ignore[arg-type]
        found = find_checkpoint(tmp_path / "best.pth").method
        assert found.name == name
        if isinstance(found, OvSegmentorConfig):
            assert (found.groups, found.joint) == (3, 16)
        with pytest.raises(InputError, match=rf"is a checkpoint of {name}"):
            find_checkpoint(tmp_path / "best.pth", "tcl" if name == "ovsegmentor" else "ovsegmentor")


def settings(*overrides: str) -> Config:
    return load_config(Config, REPO / "configs" / "smoke.yaml", ("methods=[ovsegmentor]", *overrides))


def test_what_it_begins_with_is_checked_before_any_work(own: Path, tmp_path: Path) -> None:
    towers = ("method_settings.ovsegmentor.image_tower=vit_tiny_patch16_224", "method_settings.ovsegmentor.heads=3")
    given = (*towers, f"method_settings.ovsegmentor.text_tower={own}/bert", "encoder.pretrained=/nowhere/clip.pt")
    check_encoder(settings(*given))
    with pytest.raises(InputError, match=r"/nowhere/clip\.pt does not exist"):
        check_encoder(settings(*given, "method_settings.ovsegmentor.image_tower=clip"))
    with pytest.raises(InputError, match=r"image_weights: .*dino\.pth does not exist"):
        check_methods(settings(*given, f"run_dir={tmp_path}", f"method_settings.ovsegmentor.image_weights={tmp_path}/dino.pth"))
    with pytest.raises(
        InputError, match=r"^method_settings\.ovsegmentor\.phases\.train: no parameter name begins with 'encodr\.'"
    ):
        check_methods(
            settings(*given, f"run_dir={tmp_path}", "method_settings.ovsegmentor.phases=[{steps: 1, train: [encodr.]}]")
        )
    with pytest.raises(
        InputError, match=r"^method_settings\.ovsegmentor\.phases\.1\.optim\.batch_size: 1024 does not divide over 3"
    ):
        check_methods(
            settings(*given, f"run_dir={tmp_path}", "train.workers=3", "method_settings.ovsegmentor.optim.batch_size=6")
        )
    trained = own / "run" / "train" / "ovsegmentor"
    check_methods(settings(*given, f"run_dir={own}/run", f"method_settings.ovsegmentor.image_weights={tmp_path}/dino.pth"))
    check_methods(settings(*given, f"weights.ovsegmentor={trained}"))
    sizes = ("tokens=6", "groups=3", "hidden=24", "joint=16")
    check_weights(
        settings(*given, *(f"method_settings.ovsegmentor.{size}" for size in sizes), f"weights.ovsegmentor={trained}")
    )


def test_paths_are_absolute_for_workers_and_names_stay(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own)
    (own / "clip").mkdir(exist_ok=True)
    there = located_model(
        settings("method_settings.ovsegmentor.text_tower=bert", "method_settings.ovsegmentor.image_tower=clip"), "ovsegmentor"
    )
    assert isinstance(there, OvSegmentorConfig)
    assert (there.text_tower, there.image_tower, there.image_weights) == (str(own / "bert"), "clip", "")
    for name in ("clip", "bert-base-uncased"):
        kept = located_model(settings(f"method_settings.ovsegmentor.text_tower={name}"), "ovsegmentor")
        assert isinstance(kept, OvSegmentorConfig)
        assert kept.text_tower == name


def contender(own: Path, **settings: Any) -> Contender:
    folder = own / "run" / "train" / "ovsegmentor"
    method = read_model(folder).method
    assert isinstance(method, OvSegmentorConfig)
    return Contender(name="ovsegmentor", method=replace(method, **settings), encoder=MISSING, weights=folder / WEIGHTS)


def test_its_row_says_the_thresholds_it_went_by(own: Path) -> None:
    def told(datasets: tuple[str, ...], **changes: Any) -> str:
        scores = {name: Score.empty(2, 2, None, (), oracle=False) for name in datasets}
        return settings_of(contender(own, **changes), EvaluateConfig(datasets=datasets), scores)

    every = ("voc21", "context60", "coco_object", "ade20k")
    assert told(every) == "templates simple, top classes 5, background 0.9"
    assert told(every, thresholds="official").endswith("background 0.35/0.9/0.95")
    assert told(("ade20k",)) == "templates simple, top classes 5"


def test_a_row_changes_with_what_decides_it(own: Path, tmp_path: Path) -> None:
    row = contender(own)
    moved = shutil.copytree(own / "bert", tmp_path / "bert")
    same = (contender(own, momentum=0.5), replace(row, encoder=EncoderConfig()), contender(own, text_tower=str(moved)))
    assert {other.fingerprint() for other in same} == {row.fingerprint()}
    others = (contender(own, top_classes=2), replace(row, normalisation=Normalisation(mean=(0.0, 0.0, 0.0))))
    assert row.fingerprint() not in {other.fingerprint() for other in others}
    (moved / "tokenizer.json").write_text((moved / "tokenizer.json").read_text().replace('"dog"', '"hound"'))
    assert contender(own, text_tower=str(moved)).fingerprint() != row.fingerprint()


def test_each_benchmark_is_scored_with_its_own_threshold(tiny_run: Path, tmp_path: Path) -> None:
    write_voc(tmp_path, count=1)
    config = replace(CONFIG, root=str(tmp_path), datasets=("voc21", "voc20"), thresholds=())
    (architecture := tmp_path / "clip").mkdir()
    encoder = tiny.encoder_config(architecture, str(tiny_run / "train" / "clip" / "encoder.safetensors"))
    method = tiny.ovsegmentor_config(background_threshold=0.0)
    row = Contender(name="unified", method=method, encoder=encoder, weights=save(tmp_path / "o", method, encoder) / WEIGHTS)
    rows = [row, replace(row, name="official", method=replace(method, thresholds="official"))]
    worker = Evaluator(config, use_gpu=False)
    for part in list_parts(rows, config, tmp_path / "out"):
        worker.score(part)
    scores = evaluate(rows, config, SessionConfig(), tmp_path / "out")  # all parts are there: they are read back
    assert scores["unified"]["voc21"].counts[:, 0].sum() == 0
    assert scores["official"]["voc21"].counts[:, 0].sum() > 0
    assert (scores["unified"]["voc20"].counts == scores["official"]["voc20"].counts).all()
    drawn = {name: {"voc21": row["voc21"]} for name, row in scores.items()}
    paths = draw(rows, drawn, config, tmp_path / "pictures")
    unified, official = (np.asarray(Image.open(paths[row.name][0])).tolist() for row in rows)
    assert unified != official
