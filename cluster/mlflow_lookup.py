"""MLflow runs that are looked at from outside: where the folder of one is, and a page that is put beside its records."""

import tempfile
from pathlib import Path

import yaml

from cluster import InputError
from cluster.mlflow_sending import reason_of
from cluster.open_tracker import set_client_environment
from cluster.store_uri import sqlite_file
from filtering.secrets import holds_mask, masked

CONFIG = "config.yaml"
"""The document of a parent run that holds its resolved settings."""


def folder_of(uri: str, run_id: str) -> str:
    """The run folder, a path or URL, of a parent run in an MLflow store. Raises InputError where that is not to be had."""
    set_client_environment()
    from mlflow import MlflowClient  # takes seconds to import

    try:
        client = MlflowClient(tracking_uri=uri)
        with tempfile.TemporaryDirectory() as here:
            file = client.download_artifacts(run_id, CONFIG, here)
            folder = yaml.safe_load(Path(file).read_text(encoding="utf-8"))["run_dir"]
    except Exception as error:  # SQLAlchemy's, the network's and MLflow's own have no common base
        cure = "give the id of a parent run, set tracking.uri to its store, or give the run's folder"
        told = f"mlflow:{run_id}: its settings are not to be had from {uri} ({reason_of(error)}); {cure}"
        raise InputError(masked(told)) from None
    return str(folder)


def put_page(uri: str, run_id: str, file: Path, folder: str) -> str:
    """Put a file into a folder of a run's artifacts; returns why that could not be done, "" where it was."""
    if holds_mask(uri):
        return "its store asks for a password, which records do not keep; give tracking.uri"
    if (database := sqlite_file(uri)) and not database.is_file():
        return f"{database} is not there; give tracking.uri"
    set_client_environment()
    from mlflow import MlflowClient

    try:
        MlflowClient(tracking_uri=uri).log_artifact(run_id, str(file), folder)
    except Exception as error:
        return masked(f"{uri} cannot be used ({reason_of(error)})")
    return ""
