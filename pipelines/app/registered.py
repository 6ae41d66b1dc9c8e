"""Checkpoints that settings and options name by MLflow's registry: models:/NAME@ALIAS, models:/NAME/VERSION, models:/ID."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.open_tracker import set_client_environment
from cluster.store_uri import artifacts_here, sqlite_file, store_uri
from pipelines.app.config import ConfigError

if TYPE_CHECKING:
    from pipelines.app.settings import Config

PREFIX = "models:/"
SHARED = Path("runs")
"""Where the runs of this folder lie by default, and their store."""


def registered_here(config: "Config") -> "Config":
    """The settings with the places of the weights that they name by the registry of the run's store."""

    def places(given: dict[str, str]) -> dict[str, str]:
        return {name: _located(path, config.tracking.uri, Path(config.run_dir)) for name, path in given.items()}

    return replace(config, weights=places(dict(config.weights)), init=places(dict(config.init)))


def checkpoint_here(checkpoint: str) -> str:
    """A checkpoint's place; one of the registry is looked for in MLFLOW_TRACKING_URI, or in the store of ./runs."""
    return _located(checkpoint, "", SHARED / "any")


def _located(path: str, uri: str, run_dir: Path) -> str:
    if not path.startswith(PREFIX):
        return path
    store = store_uri(uri, run_dir)
    if (database := sqlite_file(store)) is not None:
        if not database.is_file():
            raise ConfigError(f"{path}: there is no MLflow store at {database}; set MLFLOW_TRACKING_URI to the one that has it")
        artifacts_here(database)
    set_client_environment()
    from cluster.mlflow_registry import located  # MLflow takes seconds to load

    return str(located(path, store))
