"""What a benchmark's data is, in one digest of the bytes of its images and label maps: the same wherever they lie."""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cluster.tracking import Data
from filtering.files import digest_of, digest_of_file, write_json
from owseg.evaluation.datasets import Item, list_items
from owseg.evaluation.protocols import EvaluateConfig, protocol_of
from storage.copies import shown, version_of

DIGESTS = "data_digests.json"
"""SHA-256 of files of benchmarks that were read once, with what tells that they are as they were then."""
Known = dict[str, list[Any]]


def benchmark_data(config: EvaluateConfig, out: Path) -> dict[str, Data]:
    """The data of each benchmark of an evaluation, as far as it is scored.

    Files are read once: their digests are kept in `out`.
    """
    file = out / DIGESTS
    try:
        known: Known = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    root = config.folder.resolve()
    data: dict[str, Data] = {}
    found: Known = {}
    for name in config.names:
        benchmark = protocol_of(config, name).benchmark
        items = list_items(benchmark, root)[: config.limit or None]
        digests = _digests([path for item in items for path in (item.image, item.label)], known | found)
        found |= digests
        own = config.own[name].images if name in config.own else ""
        data[name] = Data(
            name=name,
            source=own or shown(root),
            digest=_digest(items, digests),
            profile={"images": len(items), "classes": len(benchmark.scored), "background": benchmark.background},
        )
    if found != known:
        write_json(file, found)
    return data


def _digest(items: Sequence[Item], digests: Known) -> str:
    rows = sorted([item.id, digests[str(item.image)][-1], digests[str(item.label)][-1]] for item in items)
    return digest_of(rows)


def _digests(paths: Sequence[Path], known: Known) -> Known:
    """Size, version and SHA-256 of each file; those that are as they are known to be are not read."""
    with ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0)))) as pool:  # hashing leaves Python's lock to others
        return dict(pool.map(lambda path: _entry(path, known.get(str(path), [])), dict.fromkeys(paths)))


def _entry(path: Path, known: list[Any]) -> tuple[str, list[Any]]:
    now = [path.stat().st_size, version_of(path)]
    return str(path), known if known[:-1] == now else [*now, digest_of_file(path)]
