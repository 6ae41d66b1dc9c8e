"""The report as one page, `report.html`: what the template `corpus.html` shows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from filtering.captions.row_rules import ROW_RULES
from filtering.captions.rules import ENTITY_RULES, RuleConfig
from filtering.captions.statistics import HOST_SAMPLE
from filtering.reports import charts
from filtering.reports.parts import count, percent, share, write_page

SHOWN_ENTITIES = 120
SHOWN_HOSTS = 10

_RULES = (*ROW_RULES, *get_args(RuleConfig), *ENTITY_RULES)
_REASONS = {rule.name: (rule.__doc__ or "").strip().splitlines()[0] for rule in _RULES}

_LISTS = {"frequency": "the most frequent ones", "paper": "OVSegmentor's words", "file": "a list of your own"}

_WAYS = {
    "rejected": (
        "mention none, decided without the tagger",
        "no word can stand for an entity of the list, or only in a form that is nearly never a noun",
    ),
    "decided": (
        "mention some, decided without the tagger",
        "each word in question stands in a form that is nearly always, or nearly never, a noun",
    ),
    "asked": ("read by the tagger to decide", "a word may be a noun or not (a train, to train): the sentence tells"),
    "sampled": ("read by the tagger as a sample", "drawn at random, to learn how often each form is a noun"),
}


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write the page of a `filtering.reports.corpus.Content`."""
    links, kept, ways = content["links"], content["kept"], _ways(content)
    rules = {rule["name"]: rule for rule in content["settings"].get("rules", ())}
    groups = [
        ("In the list", "kept", content["top_entities"][:SHOWN_ENTITIES]),
        ("Next in line", "next", content["next_in_line"]),
        ("Left out, since a benchmark tests them", "leak", content["left_out"]),
    ]
    shown = {
        "title": f"Corpus report: {kept:,} of {links:,} links kept",
        "kicker": "Corpus report",
        "headline": f"{links:,} links → {kept:,} captions",
        "tiles": _tiles(content, ways),
        "digest": content["digest"],
        "source": content["source"],
        "links": links,
        "kept": kept,
        "dropped": content["dropped"],
        "reasons": _REASONS,
        "funnel": [{**step, "limits": _limits(rules.get(step["rule"], {}))} for step in content["funnel"]],
        "idle": [name for name in rules if name not in content["dropped"]],
        "ways": ways,
        "ways_in_words": _WAYS,
        "as_script": content["list"].get("match") == "script",
        "entity_groups": groups,
        "most_mentions": max(1, *(row["count"] for _, _, rows in groups for row in rows)),
        "more_entities": len(content["top_entities"]) - SHOWN_ENTITIES,
        "leakage": content["leakage"],
        "excluded": content["settings"].get("exclude_benchmark_classes"),
        "charts": _charts(content),
        "hosts": content["distributions"]["hosts"],
        "shown_hosts": SHOWN_HOSTS,
        "host_sample": HOST_SAMPLE,
        "samples": content["samples"],
        "settings": flat_settings(content),
    }
    write_page(path, "corpus.html", shown)


def _tiles(content: Mapping[str, Any], ways: Mapping[str, int]) -> list[tuple[str, str, str]]:
    """(label, value, note) of the figures at the top."""
    links, kept, leakage = content["links"], content["kept"], content["leakage"]
    tiles = [
        ("captions kept", share(kept, links), f"{kept:,} of {links:,} links"),
        ("entities in the list", f"{content['entities']:,}", _LISTS[content["list"]["name"]]),
    ]
    if ways:
        read = share(ways["asked"] + ways["sampled"], sum(ways.values()))
        tiles.append(("read by the tagger", read, "of what passed the rules"))
    if leakage["benchmarks"]:
        note = f"of the kept captions; {count(leakage['any']['in_list'], 'name')} of the list"
        tiles.append(("mention a benchmark class", percent(leakage["any"]["share"]), note))
    return tiles


def _limits(rule: Mapping[str, Any]) -> str:
    """A rule's numbers: "min_words 3"."""
    return ", ".join(f"{key} {value}" for key, value in rule.items() if isinstance(value, int | float))


def _ways(content: Mapping[str, Any]) -> dict[str, int]:
    """Rows by how their entities were found; empty where none was looked for, or where a list takes words as they stand."""
    matching = content["matching"]
    if content["list"].get("match") == "script" or not any(matching.values()):
        return {}
    asked = matching["tagged"] - matching["sampled"]
    return {"rejected": matching["rejected"], "decided": matching["decided"], "asked": asked, "sampled": matching["sampled"]}


def _charts(content: Mapping[str, Any]) -> list[tuple[str, str, charts.Chart]]:
    """(title, note, chart) of what is shown before and after."""
    found = content["distributions"]
    words, head = found["words"], found["head"]
    balance = content["settings"].get("balance")
    limit = balance["per_entity"] if balance else None
    order = sorted((row["in_corpus"] for row in content["top_entities"]), reverse=True)
    before = [(point["rank"], point["count"]) for point in found["captions_per_entity"]]
    after = [(rank, captions) for rank, captions in enumerate(order, start=1) if captions]
    per_caption = found["entities_per_caption"]
    return [
        (
            "Words per caption",
            "All links behind, kept captions in front.",
            charts.histogram(words["before"], words["after"], axis="words", label="Words per caption", first=1),
        ),
        (
            "Entities per kept caption",
            "How many different entities of the list it mentions.",
            charts.histogram([], per_caption, axis="entities", label="Entities per kept caption", first=1),
        ),
        (
            "Head and tail",
            "Captions per entity: the line is every entity before, the dots are the list's in the corpus"
            + (f", dashed is the balance ({limit:,}). " if limit else ". ")
            + f"The {head['entities']} most frequent of the list hold {percent(head['before'])} of its mentions before, "
            f"{percent(head['after'])} after.",
            charts.ranks(before, after, limit, axis="rank", label="Captions per entity by rank"),
        ),
    ]


def flat_settings(content: Mapping[str, Any]) -> dict[str, object]:
    """The filter's settings by dotted key, the rules apart."""
    shown: dict[str, object] = {f"vocabulary.{key}": value for key, value in content["list"].items()}
    for key, value in content["settings"].items():
        if isinstance(value, Mapping):
            shown |= {f"{key}.{inner}": setting for inner, setting in value.items()}
        elif key != "rules":
            shown[key] = value
    return shown
