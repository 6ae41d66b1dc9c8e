"""The classes of the eight benchmarks under all their names, for what must know them without evaluating anything."""

from dataclasses import replace

from owseg.evaluation.datasets import BENCHMARKS
from owseg.evaluation.protocols import EvaluateConfig, protocol_of


def class_names() -> dict[str, tuple[tuple[str, ...], ...]]:
    """Per benchmark its classes in label order, each as its spellings: mmsegmentation's name, then SCLIP's names and synonyms.

    "background" is no class.
    """
    return {name: _spellings(name) for name in BENCHMARKS}


def _spellings(name: str) -> tuple[tuple[str, ...], ...]:
    benchmark = BENCHMARKS[name]
    classes = [dict.fromkeys([label]) for label in benchmark.names]  # a dict keeps each spelling once, in order
    protocol = protocol_of(replace(EvaluateConfig(), preset="sclip"), name)
    for query, label in zip(protocol.queries, protocol.class_of_query, strict=True):
        classes[label][query.strip()] = None
    return tuple(tuple(spellings) for spellings in classes[1 if benchmark.background else 0 :])
