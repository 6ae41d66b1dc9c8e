"""Memory as Linux tells it: the peak of this process, and what a process and all that it started hold together."""

import os
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

_PROCESS = Path("/proc/self")
_TICKS = os.sysconf("SC_CLK_TCK")


def reset_peak() -> None:
    """Set the high-water mark ("VmHWM") back to what is resident now."""
    (_PROCESS / "clear_refs").write_text("5", encoding="utf-8")


def resident(field: str) -> int:
    """Bytes of this process that are resident now ("VmRSS"), or were at most since the last reset ("VmHWM")."""
    line = next(line for line in (_PROCESS / "status").read_text(encoding="utf-8").splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


@dataclass(frozen=True)
class Usage:
    """What a tree of processes holds at one moment, and the processor time that it has used."""

    processes: int
    pss: int
    """Bytes: private pages, and of each shared one this tree's share ("proportional set size"). A page that all processes of
    the tree map, an object store's too, counts once."""
    anonymous: int
    """Bytes of `pss` that no file stands behind."""
    shared: int
    """Bytes of `pss` in shared memory (/dev/shm)."""
    by_name: dict[str, int]
    """`pss` by the name of the process."""
    cpu_seconds: float


class _Stat(NamedTuple):
    parent: int
    born: int
    ticks: int


@dataclass
class ProcessTree:
    """The process `root` and all that descends from it.

    A child whose parent has ended still belongs: it is remembered, or known by `mark`, a "NAME=value" that was put into the
    environment of `root`.
    """

    root: int
    mark: str
    _members: dict[tuple[int, int], int] = field(default_factory=dict)  # (pid, born) -> ticks when last seen

    def usage(self) -> Usage:
        """What the tree holds now."""
        pss = Counter[str]()
        by_name = Counter[str]()
        alive = self._alive()
        for pid in alive:
            with suppress(OSError, ValueError):  # it may end while it is looked at
                name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
                sizes = {key: 1024 * int(value.split()[0]) for key, value in (line.split(":") for line in lines)}
                pss.update(sizes)
                by_name[name] += sizes["Pss"]
        return Usage(
            processes=len(alive),
            pss=pss["Pss"],
            anonymous=pss["Pss_Anon"],
            shared=pss["Pss_Shmem"],
            by_name=dict(by_name),
            cpu_seconds=sum(self._members.values()) / _TICKS,
        )

    def _alive(self) -> list[int]:
        stats = {int(path.name): stat for path in Path("/proc").glob("[0-9]*") if (stat := _stat(path))}
        known = {pid for pid, stat in stats.items() if (pid, stat.born) in self._members or pid == self.root}
        known |= {pid for pid in stats.keys() - known if self._is_marked(pid)}
        while children := {pid for pid, stat in stats.items() if stat.parent in known} - known:
            known |= children
        self._members |= {(pid, stats[pid].born): stats[pid].ticks for pid in known}
        return sorted(known)

    def _is_marked(self, pid: int) -> bool:
        with suppress(OSError):
            return self.mark.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        return False


def _stat(process: Path) -> _Stat | None:
    with suppress(OSError):
        values = (
            (process / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        )  # the name in brackets may hold spaces
        return _Stat(parent=int(values[1]), born=int(values[19]), ticks=int(values[11]) + int(values[12]))
    return None
