"""The download's report as one page, `report.html`."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from filtering.images.progress import size
from filtering.reports import charts as report_charts
from filtering.reports.download_hosts import SHOWN
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

_UNITS = {1: "", 10: "tens of ", 100: "hundreds of "}

COLORS = {"obtained": "kept", "permanent": "rejected", "transient": "lost", "policy": "leak"}
"""The style sheet's colours of what can become of a link."""

_HOW_TO_READ = """<dl class=terms>
<dt>link<dd>A row of the corpus: an address and a caption. It is either obtained, or lost for exactly one reason.
<dt>permanent<dd>Lost for good: the file or its site is gone, or what came is no image. It is not asked for again.
<dt>transient<dd>Lost today: the next run of <code>pipelines/download.py</code> asks for these links, and for no others.
<code>pipelines/full.py</code> does so with <code>--retry transient</code>.
<dt>policy<dd>Refused by a rule of ours, such as the smallest size. Change the rule, and the next run asks again.
<dt>requests<dd>Asked of servers for the links as they stand now, repeats included, redirects not.
<dt>look alike<dd>The perceptual hashes (64 bits, of the kept image) differ in at most {distance} bits. The first of several
that look alike is not counted; a group is what looks alike from one image to the next. Plain images (of one colour, or that
change in one direction alone, as stripes do) all have the hash 0, which tells nothing: they are not compared.
<dt>files<dd>Every link has a row in <code>[0-9]*.parquet</code> beside this page, with its status and error message; all
numbers are in <code>report.json</code>. Addresses are not shown here. The same tables give the same page, byte for byte.
</dl>"""


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write the page of a `filtering.reports.download.Content`."""
    sections = [
        ("Outcome", _outcome(content)),
        ("Reasons", _reasons(content)),
        ("Images", _images(content)),
        ("Hosts", _hosts(content)),
        ("Settings", _settings(content["settings"])),
        ("How to read this", _HOW_TO_READ.format(distance=content["duplicates"]["near"]["distance"])),
    ]
    title = f"Download report: {content['obtained']:,} of {content['links']:,} images"
    write_page(path, title, _head(content), sections)


# ---- the parts of the page


def _head(content: Mapping[str, Any]) -> str:
    links, transient = content["links"], content["by_failure"]["transient"]["links"]
    near = content["duplicates"]["near"]
    tiles = [
        ("links obtained", percent(content["obtained_share"]), f"{content['obtained']:,} of {links:,} links"),
        ("asked again by the next run", f"{transient:,}", f"{share(transient, links)} of links, lost for a transient reason"),
        ("fetched", size(content["bytes"]["fetched"]), f"the median image {size(content['bytes']['median_image'])}"),
        ("look like an earlier image", share(near["near_duplicates"], near["images"]), f"{near['near_duplicates']:,} images"),
    ]
    return page_head("Download report", f"{links:,} links → {content['obtained']:,} images", tiles, content["digest"])


def _outcome(content: Mapping[str, Any]) -> str:
    links = content["links"]
    parts = [("obtained", content["obtained"], "an image that meets the rules", "in the tars")]
    parts += [(name, row["links"], row["says"], row["advice"]) for name, row in content["by_failure"].items()]
    rows = "".join(
        f"<tr><th><i class={COLORS[name]}></i> {name}<small>{says}; {advice}</small><td>{number:,}<td>{share(number, links)}"
        for name, number, says, advice in parts
    )
    whole = bar(*((100 * number / max(1, links), COLORS[name]) for name, number, _, _ in parts))
    requests = content["requests"]
    return (
        f"<div class=whole>{whole}</div><table class=ways><tbody>{rows}</table>"
        f"<p class=note>{count(requests['total'], 'request')}, {requests['per_link']:.2f} per link, at most {requests['most']} "
        "for one.</p>"
    )


def _reasons(content: Mapping[str, Any]) -> str:
    if not content["by_reason"]:
        return "<p>No link was lost.</p>"
    top = content["by_reason"][0]["links"]
    rows = "".join(
        f'<tr id="reason-{anchor(row["reason"])}"><th>{name_of(row["reason"])}<small>{text(row["says"])} '
        f"→ {text(row['advice'])}</small>"
        f"<td>{bar((100 * row['links'] / top, COLORS[row['failure']]))}"
        f"<td>{row['links']:,}<td>{share(row['links'], content['links'])}"
        for row in content["by_reason"]
    )
    keys = " ".join(f"<i class={COLORS[failure]}></i> {failure}" for failure in content["by_failure"])
    return (
        "<p>Why links gave no image, and what one can do.</p>"
        f"<table class=funnel><thead><tr><th>reason<th>{keys}<th>links<th>of links<tbody>{rows}</table>"
    )


def _images(content: Mapping[str, Any]) -> str:
    sizes, same, near = content["sizes"], content["duplicates"]["same_bytes"], content["duplicates"]["near"]
    if not sizes["original"]:
        return "<p>No image came.</p>"
    length = max(len(sizes["original"]), len(sizes["kept"]), 2)
    original, kept = ([*counts, *[0] * (length - len(counts))] for counts in (sizes["original"], sizes["kept"]))
    axis = f"shorter side in {_UNITS[sizes['unit']]}pixels"
    chart = report_charts.histogram(original, kept, axis=axis, label="Shorter side of original and kept images")
    groups = "".join(
        f"<tr><th><code>{row['phash']}</code><td>{row['images']:,}<td>{share(row['images'], near['images'])}"
        for row in near["largest"]
    )
    plain = f" {count(near['plain'], 'image')} too plain to be compared." if near["plain"] else ""
    table = f"<table class=hosts><thead><tr><th>phash of the first<th>images<th>of images<tbody>{groups}</table>"
    return (
        "<div class=charts><figure><figcaption><h3>Sizes</h3><p>Originals whose header could be read behind, kept images in "
        f"front.</p></figcaption>{chart}</figure><figure><figcaption><h3>Duplicates</h3>"
        f"<p>{count(same['images'], 'image')} came as the same file, byte for byte, as an earlier one. "
        f"Of {count(near['images'], 'image')} that could be compared, {near['near_duplicates']:,} look like an earlier one; "
        f"{count(near['groups'], 'group')} of two or more.{plain}"
        f"{' The largest:' if groups else ''}</p></figcaption>{table if groups else ''}</figure></div>"
    )


def _hosts(content: Mapping[str, Any]) -> str:
    hosts = content["hosts"]
    about = "" if hosts["distinct_counted"] else "about "
    return (
        f"<p>The links come from {about}{count(hosts['distinct'], 'host')}.</p>"
        + _host_table("With most links", hosts["most"], "links")
        + _host_table("With most lost links", hosts["worst"], "lost links")
    )


def _host_table(title: str, top: Mapping[str, Any], measure: str) -> str:
    rows = "".join(map(_host, top["hosts"]))
    if not rows:
        return f"<h3>{title}</h3><p>There is none.</p>"
    more = f"The first {SHOWN}. " if len(top["hosts"]) == SHOWN else ""
    doubt = "" if top["exact"] else f"Not certain: of so many hosts, one with more {measure} than the last may be missing."
    note = f"<p class=note>{more}{doubt}</p>" if more or doubt else ""
    keys = " ".join(f"<i class={color}></i> {name}" for name, color in COLORS.items())
    heads = "".join(f"<th>{head}" for head in ("links", *COLORS, "most common reason"))
    return f"<h3>{title}</h3>{note}<table class=hosts><thead><tr><th>host<th>{keys}{heads}<tbody>{rows}</table>"


def _host(row: Mapping[str, Any]) -> str:
    parts = bar(*((100 * row[name] / row["links"], color) for name, color in COLORS.items()))
    counts = "".join(f"<td>{row[name]:,}" for name in ("links", *COLORS))
    return (
        f"<tr><th><bdi>{text(row['host'] or '(no address)', 60)}</bdi><td>{parts}{counts}"
        f"<td>{name_of(row['reason']) if row['reason'] else ''}"
    )


def _settings(settings: Mapping[str, Any]) -> str:
    return settings_table(dict(_flat(settings)))


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, object]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value
