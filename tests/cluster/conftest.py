"""A small benchmark and rows to be scored on it; stores of MLflow: a fresh file at no cost, a server that can fail."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from safetensors.torch import save_file

from cluster.evaluate import Contender
from cluster.session import set_environment
from helpers.servers import Proxy, mlflow_server
from helpers.tiny import encoder, encoder_config
from helpers.voc import write_voc
from owseg.evaluation.protocols import EvaluateConfig
from owseg.methods.chance import ChanceConfig
from owseg.methods.zero_shot import ZeroShotConfig

set_environment(local=True)  # as a local session does: Ray reads it once, and some tests import Ray before they start it


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh MLflow database: making one takes seconds, copying it none."""
    folder = tmp_path_factory.mktemp("mlflow")
    MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_experiments()
    return folder / "mlflow.db"


@pytest.fixture
def run_dir(tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(template, folder / "mlflow.db")
    return folder


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Iterator[str]:
    """The address of a real MLflow server that keeps files itself."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(template, folder / "server.db")
    with mlflow_server(folder, "--artifacts-destination", str(folder / "files")) as address:
        yield address


@pytest.fixture
def proxy(server: str) -> Iterator[Proxy]:
    """In front of the server."""
    with Proxy(server) as proxy:
        yield proxy


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
