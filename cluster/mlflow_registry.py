"""The model registry: a run's LoggedModel registered under a name that others load it by, and weights found by that name."""

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Array

from cluster import InputError
from cluster.mlflow_models import DIGEST, WEIGHTS
from cluster.mlflow_sending import reason_of
from filtering.files import digest_of_file
from filtering.secrets import masked

CHAMPION = "champion"
"""Alias of the version with the best average mIoU."""
PREFIX = "models:/"
SERVED = ("torch", "open_clip_torch", "safetensors", "pillow", "pandas", "mlflow")
"""What a server of the model needs beside this package."""


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A version of a registered model."""

    name: str
    version: str
    champion: bool
    """Whether it is the one that `models:/NAME@champion` loads."""


def register_best(
    uri: str, models: Mapping[str, str], methods: Sequence[str], name: str, metric: str
) -> tuple[str, Registered]:
    """Register the first of `methods` that has weights as a version of `name`, once, and say which it was.

    models: the ids of the run's LoggedModels by digest. The alias `champion` goes to the version with the best `metric`. Raises
    InputError where the store cannot be used, no method has weights, or they are not those that were scored.
    """
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    mlflow.set_tracking_uri(uri)  # MLflow looks for what models:/ID means in the process's store, not in the client's
    try:
        found = [client.get_logged_model(model_id) for model_id in models.values()]
        with_weights = {model.name: model for model in found if WEIGHTS in model.tags}
        method = next((method for method in methods if method in with_weights), "")
        if not method:
            raise InputError(f"{', '.join(methods)}: no weights of it are recorded; a training-free mode needs no registry")
        model = with_weights[method]
        check_weights(Path(model.tags[WEIGHTS]), model.tags[DIGEST], f"the LoggedModel {model.model_id}")
        made = _version_of(client, name, model.model_id) or _new_version(client, model, name)
        best = max(_versions(client, name), key=lambda one: (_score(client, one, metric), int(one.version)))
        client.set_registered_model_alias(name, CHAMPION, best.version)
    except MlflowException as error:
        raise InputError(masked(f"{name}: MLflow does not register it in {uri} ({reason_of(error)})")) from None
    return method, Registered(name=name, version=str(made.version), champion=str(best.version) == str(made.version))


def located(model_uri: str, uri: str) -> Path:
    """The weights that models:/NAME@ALIAS, models:/NAME/VERSION or models:/ID stands for in a store.

    Raises InputError where there is no such model, or its weights are not there as they were registered.
    """
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    try:
        model = client.get_logged_model(_model_id(client, model_uri))
        weights, digest = model.tags[WEIGHTS], model.tags[DIGEST]
    except MlflowException as error:
        raise InputError(
            masked(f"{model_uri}: {reason_of(error)}; looked for in {uri} (MLFLOW_TRACKING_URI names another store)")
        ) from None
    except KeyError:
        raise InputError(f"{model_uri}: is no checkpoint that train recorded; register one with `register`") from None
    check_weights(Path(weights), digest, model_uri)
    return Path(weights)


def check_weights(weights: Path, digest: str, what: str) -> None:
    """Raise InputError where weights are not there, or are others than `digest` (SHA-256) says."""
    if not weights.is_file():
        raise InputError(f"{what}: its weights are not at {weights} any more; put them back, or register where they lie now")
    if digest_of_file(weights) != digest:
        raise InputError(f"{what}: {weights} holds other weights than were registered (another SHA-256); register it anew")


def _model_id(client: MlflowClient, model_uri: str) -> str:
    name = model_uri.removeprefix(PREFIX)
    if "@" in name:
        found = client.get_model_version_by_alias(*name.split("@", 1))
    elif "/" in name:
        found = client.get_model_version(*name.split("/", 1))
    else:
        return name
    return str(found.model_id or found.source.removeprefix(PREFIX))


def _versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    return [*client.search_model_versions(f"name = '{name}'")]


def _version_of(client: MlflowClient, name: str, model_id: str) -> ModelVersion | None:
    try:
        client.get_registered_model(name)
    except MlflowException:
        client.create_registered_model(name, description="Open-world segmentation: photos and labels in, masks out.")
    return next((one for one in _versions(client, name) if one.source == f"{PREFIX}{model_id}"), None)


def _new_version(client: MlflowClient, model: LoggedModel, name: str) -> ModelVersion:
    requirements = []
    for package in SERVED:
        try:
            requirements.append(f"{package}=={version(package)}")
        except PackageNotFoundError:
            continue
    inputs = [
        ColSpec(DataType.binary, "image"),
        ColSpec(Array(DataType.string), "labels"),
        ColSpec(DataType.boolean, "background", required=False),
    ]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*An input example was not provided")  # it would be a photo of ours
        path = Path(folder) / "model"
        mlflow.pyfunc.save_model(
            path,
            python_model=str(Path(__file__).with_name("served_model.py")),
            model_config={WEIGHTS: model.tags[WEIGHTS], DIGEST: model.tags[DIGEST]},
            signature=ModelSignature(inputs=Schema(inputs)),
            pip_requirements=requirements,
        )
        client.log_model_artifacts(model.model_id, str(path))
    return client.create_model_version(
        name,
        f"{PREFIX}{model.model_id}",
        run_id=model.source_run_id,
        tags={DIGEST: model.tags[DIGEST]},
        model_id=model.model_id,
    )


def _score(client: MlflowClient, one: ModelVersion, metric: str) -> float:
    """The last value of a metric of a version's model; below all others where it has none."""
    found = client.get_logged_model(str(one.model_id or one.source.removeprefix(PREFIX)))
    values = [(point.timestamp, point.value) for point in found.metrics or [] if point.key == metric]
    return max(values)[1] if values else float("-inf")
