"""How a run is: which stages are done, under way or not begun, with counts, rates and failures; from its files alone.

A file that is damaged takes away no more than what it tells of: it is named among "damaged".
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from cluster.run_log import FOLDER, PROGRESS
from filtering.secrets import masked
from pipelines.app.measured import settings_of
from pipelines.app.run_files import RunFiles, age, read_json
from storage.understood import LEFT_OUT, Noted, fits, json_lines, shaped

STAGES = ("filter", "download", "features", "train", "evaluate")
OUTPUTS = {"filter": "corpus/", "download": "shards/", "features": "features/", "train": "train/", "evaluate": "evaluate/"}
FRESH_SECONDS = 60.0
"""Progress that is older tells of a process that hangs or is gone."""
CONFIG = "config.yaml"
_CHECKPOINT = re.compile(r"train/([^/]+)/checkpoints/(checkpoint_[^/]+)/position\.json")
_COUNTS = {str: int}
_RESULTS: dict[str, dict[Any, Any]] = {
    "filter": {"links": int, "kept": int, "entities": int, "dropped": _COUNTS},
    "download": {"by_status": _COUNTS},
    "features": {"images": int},
    "evaluate": {"images": _COUNTS, "mIoU": {str: {"average": float}}},
}
"""What is told of what a complete stage came to."""
_NUMBER = (float, None)
_PROGRESS = {
    "stage": str, "label": str, "done": int, "total": int, "unit": str, "rate": _NUMBER, "left": _NUMBER, "note": str,
    "time": float,
}  # fmt: skip
_STEP = {"step": int}

State = dict[str, Any]


def state_of(files: RunFiles) -> State:
    """All that `owseg status` tells, as --json has it."""
    holder, damaged = files.holder(), list[str]()
    config = _settings(files, damaged)
    stages = {name: _stage(files, name, holder, config, damaged) for name in _planned(files)}
    checkpoints, mlflow = _checkpoints(files, damaged), _mlflow(files, damaged)
    return {
        "run_dir": files.name,
        "held_by": holder,
        "complete": all(stages[name]["status"] == "done" for name in wanted_stages(stages, own_shards=_own_shards(config))),
        "stages": stages,
        "checkpoints": checkpoints,
        "disk": {"bytes": _parts(files.sizes), "free": files.free()},
        "mlflow": mlflow,
        "cells": _cells(files.sizes),
        "damaged": [*dict.fromkeys(damaged)],
    }


def wanted_stages(stages: Iterable[str], *, own_shards: bool) -> tuple[str, ...]:
    """Those of the whole chain: tars of the user's own are neither filtered nor downloaded."""
    return tuple(stage for stage in stages if not (own_shards and stage in ("filter", "download")))


def _planned(files: RunFiles) -> list[str]:
    """All stages, but for features where the run shows no trace of any: most methods read none."""
    begun = any(file.startswith(OUTPUTS["features"]) for file in files.sizes)
    return [stage for stage in STAGES if begun or stage != "features"]


def _settings(files: RunFiles, damaged: list[str]) -> dict[str, Any]:
    found = settings_of(files)
    if CONFIG in files.sizes and not found:
        damaged.append(f"{files.name}/{CONFIG}: is damaged (it holds no settings); {LEFT_OUT}")
    return found


def _own_shards(config: Mapping[str, Any]) -> bool:
    return fits(config, {"train": {"shards": object}}) and bool(config["train"]["shards"])


def _mlflow(files: RunFiles, damaged: list[str]) -> dict[str, str]:
    """Where the run is recorded, as far as it is."""
    told = read_json(files, "mlflow.json", damaged)
    with Noted(f"{files.name}/mlflow.json", damaged):
        here = {key: told[key] for key in ("tracking_uri", "experiment", "run_id") if key in told}
        return {key: masked(value) for key, value in shaped(here, {str: str}).items()}
    return {}


def _stage(files: RunFiles, name: str, holder: str, config: Mapping[str, Any], damaged: list[str]) -> State:
    marker = _marker(files, name, damaged)
    told = {**_counts(files, name, marker, damaged), **_trainings(files, name, config)}
    if marker:
        with Noted(f"{files.name}/{name}.done.json", damaged):
            return {"status": "done", "seconds": round(shaped(marker.get("seconds", 0.0), float, "seconds"), 1), **told}
        return {"status": "done", **told}
    progress = read_json(files, f"{FOLDER}/{PROGRESS}", damaged) if holder else {}
    if str(progress.get("stage", "")).partition("-")[0] == name:
        with Noted(f"{files.name}/{FOLDER}/{PROGRESS}", damaged):
            return {"status": "running", "progress": _progress(progress), **told}
        return {"status": "running", **told}
    begun = any(file.startswith(OUTPUTS[name]) for file in files.sizes)
    return {"status": ("running" if holder else "interrupted") if begun else "not begun", **told}


def _progress(progress: Mapping[str, Any]) -> State:
    shaped(progress, _PROGRESS)
    return {**{key: progress[key] for key in _PROGRESS if key not in ("stage", "time")}, "age": round(age(progress["time"]), 1)}


def _marker(files: RunFiles, name: str, damaged: list[str]) -> State:
    """What a complete stage left; {} where there is none, or none that the run's next start would take for one."""
    file = f"{name}.done.json"
    marker = read_json(files, file, damaged)
    with Noted(f"{files.name}/{file}", damaged, "the run's next start makes it anew"):
        shaped(marker.get("result", {}), {}, "result")
        return marker
    return {}


def _counts(files: RunFiles, name: str, marker: Mapping[str, Any], damaged: list[str]) -> State:
    """What came of a stage, or of its shards so far."""
    result = marker.get("result") or {}
    if name == "download" and "by_status" not in result:
        result = {"by_status": _statuses_so_far(files, damaged)}
    if not result or name not in _RESULTS:
        return {}
    with Noted(f"{files.name}/{name}.done.json", damaged):
        return _told(name, shaped(result, _RESULTS[name], "result"))
    return {}


def _told(name: str, result: Mapping[str, Any]) -> State:
    if name == "filter":
        return {"counts": {key: result[key] for key in ("links", "kept", "entities")}, "failures": result["dropped"]}
    if name == "download":
        by_status: Mapping[str, int] = result["by_status"]
        failures = {status: count for status, count in by_status.items() if status != "success"}
        counts = {"links": sum(by_status.values()), "images": by_status.get("success", 0)}
        return {"counts": counts, "failures": failures} if by_status else {}
    if name == "features":
        return {"counts": {"images": result["images"]}}
    return {
        "counts": {"images": sum(result["images"].values())},
        "mIoU": {method: row["average"] for method, row in result["mIoU"].items()},
    }


def _statuses_so_far(files: RunFiles, damaged: list[str]) -> Counter[str]:
    """Of the shards that are complete."""
    counts: Counter[str] = Counter()
    for file in files.sizes:
        if file.startswith("shards/_done/"):
            told = read_json(files, file, damaged)
            with Noted(f"{files.name}/{file}", damaged):
                shard = shaped(told.get("counts") or {}, {str: object}, "counts")
                found = {key.removeprefix("status/"): n for key, n in shard.items() if key.startswith("status/")}
                counts.update(shaped(found, _COUNTS, "counts"))
    return counts


def _trainings(files: RunFiles, name: str, config: Mapping[str, Any]) -> State:
    """The last logged step of each training."""
    if name != "train":
        return {}
    found = {}
    for file in files.sizes:
        match = re.fullmatch(r"train/([^/]+)/metrics\.jsonl", file)
        lines = [line for line in json_lines(files.read(file) or b"") if fits(line, _STEP)] if match else []
        if match and lines:
            told = {"step": lines[-1]["step"], "steps": _steps(config, match[1]), "loss": _number(lines[-1], "loss/total")}
            found[match[1]] = {**told, "images_per_second": _number(lines[-1], "samples_per_second")}
    return {"trainings": found} if found else {}


def _number(line: Mapping[str, Any], key: str) -> float | None:
    """What a line of a log has; None where it has no finite number there."""
    return line[key] if fits(line, {key: float}) else None


def _steps(config: Mapping[str, Any], method: str) -> int | None:
    if not fits(config, {"method_settings": {method: {"phases": [{}]}}}):
        return None
    phases = config["method_settings"][method]["phases"]
    return sum(phase["steps"] for phase in phases if fits(phase, {"steps": int})) or None


def _checkpoints(files: RunFiles, damaged: list[str]) -> State:
    """The newest checkpoint of each training that has one: its folder, step and bytes."""
    newest: dict[str, str] = {}
    for file in sorted(files.sizes):  # their names begin with the time
        if match := _CHECKPOINT.fullmatch(file):
            newest[match[1]] = match[2]
    found = {}
    for method, name in newest.items():
        folder = f"train/{method}/checkpoints/{name}"
        size = sum(size for file, size in files.sizes.items() if file.startswith(f"{folder}/"))
        position, step = f"{folder}/position.json", None
        with Noted(f"{files.name}/{position}", damaged, "the run's next start looks for a whole one"):
            step = shaped(read_json(files, position, damaged) or {"step": None}, {"step": (int, None)})["step"]
        found[method] = {"folder": folder, "step": step, "bytes": size}
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
