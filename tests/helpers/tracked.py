"""What MLflow has of a run's folder, read as anybody would."""

import json
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from cluster.store_uri import MEMORY, of_folder


def client_of(run_dir: Path) -> MlflowClient:
    return MlflowClient(of_folder(str(run_dir)))


def runs_of(run_dir: Path) -> dict[str, Run]:
    """The run of the folder and those below it, by name."""
    client = client_of(run_dir)
    parent = client.get_run(json.loads((run_dir / MEMORY).read_text())["run_id"])
    below = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    return {run.info.run_name: run for run in (parent, *below)}
