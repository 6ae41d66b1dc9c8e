"""ViL-Seg through what stands around methods: its checkpoint, a run's checks, resuming, and its row of the table."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cluster.session import SessionConfig
from cluster.train import train
from cluster.train_config import RayTrainJob, TrainConfig
from helpers import tiny
from helpers.paths import REPO
from helpers.tensors import assert_same
from helpers.vilseg import batch_of
from owseg import InputError
from owseg.checkpoint import Checkpoint, find_checkpoint, write_model
from owseg.encoders import EncoderConfig
from owseg.engine import TorchEngine
from owseg.fit import WEIGHTS, fit, learned_state
from owseg.methods.vilseg import VilSeg, VilSegConfig
from owseg.predict import load
from pipelines.app.checks import check_encoder, check_methods
from pipelines.app.config import ConfigError
from pipelines.app.config import load as load_config
from pipelines.app.settings import Config

MISSING = EncoderConfig(pretrained="/nowhere/clip.pt")
"""A CLIP that is not there: nobody may ask for it."""
SMALL = (
    "methods=[vilseg]",
    "encoder.pretrained=/nowhere/clip.pt",
    "method_settings.vilseg.image_size={image_size: 64, patch_size: 8, width: 32, depth: 2, heads: 2}",
    "method_settings.vilseg.text={layers: 1, width: 32, heads: 2, context_length: 16, vocabulary: 1024}",
    "method_settings.vilseg.augment.size=64",
    "method_settings.vilseg.local_size=32",
    "method_settings.vilseg.optim.batch_size=64",
)


def settings(*overrides: str) -> Config:
    return load_config(Config, REPO / "configs" / "smoke.yaml", [*SMALL, *overrides])


def test_a_checkpoint_segments_by_itself(tmp_path: Path, photo: Path) -> None:
    torch.manual_seed(0)
    config = tiny.vilseg_config()
    method = VilSeg(config)
    folder = tmp_path / "run" / "train" / "vilseg"
    folder.mkdir(parents=True)
    save_file({name: value.clone() for name, value in learned_state(method, config.phases).items()}, folder / WEIGHTS)
    write_model(Checkpoint(method=config, encoder=MISSING, view=tiny.VIEW, weights=folder / WEIGHTS))
    found = find_checkpoint(tmp_path / "run").method
    assert found == config
    result = load(tmp_path / "run").segment(photo, tiny.LABELS, background=False)
    assert result.labels.shape == (40, 56)
    assert set(np.unique(result.labels)) <= {0, 1, 2}
    assert (load(tmp_path / "run", background_threshold=1.0).segment(photo, tiny.LABELS).labels == -1).all()


def test_no_clip_is_asked_for() -> None:
    check_encoder(settings())
    check_methods(settings(f"run_dir={REPO}/none"))


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (
            "method_settings.vilseg.optim.batch_size=8",
            r"^method_settings\.vilseg\.optim\.batch_size: 8 is too small for the clustering head",
        ),
        (
            "method_settings.vilseg.augment.size=1024",
            r"^method_settings\.vilseg\.augment\.size: crops of 1024 pixels are larger than the shards' images",
        ),
        (
            "method_settings.vilseg.image_tower=resnet50",
            r"^method_settings\.vilseg\.image_tower: timm cannot build 'resnet50'|is no plain ViT",
        ),
        (
            "method_settings.vilseg.phases=[{steps: 1, train: [teacher.]}]",
            r"^method_settings\.vilseg\.phases\.train: no parameter name begins",
        ),
    ],
)
def test_what_cannot_be_trained_is_told_before_any_work(override: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        check_methods(settings(f"run_dir={REPO}/none", override))


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (
            "method_settings.vilseg.local_size=96",
            r"method_settings\.vilseg\.local_size: crops of 96 pixels are larger than the images",
        ),
        ("method_settings.vilseg.init=clip", r"'method_settings\.vilseg\.init' must be scratch or dino, not 'clip'"),
        ("method_settings.vilseg.clusterz=9", r"did you mean 'method_settings\.vilseg\.clusters'"),
    ],
)
def test_settings_that_cannot_be_are_told_with_their_key(override: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        settings(override)


def fitted(config: VilSegConfig, shards: Path, resume: Path | None, save_to: Path | None = None) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    method = VilSeg(config)

    def keep(step: int, save: object) -> None:
        if save_to is not None and step == 2:
            save(save_to)  # type: ignore[operator]

    fit(
        method,
        config.phases,
        config.optim,
        lambda groups, optim: TorchEngine(method, groups, optim),
        lambda span, step: (batch_of(method, shards, number) for number in range(step, span.stop)),
        seed=0,
        resume=resume,
        checkpoint_every=1,
        on_checkpoint=keep,
    )
    return {name: value.clone() for name, value in method.state_dict().items()}


def test_a_resumed_training_ends_the_same(tmp_path: Path) -> None:
    """The teacher, the centre and the count of steps go on from the checkpoint."""
    shards = tmp_path / "shards"
    tiny.write_shards(shards)
    config = tiny.vilseg_config(steps=4, warmup_teacher_steps=4, warmup_teacher_temperature=0.02)
    (tmp_path / "at 2").mkdir()
    whole = fitted(config, shards, None, tmp_path / "at 2")
    resumed = fitted(config, shards, tmp_path / "at 2")
    assert_same(resumed, whole)
    assert int(whole["taken"]) == 4


@pytest.mark.slow
def test_it_trains_on_ray_with_deepspeed_and_logs_its_alarms(tmp_path: Path) -> None:
    logged: list[dict[str, float]] = []
    job = RayTrainJob(
        method=tiny.vilseg_config(steps=3),
        encoder=MISSING,
        shards=tuple(tiny.write_shards(tmp_path / "shards")),
        out=tmp_path / "train",
        seed=0,
        train=TrainConfig(workers=2, log_every=1, checkpoint_every=2),
    )
    weights = train(job, SessionConfig(num_cpus=2), logged.extend)
    assert weights.is_file()
    assert {line["step"] for line in logged} == {1, 2, 3}
    assert {"loss/contrast", "loss/vision", "loss/cluster", "cluster/perplexity", "cluster/collapsed"} <= logged[-1].keys()
    total = sum(logged[-1][f"loss/{name}"] for name in ("contrast", "vision", "cluster"))
    assert logged[-1]["loss/total"] == pytest.approx(total)
