"""A download in a few words: while it runs, and when it is done."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from filtering.images.reasons import FAILURES, failure_of
from filtering.secrets import masked

_MOST_OFTEN = 2
_REASONS_PER_CLASS = 3
_SHOWN = 120
"""Characters of a link in a message."""


def describe(counts: Mapping[str, int]) -> str:
    """How it goes so far: the share of images obtained of the links done, their size, and why others were not.

    `counts` are a shard's, added up: "status/<status>" and "bytes".
    """
    statuses = Counter({name.removeprefix("status/"): n for name, n in counts.items() if name.startswith("status/")})
    links = statuses.total()
    if not links:
        return ""
    obtained = statuses.pop("success", 0)
    words = f"{obtained / links:.0%} obtained, {size(counts.get('bytes', 0))}"
    if (captions := counts.get("captions", links)) != links:
        words += f", {captions} captions of {links} images"
    failures = ", ".join(f"{status} {count / links:.0%}" for status, count in _by_frequency(statuses)[:_MOST_OFTEN])
    return f"{words}, most often {failures}" if failures else words


def conclude(by_status: Mapping[str, int]) -> str:
    """What came of it, as "56 of 61 images obtained (91.8%); failed: permanent 3 (http_404 3), transient 2 (timeout 2)"."""
    links, obtained = sum(by_status.values()), by_status.get("success", 0)
    parts = []
    for failure in FAILURES:
        reasons = _by_frequency({status: count for status, count in by_status.items() if failure_of(status) == failure})
        if reasons:
            named = ", ".join(f"{status} {count}" for status, count in reasons[:_REASONS_PER_CLASS])
            more = ", ..." if len(reasons) > _REASONS_PER_CLASS else ""
            parts.append(f"{failure} {sum(count for _, count in reasons)} ({named}{more})")
    share = f" ({obtained / links:.1%})" if links else ""
    return f"{obtained} of {links} images obtained{share}; failed: {', '.join(parts) or 'none'}"


def failed(by_status: Mapping[str, int], example: Mapping[str, Any], what: str) -> str:
    """Why nothing came: "15 of 20 links failed with 'http_404', such as <the example's URL or caption>"."""
    total, reason = sum(by_status.values()), example["status"]
    return f"{by_status[reason]} of {total} {what} failed with {reason!r}, such as {shown_link(example)}"


def shown_link(row: Mapping[str, Any]) -> str:
    """A row's URL, secrets masked, else its caption; cut where it is long."""
    text = masked(row["url"] or "") or f"the caption {row['caption'] or ''!r}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _by_frequency(statuses: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(statuses.items(), key=lambda item: (-item[1], item[0]))


def size(number: float) -> str:
    """Bytes in few characters: 1.2 MB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 1000 or unit == "TB":
            break
        number /= 1000
    return f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"
