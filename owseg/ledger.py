"""The sample ledger: which samples each epoch showed, as one digest that neither ranks nor restarts have a say in.

The digest of an epoch is the sum, modulo 2^256, of SHA-256("SCHEDULE EPOCH STEP PLACE KEY") over its samples, as 64 hexadecimal
digits: STEP counts from 0 over all phases, PLACE is the row in the global batch. A sum is the same in any order.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from owseg.snapshots import POSITION

LEDGER = "sample_ledger"
"""The ledger's key in a checkpoint's position; what it is called elsewhere, too."""
SHAPE = {"step": int, "since": int, "epochs": [{"schedule": int, "epoch": int, "samples": int, "digest": str}]}
"""What its file holds, as `storage.understood.shaped` has it."""
_MODULUS = 1 << 256
_Sums = dict[tuple[int, int], tuple[int, int]]
"""Number of samples and sum of their digests, by schedule and epoch."""


class Ledger:
    """What all ranks have been shown since training began."""

    def __init__(self, resume: Path | None) -> None:
        """Goes on from that of a checkpoint; older ones have none: then it tells of the steps since."""
        position = json.loads((resume / POSITION).read_text(encoding="utf-8")) if resume else {}
        kept = position.get(LEDGER, {"since": position.get("step", 0), "epochs": []})
        self.since = int(kept["since"])
        """The first step that it tells of."""
        self._sums: _Sums = {
            (row["schedule"], row["epoch"]): (row["samples"], int(row["digest"], 16)) for row in kept["epochs"]
        }
        self._new: _Sums = {}

    def add(self, schedule: int, epoch: int, step: int, first: int, keys: Sequence[str]) -> None:
        """This rank is shown these samples, whose places in the step's global batch begin with `first`."""
        found = 0
        for place, key in enumerate(keys, start=first):
            text = f"{schedule} {epoch} {step} {place} {key}"
            found += int.from_bytes(hashlib.sha256(text.encode(errors="surrogateescape")).digest())
        _add(self._new, {(schedule, epoch): (len(keys), found)})

    def over_ranks(self) -> dict[str, Any]:
        """The ledger as a checkpoint keeps it, of all ranks, each of which must call it."""
        own, self._new = self._new, {}
        for new in _gather(own):
            _add(self._sums, new)
        epochs = [
            {"schedule": schedule, "epoch": epoch, "samples": samples, "digest": f"{found:064x}"}
            for (schedule, epoch), (samples, found) in sorted(self._sums.items())
        ]
        return {"since": self.since, "epochs": epochs}


def write_ledger(file: Path, told: dict[str, Any]) -> None:
    """Write the ledger for people and trackers, whole or not at all."""
    temporary = file.with_name(f".{file.name}")
    temporary.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, file)


def _add(sums: _Sums, new: _Sums) -> None:
    for epoch, (samples, found) in new.items():
        before = sums.get(epoch, (0, 0))
        sums[epoch] = (before[0] + samples, (before[1] + found) % _MODULUS)


def _gather(own: _Sums) -> list[_Sums]:
    """What each rank has."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [own]
    found: list[_Sums] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(found, own)
    return found
