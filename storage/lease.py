"""One writer for a folder in an object store: a lease, which ends by itself when its holder does.

The store's own clock decides whether a lease is over, so that machines' clocks have no say.
"""

import json
import logging
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from storage import InputError
from storage.client import BRIEF_SECONDS, Entry, Store, Version

logger = logging.getLogger(__name__)

NAME = ".lease.json"
SECONDS, RENEWED_EVERY = 90.0, 20.0
"""A lease that was not renewed for so long is over."""


class Lease:
    """A lease that is held, and renewed by a thread of its own."""

    def __init__(self, store: Store, version: Version, on_loss: Callable[[], None]) -> None:
        self.store, self.version, self.on_loss = store, version, on_loss
        self.lost = ""
        """Why it is not held any more."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def ensure_held(self) -> None:
        """Raise InputError where another process has taken the folder."""
        if self.lost:
            raise InputError(self.lost)

    def give_back(self) -> None:
        """Let others have the folder."""
        self._over.set()
        self._thread.join(timeout=BRIEF_SECONDS)  # it may wait for a store that stays away
        if not self.lost:
            with suppress(InputError):  # of a store that stays away: then it ends by itself
                self.store.brief.delete(NAME)

    def _renew(self) -> None:
        while not self._over.wait(RENEWED_EVERY):
            try:
                version = self._renewed(_content())
            except InputError as error:
                self._lose(str(error))
                return
            if version is None:
                self._lose(f"run_dir: {self.store.url} was taken over by another process while this one could not reach it")
                return
            self.version = version

    def _renewed(self, content: bytes) -> Version | None:
        version = self.store.update(NAME, content, self.version)
        if version is None and self.store.get(NAME) == content and (there := self.store.head(NAME)):
            version = there.version  # a write may have arrived whose answer did not
        return version or self.store.create(NAME, content)  # it may have been deleted by hand

    def _lose(self, why: str) -> None:
        self.lost = why
        if not self._over.is_set():
            logger.warning("%s", why)
            self.on_loss()


@contextmanager
def leased(store: Store, on_loss: Callable[[], None] = lambda: None) -> Iterator[Lease]:
    """Hold the folder of a store; `on_loss` is called, from a thread, where another process has taken it.

    Raises InputError, one line that names the holder, where another process has it.
    """
    lease = Lease(store, _taken(store), on_loss)
    try:
        yield lease
    finally:
        lease.give_back()


def _taken(store: Store) -> Version:
    content = _content()
    for _ in range(3):  # between two looks another one may come or go
        if version := store.create(NAME, content):
            return version
        there = store.head(NAME)
        holder = _holder(store)
        if there is None:
            continue
        if holder.get("token") == _TOKEN:
            return there.version  # the write arrived, its answer did not
        if not _is_over(store, there, holder):
            break
        if version := store.update(NAME, content, there.version):
            return version
    who = f"process {holder.get('pid', '?')} on {str(holder.get('host', 'another machine'))[:100]}"
    raise InputError(
        f"run_dir: {store.url} is in use by {who}; wait for it (if it died, its hold ends {SECONDS:.0f} s after) or choose "
        "another with run_dir=URL"
    )


def _is_over(store: Store, there: Entry, holder: dict[str, Any]) -> bool:
    if holder.get("host") == socket.gethostname() and holder.get("boot") == _boot() and not _lives(holder):
        return True
    return (_now(store) - there.written).total_seconds() > SECONDS


def _now(store: Store) -> datetime:
    """The time by the store's clock, which stamps what is written."""
    name = f".clock-{uuid.uuid4().hex}"
    store.put(name, b"")
    there = store.head(name)
    store.delete(name)
    assert there is not None
    return there.written


_TOKEN = uuid.uuid4().hex


def _content() -> bytes:
    holder = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "boot": _boot(),
        "started": _started(os.getpid()),
        "token": _TOKEN,
    }
    return json.dumps({**holder, "renewal": uuid.uuid4().hex}).encode()


def _holder(store: Store) -> dict[str, Any]:
    try:
        found = json.loads(store.get(NAME) or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _lives(holder: dict[str, Any]) -> bool:
    """Whether the process still runs, and is not another one of that number."""
    return holder.get("started") == _started(holder.get("pid"))


def _started(pid: object) -> str | None:
    """When a process of this machine began, in the kernel's ticks; None where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _boot() -> str:
    """What tells this start of this machine, or container, from others."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
