"""Shards in work, seen from the driver: how far they are and what they warn of, from files that the workers leave."""

import json
import logging
import math
import re
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self

from cluster.metrics import show_links
from cluster.progress import Progress
from cluster.tracking import NullTracker, Run
from filtering.shards import LIVE, Describe, Marker

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_BETWEEN_RECORDS = 10.0
SECONDS_BETWEEN_WARNINGS = 60.0
"""What one worker warns of, such as a dead network, the others warn of too."""

_WARNINGS = ".warnings-"


def pass_on_warnings(out: Path) -> None:
    """In a worker: let the driver that follows the work in `out` tell the warnings of this process."""
    handler = logging.FileHandler(out / "_work" / f"{_WARNINGS}{uuid.uuid4().hex}", encoding="utf-8", delay=True)
    handler.setLevel(logging.WARNING)
    handler.setFormatter(_OneLine())
    logging.getLogger("filtering").addHandler(handler)


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return " ".join(record.getMessage().split())


class Following:
    """Shows the finished shards, those in work and their warnings on `progress` while the block runs, from a thread of its own.

    A look reads only the files of shards in work, however many shards there are. `rows` are those of each shard, by its name,
    as far as they are known, and `before` the shards that earlier runs finished. `describe` comments on the counts of all, and
    `record` gets them as metrics "progress/<label>/<count>".
    """

    def __init__(
        self,
        progress: Progress,
        out: Path,
        rows: Mapping[str, int],
        before: Iterable[Marker],
        describe: Describe | None,
        record: Run | None = None,
    ) -> None:
        self._progress, self._work, self._describe = progress, out / "_work", describe
        self._record, self._recorded = record or NullTracker(), time.monotonic()
        self._left = dict(rows)
        self._rows, self._total = 0, sum(rows.values())
        self._counts: Counter[str] = Counter()
        self._live: dict[str, dict[str, int]] = {}
        for marker in before:
            self._take(marker)
        self._read_lines: Counter[Path] = Counter()
        self._warned: dict[str, float] = {}
        self._news: SimpleQueue[Marker | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._follow, name="following", daemon=True)

    def __enter__(self) -> Self:
        self._remove_warnings()  # of a run that was killed
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._news.put(None)
        self._thread.join()
        self._remove_warnings()

    def add(self, marker: Marker) -> None:
        """A shard is finished."""
        self._news.put(marker)

    def _follow(self) -> None:
        going_on = True
        while going_on:
            try:
                if marker := self._news.get(timeout=SECONDS_BETWEEN_LOOKS):
                    self._take(marker)
                going_on = marker is not None
            except Empty:
                pass
            if self._news.empty():
                self._show(last=not going_on)
                self._warn()

    def _take(self, marker: Marker) -> None:
        expected = self._left.pop(marker.shard, 0)
        rows = rows_in(marker, expected)
        self._rows += rows
        self._total += rows - expected
        self._live.pop(marker.shard, None)
        self._counts.update(marker.counts)

    def _show(self, *, last: bool) -> None:
        for path in list(self._work.glob(f"*/{LIVE}")):
            # The file vanishes a moment before the shard's end is heard of, and after a kill its work counts from 0 again.
            if (shard := path.parent.name) in self._left and (live := _read(path)):
                self._live[shard] = max(live, self._live.get(shard, {}), key=lambda counts: counts.get("rows", 0))
        rows, counts = self._rows, self._counts.copy()
        for shard, live in self._live.items():
            rows += min(live.get("rows", 0), self._left[shard])
            counts.update({name: count for name, count in live.items() if name != "rows"})
        show_links(counts)
        self._progress.expect(self._total)
        self._progress.update(rows, self._describe(counts) if self._describe else "")
        if last or time.monotonic() - self._recorded >= SECONDS_BETWEEN_RECORDS:
            self._recorded = time.monotonic()
            label = self._progress.label
            self._record.metrics(
                {f"progress/{label}/{name}": count for name, count in counts.items()}
                | {f"progress/{label}/{self._progress.unit}": rows},
                step=rows,
            )

    def _warn(self) -> None:
        for path in self._work.glob(f"{_WARNINGS}*"):
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
            for line in lines[self._read_lines[path] :]:
                gist = re.sub(r"\d+", "", line)
                if time.monotonic() - self._warned.get(gist, -math.inf) > SECONDS_BETWEEN_WARNINGS:
                    self._warned[gist] = time.monotonic()
                    self._progress.say(f"warning: {line}")
            self._read_lines[path] = len(lines)

    def _remove_warnings(self) -> None:
        for path in self._work.glob(f"{_WARNINGS}*"):
            path.unlink(missing_ok=True)


def rows_in(marker: Marker, expected: int) -> int:
    """The rows of a finished shard; what was `expected` may have been an estimate."""
    return marker.counts.get("links", expected)


def _read(path: Path) -> dict[str, int]:
    """The counts in a file that may change or vanish at any time; none where it cannot be read."""
    try:
        counts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return counts if isinstance(counts, dict) else {}
