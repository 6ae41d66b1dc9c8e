"""Ray Train's checkpoints of a training: what is damaged or orphaned goes, so that the last whole one is resumed from."""

import hashlib
import json
import re
import shutil
import tempfile
from pathlib import Path

from filtering.files import write_json
from owseg.snapshots import damage, step_of
from storage.copies import folders_in, remove_folder
from storage.understood import UNUSABLE

LIST = "checkpoint_manager_snapshot.json"
"""Ray's own list of the checkpoints that count, oldest first."""
_FOLDER = re.compile(r"checkpoint_\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(\.\d+)?")


def mend(storage: Path, ray_version: str) -> list[str]:
    """Make a folder one that Ray Train resumes from: its list begins and ends with what is there, and the last one is whole.

    A checkpoint that is not on the list counts only where none on it is whole. Returns a line on each damaged one, and on what
    becomes of the training.
    """
    listed, wrong = _listed(storage, whole=True), list[str]()
    if listed is None:
        wrong.append(f"{storage / LIST}: damaged")
    left = list(listed or [])
    while left and (reason := _damage(storage / left[-1])):
        wrong.append(f"{storage / left.pop()}: a damaged checkpoint ({reason})")
    kept = [name for name in left if (storage / name).is_dir()]
    if not kept:
        kept = [name for name in _folders(storage) if name not in (listed or ()) and not damage(storage / name)][-1:]
    if kept != listed:
        _write_list(storage, kept, ray_version)
    _remove_all_but(storage, kept)
    if not wrong:
        return []
    return [*wrong, f"training resumes from step {step_of(storage / kept[-1])}" if kept else "training begins anew"]


def newest(storage: Path, most: int) -> tuple[list[str], dict[str, str]]:
    """The names of the newest whole checkpoints, so many at most oldest first, and of the others why they are none of them.

    One that is not on Ray's list counts only where none on it is whole, as in `mend`.
    """
    there, listed = _folders(storage), _listed(storage) or []
    kept, others = _whole(storage, [name for name in listed if name in there], most)
    rest = [name for name in there if name not in listed]
    if kept:
        return kept, others | dict.fromkeys(rest, "a checkpoint that is not on Ray's list")
    kept, further = _whole(storage, rest, most)
    return kept, others | further


def _whole(storage: Path, names: list[str], most: int) -> tuple[list[str], dict[str, str]]:
    kept: list[str] = []
    others: dict[str, str] = {}
    for name in reversed(names):
        if len(kept) == most:
            others[name] = "an older checkpoint"
        elif reason := damage(storage / name):
            others[name] = f"a damaged checkpoint ({reason})"
        else:
            kept.append(name)
    return kept[::-1], others


def relist(storage: Path, ray_version: str) -> None:
    """Let Ray's list name the checkpoints that are there."""
    there = _folders(storage)
    if there != _listed(storage, whole=True):
        _write_list(storage, there, ray_version)


def last(storage: Path) -> Path | None:
    """The newest checkpoint of Ray's list."""
    listed = _listed(storage)
    return storage / listed[-1] if listed else None


def sweep(storage: Path) -> None:
    """Remove checkpoints that Ray's list does not name: those that a killed or failed start left."""
    listed = _listed(storage)
    if listed:
        _remove_all_but(storage, listed)


def parts_of(out: Path) -> str:
    """How the names of temporary folders begin in which ranks write their parts of a training's checkpoints."""
    return f"owseg-checkpoint-{hashlib.sha256(str(out).encode()).hexdigest()[:12]}-"


def sweep_parts(out: Path) -> None:
    """Remove from this machine's temporary files what killed ranks of a training left there. Only where none of them writes."""
    for folder in Path(tempfile.gettempdir()).glob(f"{parts_of(out)}*"):
        shutil.rmtree(folder, ignore_errors=True)


def _damage(folder: Path) -> str:
    return damage(folder) if folder.is_dir() else "it is missing"


def _folders(storage: Path) -> list[str]:
    """The checkpoints' folders, oldest first: their names are times."""
    return [name for name in folders_in(storage) if _FOLDER.fullmatch(name)]


def _remove_all_but(storage: Path, kept: list[str]) -> None:
    for name in _folders(storage):
        if name not in kept:
            remove_folder(storage / name)


def _listed(storage: Path, *, whole: bool = False) -> list[str] | None:
    """The names on Ray's list, none where there is no list; None where it cannot be read.

    whole: or where it lacks anything, as Ray takes it whole or not at all.
    """
    try:
        found = json.loads((storage / LIST).read_text(encoding="utf-8"))
        names = [str(result["checkpoint_dir_name"]) for result in found["checkpoint_results"]]
        if whole and (missing := _list_of([""], "").keys() - found.keys()):
            raise KeyError(*missing)
    except FileNotFoundError:
        return []
    except UNUSABLE:
        return None
    return names


def _write_list(storage: Path, names: list[str], ray_version: str) -> None:
    """Put a list of some names in the place of Ray's; none where there are no names."""
    if (storage / LIST).is_dir():
        shutil.rmtree(storage / LIST)
    (storage / LIST).unlink(missing_ok=True)
    if names:
        write_json(storage / LIST, _list_of(names, ray_version))


def _list_of(names: list[str], ray_version: str) -> dict[str, object]:
    """Ray's list, as it writes it after so many reports."""
    results = [{"version": 0, "checkpoint_dir_name": name, "metrics": {}} for name in names]
    nothing = ("pending_training_results", "pending_validation_specs", "validated_checkpoint_dir_names")
    return {
        "ray_version": ray_version,
        "checkpoint_results": results,
        "checkpoint_report_indices": list(range(len(names))),
        "latest_checkpoint_result": results[-1],
        "current_report_index": len(names),
        **{key: [] for key in nothing},
        "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
    }
