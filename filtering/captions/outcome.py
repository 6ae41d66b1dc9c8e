"""What to tell where a corpus would be empty: how many rows were dropped why, and one of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from filtering import InputError
from filtering.captions.statistics import PERSONAL
from filtering.partition import gather
from filtering.shards import Marker, sum_counts

_SHOWN = 80  # characters of a URL or a caption in a message
_DROPPED = "dropped/"
_PARTED = "parted"
_ADVICE = {
    "bad_url": "see filter.source.url_column, and filter.source.header and quoting of a text table",
    "no_caption": "see filter.source.caption_column",
    "no_image": "a tar's samples need .jpg, .png, .webp or other images beside their captions",
    _PARTED: "the files of a sample must follow each other in a tar, as tar --sort=name puts them",
    "no_entity": "see filter.vocabulary and filter.stop_words",
    "rare_entity": "see filter.vocabulary and filter.top_k",
    "forgotten": "see forgotten.txt in the run's folder",
}


def check_rows(marked: Sequence[Marker], shards: Sequence[Path], build: Path) -> None:
    """InputError where the rules leave no row. `marked` are the markers of the mark pass over `shards`."""
    counts = sum_counts(marked)
    if counts["left"]:
        return
    reason = _reasons(counts)[0]
    for source, marker in zip(shards, marked, strict=True):
        if marker.counts.get(_DROPPED + reason):
            links = gather(build / "read", pq.read_table(source))
            reasons = pq.read_table(build / "mark" / "marked" / f"{marker.shard}.parquet")["drop_reason"]
            raise _nothing_kept(counts, links.slice(pc.index(reasons, reason).as_py(), 1))


def check_kept(markers: Sequence[Marker], dropped: Path) -> None:
    """InputError where no row is kept. `markers` are those of the split pass, `dropped` its folder of dropped rows."""
    counts = sum_counts(markers)
    if counts["kept"]:
        return
    reason = _reasons(counts)[0]
    for marker in markers:
        if marker.counts.get(_DROPPED + reason):
            rows = pq.read_table(dropped / f"{marker.shard}.parquet")
            raise _nothing_kept(counts, rows.filter(pc.equal(rows["drop_reason"], reason)).slice(0, 1))


def no_entity_kept(entities: pa.Table, min_count: int, marked: Sequence[Marker]) -> InputError:
    """The mistake of a frequency list (schema `ENTITIES`) that keeps nothing of the captions that passed the rules."""
    counts = sum_counts(marked)
    left, dropped = counts["left"], ", ".join(_reasons(counts))
    where = f"the {left} captions that passed the rules" + (
        f" ({counts['links'] - left} rows dropped: {dropped})" if dropped else ""
    )
    if not entities.num_rows:
        return InputError(f"filter.source.path: none of {where} mentions anything that can be seen; see corpus/_build/mark")
    first = entities.to_pylist()[0]
    return InputError(
        f"filter.min_count: no entity is mentioned by {min_count} of {where}; the most frequent one, {first['entity']!r}, "
        f"is by {first['count']}; lower it, or give more captions"
    )


def _nothing_kept(counts: Mapping[str, int], rows: pa.Table) -> InputError:
    reasons = _reasons(counts)
    told = reasons[0] if len(reasons) == 1 else ", ".join(f"{reason} {counts[_DROPPED + reason]}" for reason in reasons)
    (row,) = rows.to_pylist()
    caption = "" if reasons[0] in PERSONAL else f", caption {_short(row['caption'])}"
    place = f"sample {_short(row['sample'].rpartition('::')[2])}" if row.get("sample") else f"url {_short(row['url'])}"
    parted = {"no_image", "no_caption"} <= set(reasons)
    advice = _ADVICE.get(_PARTED if parted else reasons[0], "see filter.rules")
    return InputError(
        f"filter: {counts['links']} of {counts['links']} rows dropped: {told}; such as {place}{caption}; {advice}"
    )


def _reasons(counts: Mapping[str, int]) -> list[str]:
    """The reasons, the most frequent one first."""
    found = {name.removeprefix(_DROPPED): count for name, count in counts.items() if name.startswith(_DROPPED) and count}
    return sorted(found, key=lambda reason: (-found[reason], reason))


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")
