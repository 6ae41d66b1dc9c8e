"""A small generated world, and what is read of it."""

import csv
import re
from pathlib import Path

from miniature.captions import words_to_ids
from miniature.world import WorldConfig

SMALL = WorldConfig(links=240, size=64, benchmark_images=12, tuning_images=10, faults=0.3)


def rows_of(root: Path) -> list[dict[str, str]]:
    with (root / "links.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def mentioned_in(text: str) -> set[int]:
    """The concepts that a reader finds in a caption: whole words, the longest first."""
    ids = words_to_ids()
    words = sorted(ids, key=len, reverse=True)
    return {ids[match.lower()] for match in re.findall(rf"(?i)\b(?:{'|'.join(map(re.escape, words))})\b", text)}
