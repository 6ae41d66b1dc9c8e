"""What a corpus is like, shard by shard: histograms, tallies and random samples of rows that merge exactly, in any order.

Whatever the number of rows and hosts, the statistics of a shard stay small: a few hundred kB. Sums are exact. What cannot be
summed in bounded space (samples, hosts) is estimated from the links with the smallest keys: keys are hashes, so these are a
random sample, they are the same ones however the corpus is cut, and the smallest of all are among the smallest of each part.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from filtering.captions.rules import EmailAddress, PhoneNumber
from filtering.schema import CORPUS, DROPPED, SAMPLE
from filtering.url import hosts_of

SAMPLES = 10
"""Rows shown of the kept ones and of those that each rule dropped."""
HOST_SAMPLE = 4096
"""Links sampled for the hosts: a share of 5 % of all links is right to within 0.7 points, 95 times of 100."""
MOST_WORDS = 100
MOST_ENTITIES = 20
LONGEST_TEXT = 1000
"""Characters of a URL, caption or sample that a report repeats."""
LONGEST_HOST = 80
PERSONAL = frozenset({EmailAddress.name, PhoneNumber.name})
"""Rules whose dropped captions a report shows without what made them refuse: it would spread what they keep out."""

_PERSONAL_PARTS = re.compile(r"\S+(?=\s?@)|(?<=@)\s?\S+|\d")


Statistics = dict[str, Any]
"""JSON:

    rows                  {"kept": n, "dropped": {reason: n}}
    words                 {"before": histogram of all rows, "after": of kept ones}; entry i counts the captions of i words
                          (parts between white space), the last entry those of `MOST_WORDS` and more
    entities_per_caption  histogram of kept rows, the last entry for `MOST_ENTITIES` and more
    entities              {entity: kept rows that mention it}
    samples               {"kept": rows, "dropped": {reason: rows}}: those with the `SAMPLES` smallest keys
    hosts                 the links with the `HOST_SAMPLE` smallest keys, as "key host" with " kept" behind if they were
"""


def describe_shard(kept: pa.Table, dropped: pa.Table) -> Statistics:
    """The statistics of a shard's kept rows (schema `CORPUS`) and dropped rows (`DROPPED`)."""
    words = {"before": _words(pa.chunked_array([*kept["caption"].chunks, *dropped["caption"].chunks], pa.string()))}
    words["after"] = _words(kept["caption"])
    lengths = pc.fill_null(pc.list_value_length(kept["entities"]), 0).to_numpy()
    counts = {row["values"]: row["counts"] for row in pc.value_counts(pc.list_flatten(kept["entities"])).to_pylist()}
    reasons = {row["values"]: row["counts"] for row in pc.value_counts(dropped["drop_reason"]).to_pylist()}
    return {
        "rows": {"kept": kept.num_rows, "dropped": dict(sorted(reasons.items()))},
        "words": words,
        "entities_per_caption": _histogram(lengths, MOST_ENTITIES),
        "entities": dict(sorted(counts.items())),
        "samples": {
            "kept": _samples(kept),
            "dropped": {reason: _dropped_samples(dropped, reason) for reason in sorted(reasons)},
        },
        "hosts": _hosts(kept, dropped),
    }


def merge(parts: Iterable[Statistics]) -> Statistics:
    """The statistics of all parts together: what `describe_shard` would say of all their rows at once."""
    total = describe_shard(CORPUS.empty_table(), DROPPED.empty_table())
    for part in parts:
        rows, words, samples = total["rows"], total["words"], total["samples"]
        reasons = sorted({*samples["dropped"], *part["samples"]["dropped"]})
        total = {
            "rows": {
                "kept": rows["kept"] + part["rows"]["kept"],
                "dropped": _add_counts(rows["dropped"], part["rows"]["dropped"]),
            },
            "words": {when: _add(words[when], part["words"][when]) for when in ("before", "after")},
            "entities_per_caption": _add(total["entities_per_caption"], part["entities_per_caption"]),
            "entities": _add_counts(total["entities"], part["entities"]),
            "samples": {
                "kept": _lowest_of(samples["kept"], part["samples"]["kept"]),
                "dropped": {
                    reason: _lowest_of(samples["dropped"].get(reason, []), part["samples"]["dropped"].get(reason, []))
                    for reason in reasons
                },
            },
            "hosts": _merge_hosts(total["hosts"], part["hosts"]),
        }
    return total


def _add(one: Sequence[int], other: Sequence[int]) -> list[int]:
    return [a + b for a, b in zip(one, other, strict=True)]


def _add_counts(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in sorted({*one, *other})}


# ---- sums


def _words(captions: pa.ChunkedArray) -> list[int]:
    """How many captions have 0, 1, 2, ... words. They are clean: single spaces part the words."""
    words = pc.add(pc.count_substring(captions, " "), pc.min_element_wise(pc.utf8_length(captions), 1))
    return _histogram(words.to_numpy(), MOST_WORDS)


def _histogram(values: npt.NDArray[np.int32], most: int) -> list[int]:
    return [int(count) for count in np.bincount(np.minimum(values, most), minlength=most + 1)]


# ---- sampled rows


def _lowest(table: pa.Table, count: int) -> pa.Table:
    """The rows with the `count` smallest distinct keys, one of each, by rising key."""
    numbered = pa.table({"key": table["key"], "row": np.arange(table.num_rows)})
    first = numbered.group_by("key").aggregate([("row", "min")]).sort_by("key")
    return table.take(first["row_min"].slice(0, count))


def _samples(table: pa.Table) -> list[dict[str, Any]]:
    shown = [name for name in (*CORPUS.names, SAMPLE.name) if name in table.column_names]
    rows = _lowest(table.select(shown), SAMPLES).to_pylist()
    return [{name: _shortened(value) for name, value in row.items()} for row in rows]


def _dropped_samples(dropped: pa.Table, reason: str) -> list[dict[str, Any]]:
    samples = _samples(dropped.filter(pc.equal(dropped["drop_reason"], reason)))
    if reason in PERSONAL:
        samples = [{**row, "caption": _PERSONAL_PARTS.sub("•", row["caption"])} for row in samples]
    return samples


def _shortened(value: Any) -> Any:
    """A text up to `LONGEST_TEXT`, a list up to `MOST_ENTITIES` of its names."""
    if isinstance(value, list):
        return value[:MOST_ENTITIES]
    text = value or ""
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"


def _lowest_of(one: Iterable[dict[str, Any]], other: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = {row["key"]: row for row in sorted([*one, *other], key=_as_text, reverse=True)}
    return sorted(rows.values(), key=lambda row: str(row["key"]))[:SAMPLES]


def _as_text(row: dict[str, Any]) -> str:
    return repr(sorted(row.items()))


def _hosts(kept: pa.Table, dropped: pa.Table) -> list[str]:
    samples = []
    for table, mark in ((kept, " kept"), (dropped, "")):
        drawn = _lowest(table.select(["key", "url"]), HOST_SAMPLE)
        hosts = pc.utf8_slice_codeunits(hosts_of(drawn["url"]), 0, LONGEST_HOST)
        names = zip(drawn["key"].to_pylist(), hosts.to_pylist(), strict=True)
        samples.append([f"{key} {host}{mark}" for key, host in names])
    return _merge_hosts(*samples)


def _merge_hosts(one: Iterable[str], other: Iterable[str]) -> list[str]:
    """The links with the smallest keys of both; a link of which one copy was kept and others dropped counts as kept."""
    links = {line.split(" ", 1)[0]: line for line in sorted([*one, *other])}  # " kept" sorts behind its absence
    return [links[key] for key in sorted(links)[:HOST_SAMPLE]]
