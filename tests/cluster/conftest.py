"""A small benchmark, and rows to be scored on it."""

from pathlib import Path

import pytest
from safetensors.torch import save_file

from cluster.evaluate import Contender
from helpers.tiny import encoder, encoder_config
from helpers.voc import write_voc
from owseg.evaluation.protocols import EvaluateConfig
from owseg.methods.chance import ChanceConfig
from owseg.methods.zero_shot import ZeroShotConfig


@pytest.fixture
def voc(tmp_path: Path) -> EvaluateConfig:
    """VOC-format images in two benchmarks (with and without background)."""
    write_voc(tmp_path / "sets", count=7)
    return EvaluateConfig(
        root=str(tmp_path / "sets"), datasets=("voc21", "voc20"), short_side=32, window=32, stride=16, window_batch=2
    )


@pytest.fixture
def contenders(tmp_path: Path) -> list[Contender]:
    save_file(encoder(tmp_path).clip.state_dict(), tmp_path / "clip.safetensors")
    config = encoder_config(tmp_path, str(tmp_path / "clip.safetensors"))
    return [
        Contender(name="chance", method=ChanceConfig(), encoder=config),
        Contender(name="maskclip", method=ZeroShotConfig(templates="simple", background_threshold=0.1), encoder=config),
    ]
