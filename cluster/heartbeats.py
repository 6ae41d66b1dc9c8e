"""Where each rank of a training is, so that one that the others wait for in vain can be named.

In a collective that hangs every rank sees only that it waits. So each writes its place into a small file of the run's folder;
those whose collective times out say so there too, and the one that does not is the one that did not come.
"""

import json
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from cluster.failures import HangingCollectiveError
from filtering.files import write_json
from owseg.data import Batch
from owseg.phases import ScheduledPhase

SECONDS_BETWEEN = 5.0
"""Between writes of a rank's place: a file system shared by hundreds of ranks can bear that."""
GRACE_SECONDS = 10.0
"""Ranks come to a collective one after another, and time out so."""
LONGEST = 4
"""Ranks that a line names."""
_TIMEOUT = re.compile(r"[Tt]imed out waiting|wait timeout|collective operation timeout|Watchdog caught")
"""gloo's words, and NCCL's."""
_OF_RAY = "BroadcastCollectiveTimeoutError"
"""Ray Train's own collective, in which ranks report checkpoints."""

At = Callable[[str], None]
"""Takes the place where this rank is now: "reads the batch of step 7"."""


@contextmanager
def heartbeats(folder: Path, rank: int, ranks: int, seconds: float, grace: float = GRACE_SECONDS) -> Iterator[At]:
    """Keep this rank's place in `folder/<rank>.json` while inside.

    Raises HangingCollectiveError in place of a collective's own error of having waited in vain for `seconds`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    beat = _Beat(folder / f"{rank}.json")
    try:
        yield beat.at
    except Exception as error:
        if not is_timeout(error):
            raise
        beat.write(timed_out=True)
        raise HangingCollectiveError(_who(folder, ranks, seconds, grace)) from error
    finally:
        beat.stop()


def stuck(folder: Path, ranks: Iterable[int], seconds: float) -> str:
    """Those of `ranks` that did not move for so long, in words; "" where none.

    For NCCL, which ends the processes that wait in vain, so that none of them can say for whom.
    """
    places = {rank: _read(folder / f"{rank}.json") for rank in ranks}
    return _named({rank: place for rank, place in places.items() if place and time.time() - place["since"] >= seconds})


def place_of(folder: Path, rank: int) -> str:
    """Where a rank of this start is: "reads the batch of step 7"; "" where it has not begun."""
    return str(_read(folder / f"{rank}.json").get("place", ""))


def forget(folder: Path) -> None:
    """Remove the places of an earlier start."""
    shutil.rmtree(folder, ignore_errors=True)


def is_timeout(error: BaseException) -> bool:
    """Whether a collective ended since ranks did not come."""
    return type(error).__name__ == _OF_RAY or (isinstance(error, RuntimeError) and bool(_TIMEOUT.search(str(error))))


def placed(
    batches: Callable[[ScheduledPhase, int], Iterator[Batch]], at: At
) -> Callable[[ScheduledPhase, int], Iterator[Batch]]:
    """The same batches, with a word to `at` on which is read and which is worked on."""

    def stream(phase: ScheduledPhase, step: int) -> Iterator[Batch]:
        drawn = batches(phase, step)
        for number in count(step + 1):
            at(f"reads the batch of step {number}")
            batch = next(drawn, None)
            if batch is None:
                return
            at(f"in step {number}")
            yield batch

    return stream


class _Beat:
    """A thread that writes a rank's place every few seconds, also while the rank itself hangs."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.host = {"host": socket.gethostname(), "pid": os.getpid()}
        self.place, self.since = "starts", time.time()
        self.over = threading.Event()
        self.write()
        self.thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self.thread.start()

    def at(self, place: str) -> None:
        self.place, self.since = place, time.time()

    def write(self, *, timed_out: bool = False) -> None:
        if timed_out:
            self.stop()  # lest it write over this
        with suppress(OSError):  # a full disk is told where it matters
            write_json(self.file, {**self.host, "place": self.place, "since": self.since, "timed_out": timed_out})

    def stop(self) -> None:
        self.over.set()
        self.thread.join()

    def _beat(self) -> None:
        while not self.over.wait(SECONDS_BETWEEN):
            self.write()


def _who(folder: Path, ranks: int, seconds: float, grace: float) -> str:
    """The line on who did not come, after the others had the time to time out as well."""
    end = time.monotonic() + grace
    while True:
        places = {rank: _read(folder / f"{rank}.json") for rank in range(ranks)}
        late = [rank for rank, place in places.items() if not place.get("timed_out")]
        if len(late) <= 1 or time.monotonic() >= end:
            break
        time.sleep(min(0.1, grace))
    if not late:
        return f"all {ranks} ranks waited for one another for {seconds:g} s (train.collective_seconds)"
    names = _named({rank: places[rank] for rank in late})
    waited = next((place["place"] for place in places.values() if place.get("timed_out")), "")
    return f"{names} did not come where the others waited for {seconds:g} s (train.collective_seconds): {waited}"


def _named(places: dict[int, dict[str, Any]]) -> str:
    names = [f"rank {rank} ({_told(place)})" for rank, place in places.items()]
    return ", ".join(names[:LONGEST]) + (f" and {len(names) - LONGEST} more" if len(names) > LONGEST else "")


def _told(place: dict[str, Any]) -> str:
    if not place:
        return "never seen"
    return f"{place['place']} since {time.time() - place['since']:.0f} s, pid {place['pid']} on {place['host']}"


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
