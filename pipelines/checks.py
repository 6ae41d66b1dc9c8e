"""What can be told wrong with a run's inputs at once, before hours of work lead up to it."""

from pathlib import Path

from owseg.encoders import PRETRAIN, load_encoder, model_config, weight_tag
from owseg.evaluation.datasets import list_items
from owseg.evaluation.run import benchmark_of
from pipelines.settings import Config


def check_encoder(config: Config) -> None:
    """Raise InputError where the encoder's architecture is unknown, or its weights are missing or do not fit."""
    encoder = config.encoder
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
