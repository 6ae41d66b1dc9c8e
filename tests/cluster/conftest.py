"""Stores of MLflow for tests: a fresh SQLite file at no cost, and a real server behind a proxy that can fail."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from cluster.session import set_environment
from helpers.servers import Proxy, mlflow_server

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
