"""LoggedModels and pictures: what an outbox does with the records of an MLflow run that are more than keys and values."""

import re
import tempfile
from functools import partial
from pathlib import Path

from mlflow.entities import LoggedModel, LoggedModelInput, LoggedModelOutput, LoggedModelStatus, Metric, RunTag
from mlflow.tracking.multimedia import compress_image_size
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_IMAGES
from PIL import Image

from cluster.mlflow_sending import Refused, RunSender, ask
from cluster.tracking import Model

DIGEST, WEIGHTS = "digest", "weights"
"""Tags of a LoggedModel: of all that decides its masks, and where its weights lie."""


class ModelSender(RunSender):
    """A `RunSender` that knows of models, too: one for each digest, in the run's experiment."""

    def logged_models(self, entries: list[tuple[Model, bool]]) -> None:
        for model, made in entries:
            self.refusable("models", partial(self._log_model, model, made))

    def scores(self, entries: list[tuple[Metric, str]]) -> None:
        """Metrics with the digest of the model that they are of; a server from before MLflow 3 has them of the run alone."""
        self.metrics([_of_model(metric, self.memory.model_id(digest)) for metric, digest in entries])

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
        known = self._known_model(model.digest)
        if known is None:
            model_id = self._create(model)
        else:
            model_id = str(known.model_id)
            self._heal(known, model)
            self.memory.remember_model(model.digest, model_id)
        if model_id in self.models:
            return
        if made:
            self.client.log_outputs(self.run_id, [LoggedModelOutput(model_id, step=0)])
        else:
            self.client.log_inputs(self.run_id, models=[LoggedModelInput(model_id)])
        self.models.add(model_id)

    def _known_model(self, digest: str) -> LoggedModel | None:
        """The model with this digest: the one that the folder remembers, unless it was deleted, or that of another run."""
        if model_id := self.memory.model_id(digest):
            try:
                return ask(partial(self.client.get_logged_model, model_id))
            except Refused:
                self.memory.forget_model(digest)
        found = self.client.search_logged_models([self.experiment_id], f"tags.{DIGEST} = '{digest}'", max_results=1)
        return next(iter(found), None)

    def _heal(self, known: LoggedModel, model: Model) -> None:
        """Finish what an attempt whose answer was lost began; where the weights are gone, say where the same ones lie now."""
        if known.status != LoggedModelStatus.READY:
            self.client.finalize_logged_model(known.model_id, LoggedModelStatus.READY)
        before, now = known.tags.get(WEIGHTS), model.tags.get(WEIGHTS)
        if now and before != now and not (before and Path(before).is_file()):
            self.client.set_logged_model_tags(known.model_id, {WEIGHTS: str(now)})

    def _create(self, model: Model) -> str:
        params = {key: str(value) for key, value in model.params.items()}
        tags = {key: str(value) for key, value in model.tags.items()} | {DIGEST: model.digest}
        made = self.client.create_logged_model(
            self.experiment_id, model.name, self.run_id, tags=tags, params=params, model_type=model.kind
        )
        self.client.finalize_logged_model(made.model_id, LoggedModelStatus.READY)
        self.memory.remember_model(model.digest, made.model_id)
        return str(made.model_id)


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
