"""The report as one page, `report.html`. Captions come from strangers: what it shows of them goes through `text`."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from filtering.captions.rules import RuleConfig
from filtering.captions.statistics import LOT
from filtering.reports import charts as report_charts
from filtering.reports.parts import (
    anchor,
    bar,
    count,
    name_of,
    page_head,
    percent,
    settings_table,
    share,
    text,
    write_page,
)

SHOWN_ENTITIES = 120
SHOWN_HOSTS = 10

_REASONS = {rule.name: (rule.__doc__ or "").strip().splitlines()[0] for rule in get_args(RuleConfig)} | {
    "no_entity": "Refuses captions in which no entity was found.",
    "rare_entity": "Refuses captions that mention visible things, but none of the list.",
    "near_duplicate": "Refuses captions that say nearly the same as another kept one.",
    "balanced": "Thins out captions that mention very frequent entities alone, by lot.",
}

_LISTS = {"frequency": "the most frequent ones", "paper": "OVSegmentor's words", "file": "a list of your own"}

_WAYS = {
    "rejected": (
        "mention none, told without the tagger",
        "no word can stand for an entity of the list, or only in a form that is nearly never a noun",
    ),
    "decided": (
        "mention some, told without the tagger",
        "each word in question stands in a form that is nearly always, or nearly never, a noun",
    ),
    "asked": ("read by the tagger to decide", "a word may be a noun or not (a train, to train): the sentence tells"),
    "sampled": ("read by the tagger as a sample", "drawn by lot, to learn how often each form is a noun"),
}

_LEAKAGE = """<p>Classes of the evaluation that the list contains, under their name or a synonym, and kept captions that mention
one: a corpus selected for the names that are tested is no neutral one. <strong>{names} of the list</strong> belong to some
benchmark, and <strong>{share}</strong> of the kept captions mention one.</p>"""

_HOW_TO_READ = """<dl class=terms>
<dt>link<dd>A row of the input: an address and a caption. Each is either kept, or dropped for exactly one reason.
<dt>entity<dd>A visible thing under its canonical name: "dogs", "Dog" and "dog's" are all dog. A caption counts once for it.
<dt>form<dd>How a noun is written: in lower case, with a capital, in Title Case. The sample tells how often it is one.
<dt>by lot<dd>The links with the smallest keys. Keys are hashes of address and caption, so the choice is fair, and repeatable.
<dt>words<dd>What stands between spaces. Rules on length count words without punctuation, so they may see fewer.
<dt>files<dd>The rows are in <code>kept/</code> and <code>dropped/</code> beside this page, the entities in
<code>entities.parquet</code>, all numbers in <code>report.json</code>. The same corpus gives the same page, byte for byte.
</dl>"""


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write the page of a `filtering.reports.corpus.Content`."""
    sections = [
        ("Funnel", _funnel(content)),
        ("Decisions", _decisions(content)),
        ("Entities", _entities(content)),
        ("Leakage", _leakage(content)),
        ("Before and after", _distributions(content)),
        ("Samples", _samples(content)),
        ("Settings", _settings(content)),
        ("How to read this", _HOW_TO_READ),
    ]
    title = f"Corpus report: {content['kept']:,} of {content['links']:,} links kept"
    write_page(path, title, _head(content), sections)


# ---- the parts of the page


def _head(content: Mapping[str, Any]) -> str:
    links, kept, leakage, ways = content["links"], content["kept"], content["leakage"], _ways(content)
    tiles = [
        ("captions kept", share(kept, links), f"{kept:,} of {links:,} links"),
        ("entities in the list", f"{content['entities']:,}", _LISTS[content["list"]["name"]]),
    ]
    if ways:
        tiles.append(
            ("read by the tagger", share(ways["asked"] + ways["sampled"], sum(ways.values())), "of what passed the rules")
        )
    if leakage["benchmarks"]:
        names = count(leakage["any"]["in_list"], "name")
        tiles.append(
            ("mention a benchmark class", percent(leakage["any"]["share"]), f"of the kept captions; {names} of the list")
        )
    return page_head("Corpus report", f"{links:,} links → {kept:,} captions", tiles, content["digest"])


def _funnel(content: Mapping[str, Any]) -> str:
    links = content["links"]
    settings = {rule["name"]: rule for rule in content["settings"].get("rules", ())}
    rows = [f"<tr><th>links<td>{bar((100, 'kept'))}<td><td><td>{links:,}"]
    for step in content["funnel"]:
        reason = step["rule"]
        limits = ", ".join(
            f"{key} {value}" for key, value in settings.get(reason, {}).items() if isinstance(value, int | float)
        )
        note = text(_REASONS.get(reason, "")) + (f" <code>{text(limits)}</code>" if limits else "")
        parts = bar((100 * step["left"] / links, "kept"), (100 * step["dropped"] / links, "lost"))
        rows.append(
            f'<tr><th><a href="#dropped-{anchor(reason)}">{name_of(reason)}</a><small>{note}</small><td>{parts}'
            f"<td>−{step['dropped']:,}<td>{share(step['dropped'], links)}<td>{step['left']:,}"
        )
    idle = ", ".join(name_of(name) for name in settings if name not in content["dropped"])
    return (
        "<p>Rules are asked one after another; the first that refuses a caption is the reason why it was dropped.</p>"
        "<table class=funnel><thead><tr><th>rule<th><i class=kept></i> left <i class=lost></i> dropped by this rule"
        f"<th>dropped<th>of links<th>left<tbody>{''.join(rows)}</table>"
        + (f"<p class=note>Asked too, but refused nothing: {idle}.</p>" if idle else "")
    )


def _ways(content: Mapping[str, Any]) -> dict[str, int]:
    """Rows by how their entities were found; empty where none was looked for, or where a list takes words as they stand."""
    matching = content["matching"]
    if content["list"].get("match") == "script" or not any(matching.values()):
        return {}
    asked = matching["tagged"] - matching["sampled"]
    return {"rejected": matching["rejected"], "decided": matching["decided"], "asked": asked, "sampled": matching["sampled"]}


def _decisions(content: Mapping[str, Any]) -> str:
    ways = _ways(content)
    if not ways and content["list"].get("match") != "script":
        return "<p>No caption passed the rules, so no entity was looked for.</p>"
    if not ways:
        return "<p>Captions were read as OVSegmentor's script reads them: a word of the list counts wherever it stands.</p>"
    total = sum(ways.values())
    counted = (
        f"All {total:,} captions that passed the rules were tagged, so every count below is exact."
        if ways["sampled"] == total
        else f"{total:,} captions passed the rules. The tagger read those whose words leave open what they mean, and a sample, "
        "from which the counts of the entities below are estimated."
    )
    rows = "".join(
        f"<tr><th><i class={way}></i> {_WAYS[way][0]}<small>{_WAYS[way][1]}</small><td>{number:,}<td>{share(number, total)}"
        for way, number in ways.items()
    )
    whole = bar(*((100 * number / total, way) for way, number in ways.items()))
    return f"<p>{counted}</p><div class=whole>{whole}</div><table class=ways><tbody>{rows}</table>"


def _entities(content: Mapping[str, Any]) -> str:
    groups = [
        ("In the list", "kept", content["top_entities"][:SHOWN_ENTITIES]),
        ("Next in line", "next", content["next_in_line"]),
        ("Left out, since a benchmark tests them", "leak", content["left_out"]),
    ]
    top = max(1, *(row["count"] for _, _, rows in groups for row in rows))
    more = len(content["top_entities"]) - SHOWN_ENTITIES
    rest = f"<p class=note>The other {more:,} of the list are in <code>entities.parquet</code>.</p>" if more > 0 else ""
    return (
        "<p>Captions that mention each entity, of those that passed the rules.</p>"
        + "".join(f"<h3>{title}</h3>{_bars(rows, kind, top)}" for title, kind, rows in groups if rows)
        + rest
    )


def _leakage(content: Mapping[str, Any]) -> str:
    leakage = content["leakage"]
    if not leakage["benchmarks"]:
        return "<p>No benchmarks were given, so nothing is known about what the list shares with them.</p>"
    rows = list(leakage["benchmarks"].items())
    shown = []
    for at, (name, row) in enumerate(rows):
        shown.append(
            f"<tr><th>{text(name)}<td>{bar((100 * row['in_list'] / max(1, row['classes']), 'leak'))}"
            f"<td>{row['in_list']} of {row['classes']}"
            f"<td>{bar((100 * row['share'], 'leak'))}<td>{percent(row['share'])}<td>{row['captions']:,}"
        )
        repeated = at + 1 < len(rows) and rows[at + 1][1]["names"] == row["names"]  # voc20 is voc21 without background
        if row["names"] and not repeated:
            shown.append(f"<tr class=names><td colspan=6><div class=tags>{''.join(map(_class, row['names']))}</div>")
    excluded = content["settings"].get("exclude_benchmark_classes")
    advice = "They were left out of this list" if excluded else "To build a list without them"
    return (
        _LEAKAGE.format(names=count(leakage["any"]["in_list"], "name"), share=percent(leakage["any"]["share"]))
        + f"<p class=note>{advice}: <code>filter.exclude_benchmark_classes=true</code>.</p>"
        + "<table class=leaks><thead><tr><th>benchmark<th colspan=2>its classes in the list<th colspan=3>kept captions with one"
        + f"<tbody>{''.join(shown)}</table>"
    )


def _class(row: Mapping[str, Any]) -> str:
    """A class as a tag: its name, the entity where that is called otherwise, and the kept captions that mention it."""
    entity = "" if row["entity"] == row["class"].lower() else f" → {text(row['entity'])}"
    return f"<b>{text(row['class'])}{entity}<small>{row['captions']:,}</small></b>"


def _distributions(content: Mapping[str, Any]) -> str:
    found = content["distributions"]
    words, head = found["words"], found["head"]
    balance = content["settings"].get("balance")
    limit = balance["per_entity"] if balance else None
    order = sorted((row["in_corpus"] for row in content["top_entities"]), reverse=True)
    charts = [
        (
            "Words per caption",
            "All links behind, kept captions in front.",
            report_charts.histogram(words["before"], words["after"], axis="words", label="Words per caption", first=1),
        ),
        (
            "Entities per kept caption",
            "How many different entities of the list it mentions.",
            report_charts.histogram(
                [], found["entities_per_caption"], axis="entities", label="Entities per kept caption", first=1
            ),
        ),
        (
            "Head and tail",
            "Captions per entity: the line is every entity before, the dots are the list's in the corpus"
            + (f", dashed is the balance ({limit:,}). " if limit else ". ")
            + f"The {head['entities']} most frequent of the list hold {percent(head['before'])} of its mentions before, "
            f"{percent(head['after'])} after.",
            report_charts.ranks(
                [(point["rank"], point["count"]) for point in found["captions_per_entity"]],
                [(rank, captions) for rank, captions in enumerate(order, start=1) if captions],
                limit,
                axis="rank",
                label="Captions per entity by rank",
            ),
        ),
    ]
    shown = "".join(
        f"<figure><figcaption><h3>{title}</h3><p>{note}</p></figcaption>{svg}</figure>" for title, note, svg in charts
    )
    return f"<div class=charts>{shown}{_hosts(found['hosts'])}</div>"


def _hosts(hosts: Mapping[str, Any]) -> str:
    links, kept = hosts["links"], hosts["kept"]
    lot = f"{links:,} links drawn by lot" if links >= LOT else f"all {links:,} links"
    rows = "".join(
        f"<tr><th><bdi>{text(row['host'] or '(no address)', 60)}</bdi>"
        f"<td>{share(row['links'], links)}<td>{share(row['kept'], kept)}"
        for row in hosts["most"][:SHOWN_HOSTS]
    )
    return (
        f"<figure><figcaption><h3>Hosts</h3><p>Shares of all links and of the kept ones, told from {lot}. "
        f"They come from {count(hosts['distinct'], 'host')}.</p></figcaption>"
        f"<table class=hosts><thead><tr><th>host<th>before<th>after<tbody>{rows}</table></figure>"
    )


def _samples(content: Mapping[str, Any]) -> str:
    samples = content["samples"]
    parts = [f'<h3 id="kept">kept<span>{content["kept"]:,}</span></h3>{_captions(samples["kept"], "kept")}']
    for reason, rows in samples["dropped"].items():
        parts.append(
            f'<h3 id="dropped-{anchor(reason)}">{name_of(reason)}<span>{content["dropped"][reason]:,} dropped</span></h3>'
            f"<p class=note>{text(_REASONS.get(reason, ''))}</p>{_captions(rows, 'lost')}"
        )
    return (
        "<p>Drawn by lot. Tags are the entities of the list that a caption mentions; of a dropped one, all that it seems to "
        f"mention.</p>{''.join(parts)}"
    )


def _captions(rows: Iterable[Mapping[str, Any]], kind: str) -> str:
    items = []
    for row in rows:
        tags = "".join(f"<b>{text(name, 60)}</b>" for name in row["entities"])
        origin = row["url"] or row.get("sample") or "(no address)"
        items.append(
            f"<li><p dir=auto>{text(row['caption']) or '(empty)'}</p>"
            f"<p class=origin>{f'<span class=tags>{tags}</span>' if tags else ''}<bdi>{text(origin, 80)}</bdi></p>"
        )
    return f'<ul class="captions {kind}">{"".join(items)}</ul>'


def _settings(content: Mapping[str, Any]) -> str:
    shown = {f"vocabulary.{key}": value for key, value in content["list"].items()}
    for key, value in content["settings"].items():
        if isinstance(value, Mapping):
            shown |= {f"{key}.{inner}": setting for inner, setting in value.items()}
        elif key != "rules":
            shown[key] = value
    return settings_table(shown)


# ---- small pieces


def _bars(rows: Iterable[Mapping[str, Any]], kind: str, top: int) -> str:
    """Entities with a bar and a count; the bar of `top` captions is the longest."""
    items = (
        f"<li><span>{text(row['entity'], 60)}</span>{bar((100 * row['count'] / top, kind))}<em>{row['count']:,}</em>"
        for row in rows
    )
    return f"<ol class=bars>{''.join(items)}</ol>"
