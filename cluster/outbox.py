"""Records on their way to a store: sent in order by a thread, kept while the store does not answer, counted where refused.

Work that records never waits: it puts parcels down and goes on. What could not be sent is told, with counts, at the end.
"""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from filtering.secrets import masked

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 5.0
"""Records of so long are sent together."""
MOST_WAITING = 100_000
"""Entries that an outage may hold back before the oldest points of metrics are given up."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds between attempts at a store that does not answer; they double."""
SECONDS_FOR_ONE = 60.0
"""How long a store that answers otherwise may fail with one parcel before that is given up."""
END_SECONDS = 30.0
"""How long the end of a run waits for a store that takes nothing."""
MOST_END_SECONDS = 120.0
"""... and for one that takes records, but slowly."""
INTERRUPTED_SECONDS = 10.0
"""How long the end waits at most where somebody has interrupted the work."""


class Unreachable(Exception):  # noqa: N818 -- no mistake of anybody's: it is for a later time
    """The store does not answer: nothing is known of the records that were being sent."""


@dataclass(eq=False)
class Parcel:
    """Some entries of one kind ("metrics", say), and how they are sent.

    `send` raises `Unreachable` where the store does not answer; what the store refuses it counts itself and leaves out.
    `may_go` tells that of these the oldest may be given up first.
    """

    kind: str
    entries: list[Any]
    send: Callable[[list[Any]], None]
    may_go: bool = False


@dataclass
class Losses:
    """What was not recorded: how many of which kind, and the first reason for each."""

    counts: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, count: int, reason: str) -> None:
        """Count entries, and tell the first of a kind."""
        if kind not in self.reasons:
            self.reasons[kind] = reason = masked(" ".join(reason.split()))[:300]
            logger.warning("MLflow: %s not recorded, work continues without: %s", kind, reason)
        self.counts[kind] += count

    def lines(self) -> list[str]:
        """A line for each kind."""
        return [f"MLflow: {count} {kind} not recorded ({self.reasons[kind]})" for kind, count in self.counts.items()]


class Outbox:
    """A queue of parcels and the thread that sends them. `losses` may be shared by several."""

    def __init__(self, answers: Callable[[], bool], losses: Losses, name: str) -> None:
        """`answers` finds out whether the store answers at all."""
        self._answers, self._losses = answers, losses
        self._parcels: deque[Parcel] = deque()
        self._changed = threading.Condition()
        self._hurry = False
        self._sending: Parcel | None = None
        self._down_since = 0.0
        self._failing_since: dict[int, float] = {}
        self.last_sent = time.monotonic()
        threading.Thread(target=self._work, name=f"mlflow {name}", daemon=True).start()

    @property
    def down(self) -> bool:
        """Whether the store did not answer when it was last asked."""
        return self._down_since > 0

    def put(self, parcel: Parcel) -> None:
        """Queue a parcel. Entries that follow others of the same kind and sender go with them."""
        with self._changed:
            last = self._parcels[-1] if self._parcels else None
            if last and last is not self._sending and parcel.may_go and (last.kind, last.send) == (parcel.kind, parcel.send):
                last.entries += parcel.entries
            else:
                self._parcels.append(parcel)
            self._give_up_oldest()
            self._changed.notify_all()

    def wait(self, seconds: float) -> bool:
        """Send at once, and wait for it; whether all is sent."""
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            sent = self._changed.wait_for(lambda: not self._parcels, seconds)
            self._hurry = not sent
            return sent

    def left(self) -> Counter[str]:
        """How many entries of which kind still wait."""
        with self._changed:
            return sum((Counter({parcel.kind: len(parcel.entries)}) for parcel in self._parcels), Counter[str]())

    def _give_up_oldest(self) -> None:
        over = sum(len(parcel.entries) for parcel in self._parcels) - MOST_WAITING
        for parcel in list(self._parcels) if over > 0 else ():
            if parcel.may_go and parcel is not self._sending:
                gone = min(len(parcel.entries), over)
                del parcel.entries[:gone]
                over -= gone
                self._losses.add(parcel.kind, gone, f"the outage is too long: only {MOST_WAITING} wait for its end")
                if not parcel.entries:
                    self._parcels.remove(parcel)
            if over <= 0:
                return

    def _work(self) -> None:
        pause = FIRST_PAUSE
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._parcels)
                if not self.down:
                    self._changed.wait_for(lambda: self._hurry, SECONDS_BETWEEN_LOOKS)
            if self._send_waiting():
                pause = FIRST_PAUSE
            else:
                self._rest(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    def _rest(self, pause: float) -> None:
        with self._changed:
            if self._hurry:
                self._changed.wait(FIRST_PAUSE)
            else:
                self._changed.wait_for(lambda: self._hurry, pause)

    def _send_waiting(self) -> bool:
        """Send parcels until none is left, or the store does not answer."""
        while True:
            with self._changed:
                if not self._parcels:
                    self._changed.notify_all()
                    return True
                parcel = self._sending = self._parcels[0]
            sent = self._send(parcel)
            with self._changed:
                self._sending = None
                if sent:
                    self._parcels.popleft()
                    self._failing_since.pop(id(parcel), None)
                    self.last_sent = time.monotonic()
                    self._changed.notify_all()
                else:
                    return False

    def _send(self, parcel: Parcel) -> bool:
        try:
            parcel.send(parcel.entries)
        except Unreachable as error:
            return self._without_answer(parcel, str(error))
        except Exception as error:  # a value that cannot be written, say: tracking must not stop the work
            self._losses.add(parcel.kind, len(parcel.entries), f"{type(error).__name__}: {error}")
        if self.down:
            logger.warning("MLflow answers again after %.0f s", time.monotonic() - self._down_since)
            self._down_since = 0.0
        return True

    def _without_answer(self, parcel: Parcel, reason: str) -> bool:
        """Whether the parcel is done with all the same, since the store answers, but not for this one."""
        now = time.monotonic()
        if self._answers():
            since = self._failing_since.setdefault(id(parcel), now)
            if now - since > SECONDS_FOR_ONE:
                self._losses.add(parcel.kind, len(parcel.entries), reason)
                return True
        else:
            self._failing_since.clear()
        if not self.down:
            self._down_since = now
            logger.warning(
                "MLflow does not answer, work continues and its records wait: %s", masked(" ".join(reason.split()))[:300]
            )
        return False


def close(outboxes: Sequence[Outbox], losses: Losses, *, interrupted: bool = False) -> None:
    """Wait for all that still waits, for a bounded time, and tell what was not recorded."""
    began = time.monotonic()
    most = INTERRUPTED_SECONDS if interrupted else MOST_END_SECONDS
    told = False
    while waiting := [outbox for outbox in outboxes if not outbox.wait(0.2)]:
        now = time.monotonic()
        if now - max(began, *(outbox.last_sent for outbox in waiting)) > END_SECONDS or now - began > most:
            break
        if not told and now - began > 3:
            told = True
            logger.warning("MLflow: what is left is being sent, for %.0f s at most", most)
    for outbox in outboxes:
        for kind, count in outbox.left().items():
            losses.add(kind, count, "the store did not answer until the end")
    for line in losses.lines():
        logger.warning("%s", line)
