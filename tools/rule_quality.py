"""How often each caption rule is right: of what it drops, and of what it should drop.

    python tools/rule_quality.py [--captions FILE [FILE ...]]

The labelled captions are `tests/data/labelled_drops.tsv`; what deserves to be dropped is written at its head. A caption counts
for the first rule that drops it, as in the filter. `too_short` and `too_long` are what their limits say and are not judged,
nor are rules about links. With `--captions` (tables of links as `filter.source.path` takes them) it also prints how many of
their captions each rule drops.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from tagging_quality import captions_of, interval

from filtering.captions.caption_counts import with_counts
from filtering.captions.rules import DEFAULT_RULES, RuleConfig
from filtering.shards import mark

LABELS = Path(__file__).resolve().parents[1] / "tests" / "data" / "labelled_drops.tsv"
KEEP = "keep"
ABOUT_LINKS = frozenset({"bad_url", "duplicate_link", "duplicate_caption"})
RULES: tuple[RuleConfig, ...] = tuple(rule for rule in DEFAULT_RULES if rule.name not in ABOUT_LINKS)


@dataclass(frozen=True)
class Verdict:
    """A caption, and the rule that should drop it, or `KEEP`."""

    source: str
    rule: str
    caption: str


@dataclass(frozen=True)
class Quality:
    """How a rule did."""

    dropped: int
    """Captions that it dropped."""
    deserved: int
    """Those among them that some rule should drop."""
    due: int
    """Captions that it should drop."""
    caught: int
    """Those among them that it, or another rule, did drop."""


def read_verdicts(path: Path = LABELS) -> list[Verdict]:
    """The labelled captions."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Verdict(*line.split("\t")) for line in lines if not line.startswith("#")]


def reasons(captions: Sequence[str]) -> list[str | None]:
    """The first rule that drops each caption."""
    table = pa.table({"key": captions, "url": captions, "caption": captions})
    found: list[str | None] = mark(with_counts(table), RULES)["drop_reason"].to_pylist()
    return found


def qualities(verdicts: Sequence[Verdict]) -> dict[str, Quality]:
    """How each rule did."""
    found = reasons([verdict.caption for verdict in verdicts])
    pairs = [(verdict.rule, reason) for verdict, reason in zip(verdicts, found, strict=True)]
    return {
        rule.name: Quality(
            dropped=sum(reason == rule.name for _, reason in pairs),
            deserved=sum(reason == rule.name and due != KEEP for due, reason in pairs),
            due=sum(due == rule.name for due, _ in pairs),
            caught=sum(due == rule.name and reason is not None for due, reason in pairs),
        )
        for rule in RULES
    }


def print_qualities(verdicts: Sequence[Verdict]) -> None:
    """A line for each rule that has a label."""
    for name, quality in qualities(verdicts).items():
        if quality.due:
            right, caught = (
                f"{part} of {whole} ({part / max(whole, 1):.0%}, {interval(part, whole)})"
                for part, whole in ((quality.deserved, quality.dropped), (quality.caught, quality.due))
            )
            print(f"  {name:14} deserved it: {right}; of those that deserve it, dropped: {caught}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", nargs="+", default=[], help="tables of links whose captions are counted by rule")
    args = parser.parse_args()
    verdicts = read_verdicts()
    print(f"{len(verdicts)} labelled captions (95 % intervals):")
    print_qualities(verdicts)
    people = [verdict for verdict in verdicts if verdict.source == "written" and verdict.rule == KEEP]
    dropped = sum(reason is not None for reason in reasons([verdict.caption for verdict in people]))
    print(f"people's sentences: {dropped} of {len(people)} dropped")
    for path in args.captions:
        captions = captions_of(path)
        counts = Counter(filter(None, reasons(captions)))
        print(f"{path}: {len(captions)} captions;", ", ".join(f"{name} {count}" for name, count in counts.most_common()))


if __name__ == "__main__":
    main()
