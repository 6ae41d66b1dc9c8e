"""LoggedModels and pictures: what an outbox does with the records of an MLflow run that are more than keys and values."""

import re
import tempfile
from functools import partial
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelInput, LoggedModelOutput, LoggedModelStatus, Metric, RunTag
from mlflow.tracking.multimedia import compress_image_size
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_IMAGES
from PIL import Image

from cluster.mlflow_sending import Refused, RunSender, ask
from cluster.tracking import Model

DIGEST = "digest"
"""Tag of a LoggedModel: of all that decides its masks."""


class ModelSender(RunSender):
    """A `RunSender` that knows of models, too: one for each digest, in the run's experiment."""

    def logged_models(self, entries: list[tuple[Model, bool]]) -> None:
        for model, made in entries:
            self.refusable("models", partial(self._log_model, model, made))

    def scores(self, entries: list[tuple[Metric, str]]) -> None:
        """Metrics with the digest of the model that they are of."""
        try:
            ids = {digest: self._model_id(digest) for _, digest in entries}
        except Refused:  # a server from before MLflow 3: the run has the numbers
            ids = {}
        self.metrics([_of_model(metric, ids.get(digest, "")) for metric, digest in entries])

    def images(self, entries: list[tuple[Path, str, int]]) -> None:
        """Pictures under the names that MLflow's viewer reads, the same for the same key and step: one replaces another.

        `MlflowClient.log_image` would add a picture each time.
        """
        for path, key, step in entries:
            self.file(partial(self._image, path, key, step))
        self.put_tags([RunTag(MLFLOW_LOGGED_IMAGES, "True")])

    def _image(self, path: Path, key: str, step: int) -> None:
        name = f"{re.sub('/', '~', key)}+step+{step}+timestamp+{self.began + step}+picture"
        with tempfile.TemporaryDirectory() as folder, Image.open(path) as image:
            whole, small = Path(folder) / f"{name}.png", Path(folder) / f"{name}+compressed.webp"
            image.save(whole)
            compress_image_size(image).save(small)
            for file in (whole, small):
                self.client.log_artifact(self.run_id, str(file), "images")

    def _log_model(self, model: Model, made: bool) -> None:
        model_id = self._model_id(model.digest) or self._create(model)
        if model_id in self.models:
            return
        if made:
            self.client.log_outputs(self.run_id, [LoggedModelOutput(model_id, step=0)])
        else:
            self.client.log_inputs(self.run_id, models=[LoggedModelInput(model_id)])
        self.models.add(model_id)

    def _model_id(self, digest: str) -> str:
        """The id of the model with this digest; empty where none is recorded."""
        known = self.memory.model_id(digest)
        if not known:
            found = ask(partial(find_model, self.client, self.experiment_id, digest))
            if found:
                known = str(found.model_id)
                self.memory.remember_model(digest, known)
        return known

    def _create(self, model: Model) -> str:
        params = {key: str(value) for key, value in model.params.items()}
        tags = {key: str(value) for key, value in model.tags.items()} | {DIGEST: model.digest}
        made = self.client.create_logged_model(
            self.experiment_id, model.name, self.run_id, tags=tags, params=params, model_type=model.kind
        )
        self.client.finalize_logged_model(made.model_id, LoggedModelStatus.READY)
        self.memory.remember_model(model.digest, made.model_id)
        return str(made.model_id)


def find_model(client: MlflowClient, experiment_id: str, digest: str) -> LoggedModel | None:
    """The model with this digest in an experiment, of whatever run."""
    return next(iter(client.search_logged_models([experiment_id], f"tags.{DIGEST} = '{digest}'", max_results=1)), None)


def _of_model(metric: Metric, model_id: str) -> Metric:
    return Metric(
        metric.key,
        metric.value,
        metric.timestamp,
        metric.step,
        model_id=model_id or None,
        dataset_name=metric.dataset_name if model_id else None,
        dataset_digest=metric.dataset_digest if model_id else None,
    )
