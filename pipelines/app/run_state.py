"""How a run is: which stages are done, under way or not begun, with counts, rates and failures; from its files alone."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from cluster.run_log import FOLDER, PROGRESS
from filtering.secrets import masked
from pipelines.app.measured import settings_of
from pipelines.app.run_files import RunFiles, age, read_json

STAGES = ("filter", "download", "features", "train", "evaluate")
OUTPUTS = {"filter": "corpus/", "download": "shards/", "features": "features/", "train": "train/", "evaluate": "evaluate/"}
FRESH_SECONDS = 60.0
"""Progress that is older tells of a process that hangs or is gone."""
_CHECKPOINT = re.compile(r"train/([^/]+)/checkpoints/(checkpoint_[^/]+)/position\.json")

State = dict[str, Any]


def state_of(files: RunFiles) -> State:
    """All that `owseg status` tells, as --json has it."""
    holder = files.holder()
    config = settings_of(files)
    stages = {name: _stage(files, name, holder, config) for name in _planned(files)}
    mlflow = read_json(files, "mlflow.json")
    return {
        "run_dir": files.name,
        "held_by": holder,
        "complete": all(stages[name]["status"] == "done" for name in wanted_stages(stages, own_shards=_own_shards(config))),
        "stages": stages,
        "checkpoints": _checkpoints(files),
        "disk": {"bytes": _parts(files.sizes), "free": files.free()},
        "mlflow": {key: masked(str(mlflow[key])) for key in ("tracking_uri", "experiment", "run_id") if key in mlflow},
        "cells": _cells(files.sizes),
    }


def wanted_stages(stages: Iterable[str], *, own_shards: bool) -> tuple[str, ...]:
    """Those of the whole chain: tars of the user's own are neither filtered nor downloaded."""
    return tuple(stage for stage in stages if not (own_shards and stage in ("filter", "download")))


def _planned(files: RunFiles) -> list[str]:
    """All stages, but for features where the run shows no trace of any: most methods read none."""
    begun = any(file.startswith(OUTPUTS["features"]) for file in files.sizes)
    return [stage for stage in STAGES if begun or stage != "features"]


def _own_shards(config: Mapping[str, Any]) -> bool:
    return bool((config.get("train") or {}).get("shards"))


def _stage(files: RunFiles, name: str, holder: str, config: Mapping[str, Any]) -> State:
    marker = read_json(files, f"{name}.done.json")
    progress = read_json(files, f"{FOLDER}/{PROGRESS}")
    told = {**_counts(files, name, marker.get("result") or {}), **_trainings(files, name, config)}
    if marker:
        return {"status": "done", "seconds": round(float(marker.get("seconds", 0.0)), 1), **told}
    if holder and str(progress.get("stage", "")).partition("-")[0] == name:
        return {"status": "running", "progress": _progress(progress), **told}
    begun = any(file.startswith(OUTPUTS[name]) for file in files.sizes)
    return {"status": ("running" if holder else "interrupted") if begun else "not begun", **told}


def _progress(progress: Mapping[str, Any]) -> State:
    keys = ("label", "done", "total", "unit", "rate", "left", "note")
    return {**{key: progress.get(key) for key in keys}, "age": round(age(float(progress.get("time", 0.0))), 1)}


def _counts(files: RunFiles, name: str, result: Mapping[str, Any]) -> State:
    """What came of a stage, or of its shards so far."""
    if name == "filter" and result:
        return {"counts": {key: result[key] for key in ("links", "kept", "entities")}, "failures": result["dropped"]}
    if name == "download":
        by_status: Mapping[str, int] = result.get("by_status") or _statuses_so_far(files)
        if by_status:
            failures = {status: count for status, count in by_status.items() if status != "success"}
            counts = {"links": sum(by_status.values()), "images": by_status.get("success", 0)}
            return {"counts": counts, "failures": failures}
    if name == "features" and result:
        return {"counts": {"images": result["images"]}}
    if name == "evaluate" and result:
        return {
            "counts": {"images": sum(result["images"].values())},
            "mIoU": {k: v["average"] for k, v in result["mIoU"].items()},
        }
    return {}


def _statuses_so_far(files: RunFiles) -> Counter[str]:
    """Of the shards that are complete."""
    counts: Counter[str] = Counter()
    for file in files.sizes:
        if file.startswith("shards/_done/"):
            shard = read_json(files, file).get("counts") or {}
            counts.update({key.removeprefix("status/"): n for key, n in shard.items() if key.startswith("status/")})
    return counts


def _trainings(files: RunFiles, name: str, config: Mapping[str, Any]) -> State:
    """The last logged step of each training."""
    if name != "train":
        return {}
    found = {}
    for file in files.sizes:
        match = re.fullmatch(r"train/([^/]+)/metrics\.jsonl", file)
        line = _last_line(files.read(file) or b"") if match else {}
        if match and line:
            told = {"step": line["step"], "steps": _steps(config, match[1]), "loss": line.get("loss/total")}
            found[match[1]] = {**told, "images_per_second": line.get("samples_per_second")}
    return {"trainings": found} if found else {}


def _last_line(log: bytes) -> State:
    for text in reversed(log.decode(errors="replace").split("\n")[:-1]):
        with suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict) and "step" in line:
                return line
    return {}


def _steps(config: Mapping[str, Any], method: str) -> int | None:
    settings = (config.get("method_settings") or {}).get(method) or {}
    steps = [phase.get("steps", 0) for phase in settings.get("phases") or [] if isinstance(phase, dict)]
    return sum(steps) or None


def _checkpoints(files: RunFiles) -> State:
    """The newest checkpoint of each training that has one: its folder, step and bytes."""
    newest: dict[str, str] = {}
    for file in sorted(files.sizes):  # their names begin with the time
        if match := _CHECKPOINT.fullmatch(file):
            newest[match[1]] = match[2]
    found = {}
    for method, name in newest.items():
        folder = f"train/{method}/checkpoints/{name}"
        size = sum(size for file, size in files.sizes.items() if file.startswith(f"{folder}/"))
        found[method] = {"folder": folder, "step": read_json(files, f"{folder}/position.json").get("step"), "bytes": size}
    return found


def _parts(sizes: Mapping[str, int]) -> dict[str, int]:
    """Bytes by what lies directly in the folder."""
    parts: Counter[str] = Counter()
    for file, size in sizes.items():
        parts[file.partition("/")[0]] += size
    return dict(parts.most_common())


def _cells(sizes: Iterable[str]) -> State:
    """Of a sweep: its cells, and how many of them are complete."""
    cells = {file.split("/")[1] for file in sizes if file.startswith("cells/") and file.count("/") > 1}
    done = {file.split("/")[1] for file in sizes if re.fullmatch(r"cells/[^/]+/summary\.json", file)}
    return {"cells": len(cells), "complete": len(done)} if cells else {}
