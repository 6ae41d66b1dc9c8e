"""The download's report as one page, `report.html`: what the template `download.html` shows."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filtering.images.progress import size
from filtering.reports import charts
from filtering.reports.contact_sheet import Thumbnail
from filtering.reports.download_hosts import SHOWN
from filtering.reports.parts import percent, share, write_page

_UNITS = {1: "", 10: "tens of ", 100: "hundreds of "}

COLORS = {"obtained": "kept", "permanent": "rejected", "transient": "lost", "policy": "leak"}
"""The style sheet's colours of what can become of a link."""


def write(path: Path, content: Mapping[str, Any], sheet: Sequence[Thumbnail]) -> None:
    """Write the page of a `filtering.reports.download.Content`, with a contact sheet of some images."""
    links, obtained, captions = content["links"], content["obtained"], content["captions"]
    of_captions = f"{captions:,} captions of " if captions != links else ""
    outcome = [("obtained", obtained, "an image that meets the rules", "in the tars")]
    outcome += [(name, row["links"], row["says"], row["advice"]) for name, row in content["by_failure"].items()]
    shown = {
        "title": f"Download report: {obtained:,} of {links:,} images",
        "kicker": "Download report",
        "headline": f"{of_captions}{links:,} links → {obtained:,} images",
        "tiles": _tiles(content),
        "outcome": outcome,
        "colors": COLORS,
        "chart": _sizes(content["sizes"]),
        "sheet": sheet,
        "shown_hosts": SHOWN,
        "settings": dict(_flat(content["settings"])),
    }
    same = ("digest", "links", "requests", "by_reason", "by_failure", "duplicates", "hosts")
    write_page(path, "download.html", {**shown, **{name: content[name] for name in same}})


def _tiles(content: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(label, value, note) of the figures at the top."""
    links, transient = content["links"], content["by_failure"]["transient"]["links"]
    near, fetched = content["duplicates"]["near"], content["bytes"]
    return [
        ("links obtained", percent(content["obtained_share"]), f"{content['obtained']:,} of {links:,} links"),
        ("asked again by the next run", f"{transient:,}", f"{share(transient, links)} of links, lost for a transient reason"),
        ("fetched", size(fetched["fetched"]), f"the median image {size(fetched['median_image'])}"),
        ("look like an earlier image", share(near["near_duplicates"], near["images"]), f"{near['near_duplicates']:,} images"),
    ]


def _sizes(sizes: Mapping[str, Any]) -> charts.Chart | None:
    """The histogram of both shorter sides; None where no image came."""
    if not sizes["original"]:
        return None
    length = max(len(sizes["original"]), len(sizes["kept"]), 2)
    original, kept = ([*counts, *[0] * (length - len(counts))] for counts in (sizes["original"], sizes["kept"]))
    axis = f"shorter side in {_UNITS[sizes['unit']]}pixels"
    return charts.histogram(original, kept, axis=axis, label="Shorter side of original and kept images")


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, object]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value
