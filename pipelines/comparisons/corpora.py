"""What runs learned from: the corpora of two of them beside each other."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from filtering.reports.corpus_difference import difference
from pipelines.comparisons.runs import FinishedRun
from storage.copies import names_in
from storage.understood import Noted


class Corpora(NamedTuple):
    """How the corpus of a run differs from the first run's."""

    run: int
    """Number of the run."""
    found: dict[str, Any]
    """As `filtering.reports.corpus_difference.difference`."""


def differences(runs: Sequence[FinishedRun]) -> list[Corpora]:
    """Of each run but the first; runs without a corpus of their own are left out."""
    return list(_differences(runs)) if _has_corpus(runs[0]) else []


def _differences(runs: Sequence[FinishedRun]) -> Iterator[Corpora]:
    for number, run in enumerate(runs[1:], start=1):
        if _has_corpus(run):
            with Noted(run.folder / "corpus", run.notes, also=(OSError, pa.ArrowException)):
                yield Corpora(number, difference(runs[0].folder / "corpus", run.folder / "corpus"))


def _has_corpus(run: FinishedRun) -> bool:
    return "report.json" in names_in(run.folder / "corpus")
