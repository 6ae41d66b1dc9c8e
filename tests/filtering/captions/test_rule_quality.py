"""The caption rules against labelled captions: real ones, people's sentences, and what the rules are there for."""

import importlib
from collections.abc import Iterator
from types import ModuleType

import pytest

from helpers.paths import REPO


@pytest.fixture(scope="module")
def quality() -> Iterator[ModuleType]:
    """`tools/rule_quality.py`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPO / "tools"))
        yield importlib.import_module("rule_quality")


def test_nine_of_ten_that_a_rule_drops_deserve_it(quality: ModuleType) -> None:
    verdicts = quality.read_verdicts()
    assert {verdict.rule for verdict in verdicts} <= {quality.KEEP, *(rule.name for rule in quality.RULES)}
    for name, scored in quality.qualities(verdicts).items():
        assert scored.deserved >= 0.9 * scored.dropped, name
        assert scored.caught >= 0.95 * scored.due, name


def test_peoples_sentences_stay(quality: ModuleType) -> None:
    people = [verdict.caption for verdict in quality.read_verdicts() if verdict.source == "written" and verdict.rule == "keep"]
    assert len(people) >= 50
    dropped = [caption for caption, reason in zip(people, quality.reasons(people), strict=True) if reason]
    assert dropped == ["people walking past people walking past people in a station"]


def test_how_it_is_counted(quality: ModuleType) -> None:
    verdicts = [
        quality.Verdict("", "keep", "a man walks a dog"),
        quality.Verdict("", "keep", "see www.dogs.example for dogs"),  # wrongly dropped
        quality.Verdict("", "markup", "dog.jpg on the lawn"),
        quality.Verdict("", "markup", "a dog on the lawn"),  # missed
        quality.Verdict("", "boilerplate", "click here <br> now"),  # dropped, by another rule
    ]
    scored = quality.qualities(verdicts)
    assert scored["markup"] == quality.Quality(dropped=3, deserved=2, due=2, caught=1)
    assert scored["boilerplate"] == quality.Quality(dropped=0, deserved=0, due=1, caught=1)
    assert quality.interval(45, 50) == "79 to 96 %"
