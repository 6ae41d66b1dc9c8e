"""The classes that a run evaluates, for what is told of them beside the scores: leakage, and a vocabulary without them."""

from pathlib import Path

from filtering import InputError as FilteringInputError
from filtering.captions.corpus import Benchmarks, FilterConfig, corpus_fingerprint
from filtering.link_set import forgotten_in
from miniature.benchmarks import CLASSES, SUBSETS
from owseg import InputError
from owseg.evaluation.class_names import Classes, scored_classes
from pipelines.app.settings import Config

MINIATURE = CLASSES | SUBSETS
"""The class names of the miniature world's benchmarks."""
BACKGROUND = "background"


def evaluated_classes(config: Config) -> tuple[Benchmarks, dict[str, str]]:
    """Per benchmark of the run its classes, each as its spellings; and why some of its benchmarks are missing there.

    The miniature world's have lists of their own. A machine that only filters may lack the lists of an evaluation.
    """
    evaluate = config.evaluate
    found: dict[str, Classes] = {}
    missing: dict[str, str] = {}
    for name in evaluate.names:
        if not evaluate.root and name not in evaluate.own:
            found[name] = tuple((word,) for word in MINIATURE[name] if word != BACKGROUND) if name in MINIATURE else ()
            continue
        try:
            found[name] = scored_classes(evaluate, name)
        except InputError as error:
            missing[name] = str(error)
    return {name: classes for name, classes in found.items() if classes}, missing


def excluded_classes(config: Config) -> Benchmarks:
    """The classes that the vocabulary leaves out; none where it leaves none out. Raises InputError where they are not known."""
    if not config.filter.exclude_benchmark_classes:
        return {}
    evaluate = config.evaluate
    if config.filter.source.path and not evaluate.root and len(evaluate.own) < len(evaluate.datasets):
        raise FilteringInputError(
            "filter.exclude_benchmark_classes: the run's benchmarks are the miniature world's, as evaluate.root is empty; set "
            "it to the folder of the real ones, which need not be there yet"
        )
    classes, missing = evaluated_classes(config)
    for name, reason in missing.items():
        raise FilteringInputError(f"filter.exclude_benchmark_classes: the classes of {name} are not known: {reason}")
    return classes


def fingerprint_of(config: Config, settings: FilterConfig) -> str:
    """The fingerprint of the run's corpus; `settings` are the filter's with its source."""
    return corpus_fingerprint(settings, excluded_classes(config), forgotten_in(Path(config.run_dir)))
