"""What became of the links of a download, for people: `report.json`, the page `report.html` and the picture `report.png`."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from filtering import InputError
from filtering.files import write_json
from filtering.images.reasons import FAILURES, failure_of
from filtering.reports import download_page, download_picture, lookalikes
from filtering.reports.contact_sheet import thumbnails
from filtering.reports.download_hosts import Top
from filtering.reports.download_meanings import CLASSES, meaning_of
from filtering.reports.download_tally import Counts, Tally

Content = dict[str, Any]
"""What `report.json` holds."""

BARS = 50
"""As many bars has the histogram of sizes at most."""

_OWN = ("contact", "connect_to", "nameservers", "allow", "target")
"""Settings that tell about the people and machines that fetched, not about what was fetched."""


def write(out: Path, summary: Mapping[str, Any], settings: Mapping[str, Any]) -> Content:
    """Write the report of the download in `out`; returns what `report.json` holds.

    The tables are read a piece at a time. Of links only their hosts are shown. The same tables give the same bytes: no dates,
    no paths of the machine, nothing about how often this run in particular had to ask.

    Args:
        out: has the shards' tables, [0-9]*.parquet of schema STATUS.
        summary: what `download_corpus` returns; "links", "captions" and "digest" are read.
        settings: the download's settings as a dict.

    Raises InputError if the tables are not those of `summary`: no link may be missing from the report.
    """
    content = describe(Tally(sorted(out.glob("[0-9]*.parquet"))), summary, settings)
    for what in ("links", "captions"):
        if content[what] != summary[what]:
            raise InputError(
                f"{out}: its tables hold {content[what]} {what}, but {summary[what]} were downloaded; "
                "remove the [0-9]*.parquet files that are not the download's and run it again"
            )
    write_json(out / "report.json", content)
    download_picture.draw(out / "report.png", content)
    download_page.write(out / "report.html", content, thumbnails(out))
    return content


def numbers(content: Content) -> dict[str, float]:
    """The figures of `report.json` that are worth comparing between runs, by name."""
    return {
        "success_share": content["obtained_share"],
        **{f"failure/{failure}": float(row["links"]) for failure, row in content["by_failure"].items()},
        "requests_per_link": content["requests"]["per_link"],
        "bytes_fetched": float(content["bytes"]["fetched"]),
        "median_image_bytes": float(content["bytes"]["median_image"]),
        "near_duplicate_images": float(content["duplicates"]["near"]["near_duplicates"]),
        "same_bytes_images": float(content["duplicates"]["same_bytes"]["images"]),
        "hosts": float(content["hosts"]["distinct"]),
    }


def describe(tally: Tally, summary: Mapping[str, Any], settings: Mapping[str, Any]) -> Content:
    """The report as JSON; see `write`."""
    obtained = tally.by_status["success"]
    same_bytes, repeated = tally.same_bytes()
    hashes = tally.perceptual_hashes()
    plain = hashes == 0  # of any one colour, or any stripes: their hashes are equal though they do not look alike
    alike = asdict(lookalikes.tally(hashes[~plain]))
    distinct, counted = tally.hosts.distinct
    return {
        "digest": summary["digest"],
        "links": tally.rows,
        "captions": tally.captions,
        "obtained": obtained,
        "obtained_share": obtained / max(1, tally.rows),
        "by_failure": _by_failure(tally),
        "by_reason": _by_reason(tally),
        "hosts": {
            "distinct": distinct,
            "distinct_counted": counted,
            "most": _top(tally.hosts.most()),
            "worst": _top(tally.hosts.worst()),
        },
        "requests": {"total": tally.attempts, "per_link": tally.attempts / max(1, tally.rows), "most": tally.most_attempts},
        "bytes": {"fetched": tally.bytes, "median_image": tally.median_bytes()},
        "sizes": sizes(tally.original_sides, tally.kept_sides),
        "duplicates": {
            "same_bytes": {"images": same_bytes, "originals": repeated},
            "near": {
                **alike,
                "plain": int(plain.sum()),
                "distance": lookalikes.DISTANCE,
                "largest": [{"images": images, "phash": f"{value:016x}"} for images, value in alike["largest"]],
            },
        },
        "settings": _shown(settings),
    }


def sizes(original: Counts, kept: Counts) -> dict[str, Any]:
    """Both counts by shorter side, `unit` pixels to an entry: 1, 10 or 100."""
    sides = np.cumsum(original + kept)
    most = int(np.searchsorted(sides, 0.995 * sides[-1]))
    unit = 1 if most < BARS else 10 if most < 10 * BARS else 100
    places = np.arange(len(original)) // unit
    return {
        "unit": unit,
        "original": _cut(np.bincount(places, weights=original)),
        "kept": _cut(np.bincount(places, weights=kept)),
    }


def _cut(counts: np.ndarray[Any, Any]) -> list[int]:
    """Without the zeros at the end."""
    return [int(value) for value in np.trim_zeros(counts, "b")]


def _by_failure(tally: Tally) -> dict[str, Any]:
    lost = {
        failure: sum(links for status, links in tally.by_status.items() if failure_of(status) == failure)
        for failure in FAILURES
    }
    return {
        failure: {"links": links, "share": links / max(1, tally.rows), **CLASSES[failure]._asdict()}
        for failure, links in lost.items()
    }


def _by_reason(tally: Tally) -> list[dict[str, Any]]:
    """The reasons by falling number of links."""
    reasons = sorted(tally.by_status.items(), key=lambda item: (-item[1], item[0]))
    return [
        {
            "reason": status,
            "failure": failure_of(status),
            "links": links,
            "share": links / max(1, tally.rows),
            **meaning_of(status)._asdict(),
        }
        for status, links in reasons
        if failure_of(status)
    ]


def _top(top: Top) -> dict[str, Any]:
    return {"exact": top.exact, "hosts": top.hosts}


def _shown(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without those that tell about the machine, all the way down."""
    return {
        name: _shown(value) if isinstance(value, Mapping) else value for name, value in settings.items() if name not in _OWN
    }
