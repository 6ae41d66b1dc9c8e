"""What tells two corpora apart: counts, rules, settings, entities, and which captions only one of them keeps, and why."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from filtering import InputError
from filtering.reports.corpus_page import flat_settings
from filtering.schema import KEY_LENGTH
from storage.copies import fetched, pulled
from storage.understood import shaped, understood

MOST_ENTITIES = 20
"""Entities told of in each list."""
NOT_THERE = "not_in_source"
"""The reason of captions that the other corpus neither keeps nor drops."""

_REPORT = {
    "links": int,
    "kept": int,
    "dropped": {str: int},
    "digest": str,
    "settings": {str: object},
    "list": {str: object},
    "top_entities": [{"entity": str, "in_corpus": int}],
}
"""Of the report, what is compared."""

Keys = npt.NDArray[np.bytes_]


def difference(one: Path, other: Path) -> dict[str, Any]:
    """Compare two corpora (folders that the filter wrote). Takes some 25 bytes of memory for each kept caption.

    Returns:
        {"same": whether their digests are equal, "links", "kept": [one's, other's], "dropped": {reason: [one's, other's]},
        "settings": {key: [one's, other's]} of those that differ, "entities": {"only_one", "only_other": names with counts,
        "changed": those of both lists, by how much their captions in the corpus changed}, "captions": {"both": kept by both,
        "only_one", "only_other": kept by one, {reason: captions} by what the other dropped them for}}. Captions are told apart
        by their keys: URL and caption.

    Raises InputError where a folder holds no finished corpus.
    """
    reports = [_report(folder) for folder in (one, other)]
    first, second = reports
    reasons = dict.fromkeys([*first["dropped"], *second["dropped"]])
    same = first["digest"] == second["digest"]
    return {
        "same": same,
        "links": [report["links"] for report in reports],
        "kept": [report["kept"] for report in reports],
        "dropped": {reason: [report["dropped"].get(reason, 0) for report in reports] for reason in reasons},
        "settings": _settings(*(flat_settings(report) for report in reports)),
        "entities": _entities(*({row["entity"]: row["in_corpus"] for row in report["top_entities"]} for report in reports)),
        "captions": _all_shared(first["kept"]) if same else _captions(one, other),
    }


def _report(corpus: Path) -> dict[str, Any]:
    try:
        content = fetched(corpus / "report.json").read_bytes()
    except OSError:
        raise InputError(f"{corpus}: there is no finished corpus (report.json); run filter.py first") from None
    with understood(corpus / "report.json", "run filter.py again"):
        report: dict[str, Any] = shaped(json.loads(content), _REPORT)
    return report


def _settings(first: Mapping[str, object], second: Mapping[str, object]) -> dict[str, list[object]]:
    return {
        key: [first.get(key), second.get(key)] for key in dict.fromkeys([*first, *second]) if first.get(key) != second.get(key)
    }


def _entities(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, list[dict[str, Any]]]:
    def most(names: Iterator[str], counts: Mapping[str, int]) -> list[dict[str, Any]]:
        ordered = sorted(names, key=lambda name: (-counts[name], name))
        return [{"entity": name, "captions": counts[name]} for name in ordered[:MOST_ENTITIES]]

    changed: list[dict[str, Any]] = [
        {"entity": name, "captions": [first[name], second[name]]}
        for name in first
        if second.get(name, first[name]) != first[name]
    ]
    changed.sort(key=lambda row: (-abs(second[row["entity"]] - first[row["entity"]]), row["entity"]))
    return {
        "only_one": most((name for name in first if name not in second), first),
        "only_other": most((name for name in second if name not in first), second),
        "changed": changed[:MOST_ENTITIES],
    }


def _all_shared(kept: int) -> dict[str, Any]:
    return {"both": kept, "only_one": {}, "only_other": {}}


def _captions(one: Path, other: Path) -> dict[str, Any]:
    first, second = (_kept(corpus) for corpus in (one, other))
    return {
        "both": len(np.intersect1d(first, second, assume_unique=True)),
        "only_one": _why(np.setdiff1d(first, second, assume_unique=True), other),
        "only_other": _why(np.setdiff1d(second, first, assume_unique=True), one),
    }


def _kept(corpus: Path) -> Keys:
    """The keys of a corpus, sorted."""
    tables = [table["key"] for table in _tables(corpus / "kept", ["key"])]
    return np.unique(np.concatenate([np.zeros(0, f"S{KEY_LENGTH}"), *(_keys(column) for column in tables)]))


def _why(keys: Keys, corpus: Path) -> dict[str, int]:
    """For what reasons a corpus does not keep these (sorted): {reason: captions}, the most frequent first."""
    found: Counter[str] = Counter()
    for table in _tables(corpus / "dropped", ["key", "drop_reason"]):
        dropped, first = np.unique(_keys(table["key"]), return_index=True)  # a repeated row has the key of the one before
        there = np.isin(dropped, keys, assume_unique=True)
        found.update(table["drop_reason"].take(first[there]).to_pylist())
    if missing := len(keys) - found.total():
        found[NOT_THERE] = missing
    return dict(found.most_common())


def _keys(column: Any) -> Keys:
    return np.asarray(column.to_pylist(), f"S{KEY_LENGTH}")


def _tables(folder: Path, columns: list[str]) -> Iterator[Any]:
    for file in sorted(pulled(folder).glob("*.parquet")):
        with understood(file, "run filter.py again", also=(OSError, pa.ArrowException)):
            table = pq.read_table(file, columns=columns).cast(pa.schema([(name, pa.string()) for name in columns]))
        yield table
