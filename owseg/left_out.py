"""Samples that training cannot use: named, counted over all ranks, and left out up to a share."""

import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch.distributed as dist

from owseg import InputError
from storage.understood import understood

log = logging.getLogger(__name__)

MAX_SHARE = 0.01
"""The largest share of the samples that may be left out, where nothing else is said."""
FEW = 3
"""Bad samples that the smallest corpus, too, may have."""
NAMED = 3
"""How many of them a message names."""


class BadSample(NamedTuple):
    """A sample that cannot be used, and why."""

    shard: str
    key: str
    reason: str

    def __str__(self) -> str:
        return f"{self.shard}: sample {self.key} {self.reason}"


def most(samples: int, share: float) -> int:
    """How many of so many samples may be left out: a few always may, all of them never."""
    return min(max(FEW, int(share * samples)), samples - 1)


def refuse_more(bad: Sequence[BadSample], samples: int, share: float, number: int | None = None) -> None:
    """Raise InputError where more samples are bad than may be left out: those given, or `number`, of which some are given."""
    number = len(bad) if number is None else number
    if number > most(samples, share):
        named = "; ".join(map(str, bad[:NAMED])) + ("; ..." if number > NAMED else "")
        raise InputError(
            f"{number} of {samples} training samples cannot be used: {named}; mend them or take them out of the tars, or let "
            f"more be left out (train.max_bad_share is {share:g})"
        )


class BadSamples:
    """The samples that all ranks of a training, in all its starts, have left out; rank 0 keeps them in a file."""

    def __init__(self, file: Path, share: float, *, write: bool) -> None:
        self.file, self.share, self.write = file, share, write
        self.samples = 0
        """How many there are in all, good or bad; 0 = not known yet."""
        self._found: dict[tuple[str, str], BadSample] = {}
        self._new: list[BadSample] = []
        if write and file.is_file():
            with understood(file, "delete it: samples that cannot be read are met again"):
                self.add([BadSample(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()])

    def add(self, bad: Iterable[BadSample]) -> None:
        """This rank has met these."""
        for one in bad:
            if (one.shard, one.key) not in self._found:
                self._found[one.shard, one.key] = one
                self._new.append(one)

    def over_ranks(self) -> int:
        """How many different ones all ranks have met. Every rank must call it; InputError where they are too many."""
        own, self._new = self._new, []
        together = _gather(own)
        for bad in together:
            self.add(bad)
        self._new = []
        if self.write and any(together):
            self._keep()
        if self._found:
            refuse_more(sorted(self._found.values()), self.samples, self.share)
        return len(self._found)

    def _keep(self) -> None:
        text = "".join(json.dumps(one._asdict()) + "\n" for one in sorted(self._found.values()))
        temporary = self.file.with_name(f".{self.file.name}")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, self.file)
        log.warning("training samples that cannot be used are left out: %d by now, named in %s", len(self._found), self.file)


def _gather(own: list[BadSample]) -> list[list[BadSample]]:
    """What each rank has."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [own]
    found: list[list[BadSample]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(found, own)
    return found
