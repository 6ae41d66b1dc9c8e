"""What a run's settings come to: absolute paths, the methods that are trained, how training is spread."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard, cast

from cluster.train_config import TrainConfig
from owseg import InputError
from owseg.checkpoint import located
from owseg.encoders import PRETRAIN, EncoderConfig
from owseg.fit import WEIGHTS
from owseg.frozen_tower import TowerSettings
from owseg.method_config import MethodConfig, TrainableConfig
from owseg.phases import batch_sizes
from pipelines.app.cli import CONFIGS
from pipelines.app.run_state import STAGES, wanted_stages
from pipelines.app.settings import Config


def resolve_encoder_paths(config: Config) -> EncoderConfig:
    """The run's encoder with absolute paths: Ray's workers have another working directory.

    A model file that is not found from here is looked for beside the shipped configs, which name theirs as configs/FILE.
    """
    encoder = config.encoder
    if encoder.model.endswith(".json"):
        here, shipped = Path(encoder.model), CONFIGS.parent / encoder.model
        encoder = replace(encoder, model=str((here if here.exists() or not shipped.exists() else shipped).resolve()))
    if Path(encoder.pretrained).is_file():
        encoder = replace(encoder, pretrained=str(Path(encoder.pretrained).resolve()))
    return encoder


def model_of(config: Config, name: str) -> MethodConfig:
    """A method's settings, with the tower that the run trains where they ask for it: its model, sizes, and the weights' file.

    Raises InputError where they name another model or other sizes than the run trains.
    """
    model: MethodConfig = getattr(config.method_settings, name)
    if not asks_for_tower(model):
        return model
    dino, kind = config.method_settings.dino, cast(Any, type(model))
    usual = kind()
    for key in ("image_tower", "image_size"):
        if getattr(model, key) not in (getattr(usual, key), getattr(dino, key)):
            raise InputError(
                f"method_settings.{name}.{key}: with image_weights=pretrain it is method_settings.dino's; leave it out here"
            )
    file = Path(config.run_dir).absolute() / "train" / dino.name / dino.tower.file
    return model.with_tower(dino.image_tower, dino.image_size, file)


def asks_for_tower(model: MethodConfig) -> TypeGuard[TowerSettings]:
    """Whether a method asks for an image tower that the run trains first."""
    return isinstance(model, TowerSettings) and model.tower_of_run


def located_model(config: Config, name: str) -> MethodConfig:
    """The settings of a row of the table, with absolute paths for the same reason."""
    return located(model_of(config, name), Path())


def needs_clip(config: Config) -> bool:
    """Whether any method of the run uses its CLIP."""
    return any(getattr(config.method_settings, name).uses_clip for name in config.methods)


def methods_to_train(config: Config) -> list[TrainableConfig]:
    """What the run trains: towers first where asked for and needed, then the methods that are not given weights.

    Raises InputError as `model_of` does.
    """
    methods, first = config.method_settings, list[TrainableConfig]()
    if config.encoder.pretrained == PRETRAIN and needs_clip(config):
        first.append(methods.clip)
    if any(asks_for_tower(getattr(methods, name)) for name in config.methods):
        first.append(methods.dino)
    chosen = [model_of(config, name) for name in config.methods if name not in config.weights]
    return [*first, *(model for model in chosen if isinstance(model, TrainableConfig))]


def spread_training(config: Config, method: TrainableConfig) -> TrainConfig:
    """How a method's training is spread on this machine, in numbers."""
    cores = config.session.num_cpus or len(os.sched_getaffinity(0))
    return config.train.spread(batch_sizes(method.phases, method.optim), cores)


def given_weights(config: Config) -> dict[str, Path]:
    """The trained weights that the settings give, by method, with absolute paths; of a checkpoint's folder the file in it."""
    return _files_of_weights(config.weights)


def starting_weights(config: Config) -> dict[str, Path]:
    """The weights that trainings begin with, likewise."""
    return _files_of_weights(config.init)


def _files_of_weights(given: Mapping[str, str]) -> dict[str, Path]:
    return {name: _file_of_weights(Path(path).expanduser().resolve(), name) for name, path in given.items()}


def _file_of_weights(path: Path, method: str) -> Path:
    """A file itself, the one in a trained folder, or that of the method in a run's folder."""
    in_run = path / "train" / method / WEIGHTS
    if in_run.is_file() and not (path / WEIGHTS).is_file():
        return in_run
    return path / WEIGHTS if path.is_dir() else path


def reads_features(config: Config, method: TrainableConfig) -> bool:
    """Whether a method's training reads features in the place of pixels."""
    return config.train.features != "none" and method.reads_features


def features_folder(run_dir: Path, method: str) -> Path:
    """Where the features that a method's training reads lie in a run's folder."""
    return run_dir / "features" / method


def planned_stages(config: Config) -> tuple[str, ...]:
    """The stages of the whole chain with these settings, in order."""
    reads = any(reads_features(config, method) for method in methods_to_train(config))
    stages = [stage for stage in STAGES if reads or stage != "features"]
    return wanted_stages(stages, own_shards=bool(config.train.shards))
