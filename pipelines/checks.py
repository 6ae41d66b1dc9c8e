"""What can be told wrong with a run's inputs at once, before hours of work lead up to it."""

from dataclasses import replace
from pathlib import Path

from owseg.encoders import PRETRAIN, EncoderConfig, load_encoder, model_config, weight_tag
from owseg.evaluation.datasets import list_items
from owseg.evaluation.run import benchmark_of
from pipelines.settings import Config


def located_encoder(config: Config) -> EncoderConfig:
    """The run's encoder with absolute paths: Ray's workers have another working directory.

    A model file that is not found from here is looked for in this clone, where the shipped configs name theirs.
    """
    encoder = config.encoder
    if encoder.model.endswith(".json"):
        here, shipped = Path(encoder.model), Path(__file__).parents[1] / encoder.model
        encoder = replace(encoder, model=str((here if here.exists() or not shipped.exists() else shipped).resolve()))
    if Path(encoder.pretrained).exists():
        encoder = replace(encoder, pretrained=str(Path(encoder.pretrained).resolve()))
    return encoder


def check_encoder(config: Config) -> None:
    """Raise InputError where the encoder's architecture is unknown, or its weights are missing or do not fit."""
    encoder = located_encoder(config)
    weights = Path(encoder.pretrained)
    if encoder.pretrained == PRETRAIN:
        model_config(encoder.model)
    elif weights.suffix or weights.exists():
        load_encoder(encoder)
    else:
        weight_tag(encoder)


def check_benchmarks(config: Config) -> None:
    """Raise InputError where a file of a benchmark is missing."""
    if config.evaluate.root:
        for name in config.evaluate.datasets:
            list_items(benchmark_of(name, config.evaluate), Path(config.evaluate.root))
