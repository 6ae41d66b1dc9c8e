"""What can be found wrong with a run's inputs at once, before hours of work lead up to it."""

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from cluster.train import TrainConfig
from miniature.benchmarks import CLASSES, SUBSETS
from owseg import InputError
from owseg.checkpoint import MODEL, located, read_model
from owseg.data import check_batch_size
from owseg.encoders import PRETRAIN, EncoderConfig, build_encoder, load_encoder, weight_tag
from owseg.evaluation.datasets import list_items
from owseg.evaluation.protocols import check_synonyms, protocol_of
from owseg.fit import WEIGHTS, phase_groups
from owseg.method_config import MethodConfig, TrainableConfig
from owseg.phases import augmentations, scheduled_phases
from owseg.published import load_start, load_trained
from owseg.segmenter import build_trained
from pipelines.app.cli import CONFIGS
from pipelines.app.settings import Config

MINIATURE = CLASSES | SUBSETS
"""The class names of the miniature world's benchmarks."""


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


def located_model(config: Config, name: str) -> MethodConfig:
    """The settings of a row of the table, with absolute paths for the same reason."""
    model: MethodConfig = getattr(config.method_settings, name)
    return located(model, Path())


def needs_clip(config: Config) -> bool:
    """Whether any method of the run uses its CLIP."""
    return any(getattr(config.method_settings, name).uses_clip for name in config.methods)


def check_encoder(config: Config) -> None:
    """Raise InputError where the encoder's architecture is unknown, or its weights are missing or do not fit.

    Nothing is asked of an encoder that no method of the run uses.
    """
    if not needs_clip(config):
        return
    encoder = resolve_encoder_paths(config)
    weights = Path(encoder.pretrained)
    if encoder.pretrained != PRETRAIN and (weights.suffix or weights.is_file()):
        load_encoder(encoder)
        return
    if encoder.pretrained != PRETRAIN:
        weight_tag(encoder)
    with torch.device("meta"):  # the architecture alone, at no cost
        build_encoder(encoder)


def methods_to_train(config: Config) -> list[TrainableConfig]:
    """What the run trains: the encoder first where asked for and needed, then the methods that are not given weights."""
    chosen = [getattr(config.method_settings, name) for name in config.methods if name not in config.weights]
    pretrains = config.encoder.pretrained == PRETRAIN and needs_clip(config)
    first: list[TrainableConfig] = [config.method_settings.clip] if pretrains else []
    return [*first, *(model for model in chosen if isinstance(model, TrainableConfig))]


def check_crops(config: Config, method: TrainableConfig) -> None:
    """Raise InputError where training crops are larger than the images that the run downloads can be."""
    image = config.download.image
    for key, augment in augmentations(method.phases, method.augment):
        if image.resize_mode != "no" and augment.size > image.image_size:
            raise InputError(
                f"method_settings.{method.name}.{key}.size: crops of {augment.size} pixels are larger than the shards' images "
                f"(download.image.image_size is {image.image_size})"
            )


def check_methods(config: Config) -> None:
    """Raise InputError where a method that is still to be trained cannot be.

    Its batches must divide over the workers, its phases name what it has, and the weights that it begins with be there and
    fit. Those named by a tag are downloaded here, once, before the workers ask for them.
    """
    make_encoder = cache(lambda: build_encoder(resolve_encoder_paths(config)))
    for model in methods_to_train(config):
        if (Path(config.run_dir) / "train" / model.name / WEIGHTS).is_file():
            continue
        check_crops(config, model)
        for _, _, _, schedule in scheduled_phases(model.phases, model.optim):
            size, key = schedule.optim.batch_size, f"method_settings.{model.name}.{schedule.key}.batch_size"
            check_batch_size(size, samples=size, workers=spread_training(config, model).workers, key=key)
        method = build_trained(located(model, Path()), make_encoder)
        try:
            phase_groups(method, model.phases, model.optim)
        except InputError as error:
            raise InputError(f"method_settings.{model.name}.{error}") from error
        method.initialise()


def spread_training(config: Config, method: TrainableConfig) -> TrainConfig:
    """How a method's training is spread on this machine, in numbers."""
    cores = config.session.num_cpus or len(os.sched_getaffinity(0))
    return config.train.spread(
        [scheduled.schedule.optim.batch_size for scheduled in scheduled_phases(method.phases, method.optim)], cores
    )


def given_weights(config: Config) -> dict[str, Path]:
    """The trained weights that the settings give, by method, with absolute paths; of a checkpoint's folder the file in it."""
    return _files_of_weights(config.weights)


def starting_weights(config: Config) -> dict[str, Path]:
    """The weights that trainings begin with, likewise."""
    return _files_of_weights(config.init)


def _files_of_weights(given: Mapping[str, str]) -> dict[str, Path]:
    paths = {name: Path(path).expanduser().resolve() for name, path in given.items()}
    return {name: path / WEIGHTS if path.is_dir() else path for name, path in paths.items()}


def check_weights(config: Config) -> None:
    """Raise InputError where given weights are missing, or belong to another architecture or another CLIP than the run's."""
    encoder = resolve_encoder_paths(config)
    for name, path in starting_weights(config).items():
        if not path.is_file():
            raise InputError(f"init.{name}: {path} does not exist")
        load_start(build_trained(getattr(config.method_settings, name), lambda: build_encoder(encoder)), path)
    for name, path in given_weights(config).items():
        if not path.is_file():
            raise InputError(f"weights.{name}: {path} does not exist")
        model = located_model(config, name)
        assert isinstance(model, TrainableConfig)
        load_trained(build_trained(model, lambda: build_encoder(encoder)), model.phases, path)
        if path.with_name(MODEL).is_file() and Path(encoder.pretrained).is_file():
            read_model(path.parent, encoder_weights=encoder.pretrained)


def check_benchmarks(config: Config) -> None:
    """Raise InputError where nothing is to be scored, a file of a benchmark is missing, or synonyms are of unknown classes."""
    if not config.methods:
        raise InputError("methods: there are none to score; name at least one: methods=[maskclip]")
    evaluate = config.evaluate
    own = {name: dataset.dataset() for name, dataset in evaluate.own.items()}
    if evaluate.root or len(own) == len(evaluate.datasets):
        rows = [protocol_of(evaluate, name).benchmark for name in evaluate.names]
    else:  # the world's benchmarks are drawn later, with lists of their own
        for name in evaluate.names:
            if name not in own and name not in MINIATURE:
                raise InputError(f"evaluate.datasets: the miniature world has no {name}; set evaluate.root to its folder")
        check_synonyms(evaluate, MINIATURE | {name: dataset.names for name, dataset in own.items()})
        for dataset in evaluate.own.values():
            dataset.texts()
        rows = list(own.values())
    for row in rows:
        list_items(row, evaluate.folder)
