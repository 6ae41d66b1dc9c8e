"""The classes that benchmarks are scored on, under all their names, for what must know them without evaluating anything."""

from dataclasses import replace

from owseg.evaluation.datasets import DATASETS, EvalDataset
from owseg.evaluation.protocols import EvaluateConfig, Protocol, protocol_of

Classes = tuple[tuple[str, ...], ...]
"""In label order, each as its spellings: the name that tables show first."""


def class_names(config: EvaluateConfig | None = None) -> dict[str, Classes]:
    """Per benchmark that `config` scores (without one, the eight) its scored classes; "background" is none.

    A list of its own or of the config's counts as it stands. Without one the spellings are mmsegmentation's name, then SCLIP's
    names and synonyms, whatever the preset: the class is the same. Raises InputError for a list that cannot be read.
    """
    config = config or EvaluateConfig()
    return {name: scored_classes(config, name) for name in config.names}


def scored_classes(config: EvaluateConfig, name: str) -> Classes:
    """Those of one benchmark."""
    if name in config.own or config.classes:
        protocol = protocol_of(replace(config, synonyms=""), name)
        return _spellings(protocol.benchmark, protocol)
    return _spellings(DATASETS[name], protocol_of(replace(EvaluateConfig(), preset="sclip"), name))


def _spellings(benchmark: EvalDataset, protocol: Protocol) -> Classes:
    classes = [dict.fromkeys([label]) for label in benchmark.names]  # a dict keeps each spelling once, in order
    for query, label in zip(protocol.queries, protocol.class_of_query, strict=True):
        classes[label][query.strip()] = None
    return tuple(tuple(classes[label]) for label in benchmark.scored if label or not benchmark.background)
