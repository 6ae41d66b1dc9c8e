"""What a corpus build did and why, for people: `report.json`, the page `report.html` and the picture `report.png`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from filtering.captions.corpus import FINDINGS
from filtering.captions.passes import BUILD
from filtering.files import write_json
from filtering.reports import corpus_page as report_page
from filtering.reports import corpus_picture as report_picture

NEXT_IN_LINE = 20
HOSTS = 15
HEAD = 10
CURVE_POINTS = 120

Content = dict[str, Any]
"""What `report.json` holds."""


def write(out: Path, summary: Mapping[str, Any], leakage: Mapping[str, Any], *, source: Sequence[str]) -> Content:
    """Write the report of the corpus in `out`; returns what `report.json` holds.

    The same corpus from files of the same names gives the same bytes: no dates, and no paths of the machine.

    Args:
        out: what `build_corpus` left.
        summary: what it returned.
        leakage: what `find_leakage` finds of it.
        source: the paths or URLs that it was made from; their last parts are told.
    """
    findings = json.loads((out / BUILD / FINDINGS).read_text(encoding="utf-8"))
    content = describe(summary, findings["statistics"], findings["details"], leakage, pq.read_table(out / "entities.parquet"))
    content["source"] = [_last_part(path) for path in source]
    write_json(out / "report.json", content)
    report_picture.draw(out / "report.png", content)
    report_page.write(out / "report.html", content)
    return content


def numbers(content: Content) -> dict[str, float]:
    """The figures of `report.json` that are worth comparing between runs, by name."""
    found = {"kept_share": content["kept"] / max(1, content["links"]), "head_share": content["distributions"]["head"]["after"]}
    found |= {f"matching/{how}": float(rows) for how, rows in content["matching"].items()}
    leakage = content["leakage"]
    for name, row in [("any", leakage["any"]), *leakage["benchmarks"].items()]:
        found[f"leakage/{name}"] = row["share"]
        found[f"leakage_classes/{name}"] = float(row["in_list"])
    return found


def describe(
    summary: Mapping[str, Any],
    statistics: Mapping[str, Any],
    details: Mapping[str, Any],
    leakage: Mapping[str, Any],
    entities: pa.Table,
) -> Content:
    """The report as JSON.

    Args:
        summary: what `build_corpus` returns.
        statistics: the merged `filtering.captions.statistics` of all shards.
        details: "list": {"name": ..., and its settings}; "config": the filter's settings as a dict; "matching": rows by how
            their entities were found, {"rejected", "decided", "tagged"}, and "sampled", the rows tagged to count entities.
        leakage: what `filtering.captions.corpus.find_leakage` finds.
        entities: `entities.parquet`.
    """
    rows = entities.to_pylist()
    in_corpus = statistics["entities"]
    kept = [row for row in rows if row["kept"]]
    leaked = {entity for classes in leakage["leaks"].values() for entity in classes.values()}
    barred = leaked if details["config"].get("exclude_benchmark_classes") else set()
    others = [row for row in rows if not row["kept"]]
    least = min((row["count"] for row in kept), default=0)
    return {
        **summary,
        "list": _without_folders(details["list"]),
        "settings": _without_folders({key: value for key, value in details["config"].items() if key != "vocabulary"}),
        "funnel": funnel(summary),
        "matching": dict(details["matching"]),
        "top_entities": [
            {"entity": row["entity"], "count": row["count"], "in_corpus": in_corpus.get(row["entity"], 0)} for row in kept
        ],
        "next_in_line": _counts([row for row in others if row["entity"] not in barred]),
        "left_out": _counts([row for row in others if row["entity"] in barred and row["count"] >= least]),
        "leakage": _leakage(summary, statistics, leakage, {row["entity"] for row in kept}),
        "distributions": {
            "words": statistics["words"],
            "entities_per_caption": statistics["entities_per_caption"],
            "captions_per_entity": _curve(rows),
            "head": {
                "entities": HEAD,
                "before": _head([row["count"] for row in kept]),
                "after": _head(list(in_corpus.values())),
            },
            "hosts": hosts(statistics["hosts"]),
        },
        "samples": {
            "kept": statistics["samples"]["kept"],
            "dropped": {reason: statistics["samples"]["dropped"].get(reason, []) for reason in summary["dropped"]},
        },
    }


def funnel(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For every reason, in the order in which rules were asked: rows dropped and rows left after it."""
    steps = []
    left = summary["links"]
    for reason, dropped in summary["dropped"].items():
        left -= dropped
        steps.append({"rule": reason, "dropped": dropped, "left": left})
    return steps


def hosts(lot: list[str]) -> dict[str, Any]:
    """The hosts of the sampled links (`filtering.captions.statistics`): how many there are, and those with most links."""
    links: dict[str, int] = {}
    kept: dict[str, int] = {}
    for line in lot:
        _, host, *mark = line.split(" ")
        links[host] = links.get(host, 0) + 1
        kept[host] = kept.get(host, 0) + len(mark)
    most = sorted(links, key=lambda host: (-links[host], host))[:HOSTS]
    return {
        "links": len(lot),
        "kept": sum(kept.values()),
        "distinct": len(links),
        "most": [{"host": host, "links": links[host], "kept": kept[host]} for host in most],
    }


def _leakage(
    summary: Mapping[str, Any], statistics: Mapping[str, Any], leakage: Mapping[str, Any], listed: set[str]
) -> dict[str, Any]:
    """Per benchmark: its classes that the list contains, and the kept captions that mention one of them."""
    captions = leakage["captions"]
    total = max(1, summary["kept"])
    benchmarks = {}
    for name, classes in leakage["leaks"].items():
        there = {label: entity for label, entity in classes.items() if entity in listed}
        benchmarks[name] = {
            "classes": leakage["classes"][name],
            "in_list": len({label.partition(" (")[0] for label in there}),  # "class (synonym)" is another entity of a class
            "captions": captions[name],
            "share": captions[name] / total,
            "names": [
                {"class": label, "entity": entity, "captions": statistics["entities"].get(entity, 0)}
                for label, entity in sorted(there.items(), key=lambda item: (-statistics["entities"].get(item[1], 0), item[0]))
            ],
        }
    leaked = {entity for classes in leakage["leaks"].values() for entity in classes.values()}
    return {
        "any": {"in_list": len(leaked & listed), "captions": leakage["leaked"], "share": leakage["leaked"] / total},
        "benchmarks": benchmarks,
    }


def _counts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"entity": row["entity"], "count": row["count"]} for row in rows[:NEXT_IN_LINE]]


def _curve(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Captions by rank, at ranks evenly spaced on a logarithmic scale."""
    if not rows:
        return []
    ranks = np.unique(np.geomspace(1, len(rows), CURVE_POINTS).round().astype(int))
    return [{"rank": int(rank), "count": rows[rank - 1]["count"]} for rank in ranks]


def _head(counts: list[int]) -> float:
    """The share of all mentions that falls to the `HEAD` most frequent entities."""
    return sum(sorted(counts, reverse=True)[:HEAD]) / max(1, sum(counts))


def _without_folders(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings with paths cut to their last part: a report tells nothing about the machine."""
    return {key: Path(value).name if key in ("path", "tagger") else value for key, value in settings.items()}


def _last_part(path: str) -> str:
    """The name of a file or folder; of a URL without its query, which may hold a signature."""
    return path.partition("?")[0].rstrip("/").rpartition("/")[2] if "://" in path else Path(path).name
