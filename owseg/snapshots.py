"""Checkpoints of a training under way: each lists its files, so that damage is seen before anything is loaded."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from safetensors import safe_open

from storage.understood import MISFITS

POSITION = "position.json"
"""The step after which a checkpoint was written."""


def write_part(folder: Path, rank: int, ranks: int, write: Callable[[Path], None]) -> None:
    """Let a rank write its part of a checkpoint, with a list of its files; all ranks may write theirs into one folder."""
    own = folder / f".rank{rank}"
    own.mkdir()
    write(own)
    files = sorted(path for path in own.rglob("*") if path.is_file())
    told = {path.relative_to(own).as_posix(): [path.stat().st_size, _sha256(path)] for path in files}
    for path in files:
        there = folder / path.relative_to(own)
        there.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, there)
    for path in sorted((path for path in own.rglob("*")), reverse=True):
        path.rmdir()
    own.rmdir()
    _list(folder, rank).write_text(json.dumps({"ranks": ranks, "files": told}), encoding="utf-8")


def step_of(folder: Path) -> int:
    """The steps that a whole checkpoint has behind it."""
    return int(json.loads((folder / POSITION).read_text(encoding="utf-8"))["step"])


def damage(folder: Path) -> str:
    """What is wrong with a checkpoint, in words; empty where it is as it was written."""
    try:
        if not any(folder.glob("files.*.json")) and not any(folder.glob("optimizer.*")):
            return _damage_of_old(folder)
        ranks = int(json.loads(_list(folder, 0).read_text(encoding="utf-8"))["ranks"])
        if (lists := len(list(folder.glob("files.*.json")))) > ranks:
            return f"{lists} ranks have listed their files, and there were {ranks}"
        for rank in range(ranks):
            files = json.loads(_list(folder, rank).read_text(encoding="utf-8"))["files"]
            for name, (size, digest) in files.items():
                path = folder / name
                if path.stat().st_size != size:
                    return f"{name} has {path.stat().st_size} bytes of {size}"
                if _sha256(path) != digest:
                    return f"{name} is not as it was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"its list of files cannot be read ({error.strerror})"
    except MISFITS as error:
        return f"its list of files cannot be read ({error!r})"
    return ""


def newest_whole(folders: Iterable[Path]) -> tuple[Path | None, list[str]]:
    """The first whole checkpoint of some, newest first, and a line on each damaged one before it."""
    wrong: list[str] = []
    for folder in folders:
        if folder.is_dir():
            if not (reason := damage(folder)):
                return folder, wrong
            wrong.append(f"{folder}: a damaged checkpoint ({reason})")
    return None, wrong


def _damage_of_old(folder: Path) -> str:
    """The same for a checkpoint of a version that listed no files, as far as can be told."""
    step_of(folder)
    for weights in folder.glob("*.safetensors"):
        try:
            with safe_open(weights, "pt"):
                return ""
        except Exception as error:  # safetensors raises its own untyped errors for truncated and foreign files
            return f"{weights.name} cannot be read ({error})"
    return "its weights are missing"


def _list(folder: Path, rank: int) -> Path:
    return folder / f"files.{rank}.json"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
