"""Work over shards whose classes Ray's workers import."""

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from filtering import InputError
from filtering.files import write_json
from filtering.shards import LIVE


class Upper:
    """Writes each caption in capitals and says in `log` which shards it ran.

    Refuses a row "mistake", breaks on a row "bug", finds the disk full at a row "full".
    """

    def __init__(self, log: Path, seconds: float = 0.0) -> None:
        self.log, self.seconds = log, seconds

    def __call__(self, table: pa.Table, scratch: Path) -> dict[str, int]:
        captions = table["caption"].to_pylist()
        time.sleep(self.seconds)
        if "mistake" in captions:
            raise InputError("caption: 'mistake' cannot be used; remove it")
        if "bug" in captions:
            raise RuntimeError("a bug")
        if "full" in captions:
            Path("/dev/full").write_text("a full disk" * 10_000)
        (scratch / "kept").mkdir(exist_ok=True)
        (scratch / "kept" / f"{captions[0]}.txt").write_text("\n".join(caption.upper() for caption in captions))
        with self.log.open("a") as log:
            log.write(f"{captions[0]}\n")
        return {"rows": len(captions), "letters": sum(map(len, captions))}


class MakeUpper:
    def __init__(self, log: Path, seconds: float = 0.0) -> None:
        self.log, self.seconds = log, seconds

    def __call__(self) -> Upper:
        return Upper(self.log, self.seconds)


def wait_until(ready: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not ready():
        if time.monotonic() > end:
            raise RuntimeError("waited in vain")
        time.sleep(0.01)


class Overlapping:
    """The first shard to begin ends when all have begun. Each tells its process, this object, the workers, and the shards in
    work."""

    def __init__(self, folder: Path, shards: int) -> None:
        self.folder, self.shards = folder, shards
        self.workers = self.in_work = 0
        self.lock = threading.Lock()

    def share(self, workers: int) -> None:
        self.workers = workers

    def __call__(self, table: pa.Table, scratch: Path) -> dict[str, int]:
        with self.lock:
            self.in_work += 1
            first = not list(self.folder.iterdir())
            (self.folder / scratch.name).write_text(f"{os.getpid()} {id(self)} {self.workers} {self.in_work}")
        if first:
            wait_until(lambda: len(list(self.folder.iterdir())) == self.shards)
        with self.lock:
            self.in_work -= 1
        (scratch / f"{scratch.name}.txt").write_text("done")
        return {"rows": table.num_rows}


class Counting:
    """Tells that three rows of its shard are done, and ends when the file `seen` is there."""

    def __init__(self, seen: Path) -> None:
        self.seen = seen

    def __call__(self, table: pa.Table, scratch: Path) -> dict[str, int]:
        write_json(scratch / LIVE, {"rows": 3, "letters": 300})
        wait_until(self.seen.exists)
        return {"rows": table.num_rows, "letters": 1000}


class Worried:
    """Warns of something, with a number that differs."""

    def __init__(self) -> None:
        self.workers = 0

    def share(self, workers: int) -> None:
        self.workers = workers

    def __call__(self, table: pa.Table, scratch: Path) -> dict[str, int]:
        logging.getLogger("filtering.anything").warning(f"the network is down\nafter {os.getpid()} requests")
        return {"workers": self.workers}
