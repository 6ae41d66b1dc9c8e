"""What MLflow has of a run's folder, read as anybody would."""

import json
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from cluster.open_tracker import open_tracker
from cluster.store_uri import MEMORY, of_folder
from cluster.tracking import Data, Model, TrackingConfig

ADE = Data(name="ade20k", source="/data", digest="ade", profile={"images": 10})
VOC = Data(name="voc21", source="/data", digest="voc")
METRIC = "mIoU/average_of_8"


def client_of(run_dir: Path) -> MlflowClient:
    return MlflowClient(of_folder(str(run_dir)))


def runs_of(run_dir: Path) -> dict[str, Run]:
    """The run of the folder and those below it, by name."""
    client = client_of(run_dir)
    parent = client.get_run(json.loads((run_dir / MEMORY).read_text())["run_id"])
    below = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    return {run.info.run_name: run for run in (parent, *below)}


def scored(folder: Path, digest: str, ade: float, voc: float, weights: Path | None = None) -> str:
    """A run that trains a method and scores it; returns the parent's id."""
    folder.mkdir(exist_ok=True)
    model = Model(name="tcl", digest=digest, kind="tcl", tags={"weights": weights} if weights else {})
    with open_tracker(TrackingConfig(), folder, name=folder.name, settings={"seed": 0}, digest="d") as tracker:
        with tracker.child("train tcl", stage="train") as run:
            run.model(model, made=True)
        with tracker.child("evaluate tcl", stage="evaluate") as run:
            run.model(model, made=False)
            for data, value in ((ADE, ade), (VOC, voc)):
                run.dataset(data, context="evaluation")
                run.scores({f"mIoU/{data.name}": value}, model=digest, data=data)
            run.scores({METRIC: (ade + voc) / 2}, model=digest)
        return tracker.run_id
