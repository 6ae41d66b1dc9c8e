"""How a run is: stages, counts, rates, time left, failures, checkpoints and disk. It only looks, also while the run goes on.

owseg status runs/cc4m
owseg status s3://bucket/cc4m --json
watch -n 10 owseg status runs/cc4m
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cluster.progress import duration
from filtering.images.progress import size
from pipelines.app.arguments import Parser, command_name, run_parsed
from pipelines.app.config import ConfigError
from pipelines.app.run_files import run_files
from pipelines.app.run_state import FRESH_SECONDS, State, state_of
from storage import InputError
from storage.client import StorageConfig

MOST_REASONS = 4
MOST_DAMAGED = 8
PARTS = 6
_SETTING = re.compile(r"\bstorage\.(endpoint|region|anonymous)\b(?:=true)?")
"""Settings that errors of object stores speak of; here they are options."""


def lines_of(state: State) -> Iterator[str]:
    """The state for people."""
    doing = f"process at work: {state['held_by']}" if state["held_by"] else "no process is at work"
    yield f"{state['run_dir']}: {'complete' if state['complete'] else doing}"
    for name, stage in state["stages"].items():
        yield f"  {name:<10}{stage['status']:<12}{'; '.join(_about(stage))}".rstrip()
        for method, training in (stage.get("trainings") or {}).items():
            yield f"    {method:<20}{_training(training)}"
    for method, checkpoint in state["checkpoints"].items():
        step = "a step that is not known" if checkpoint["step"] is None else f"step {checkpoint['step']}"
        yield f"  last checkpoint of {method}: {step}, {size(checkpoint['bytes'])}, {checkpoint['folder']}"
    if state["cells"]:
        yield f"  a sweep: {state['cells']['complete']} of {state['cells']['cells']} cells complete"
    parts, free = state["disk"]["bytes"], state["disk"]["free"]
    told = ", ".join(f"{name} {size(bytes_)}" for name, bytes_ in [*parts.items()][:PARTS])
    left = f", {size(free)} free" if free is not None else ""
    yield f"  disk      {size(sum(parts.values()))} used{f' ({told})' if told else ''}{left}"
    if state["mlflow"]:
        yield f"  MLflow    run {state['mlflow'].get('run_id', '')} in {state['mlflow'].get('tracking_uri', '')}"
    yield from state["damaged"][:MOST_DAMAGED]
    if len(state["damaged"]) > MOST_DAMAGED:
        yield f"and {len(state['damaged']) - MOST_DAMAGED} more damaged files (--json)"


def _about(stage: Mapping[str, Any]) -> Iterator[str]:
    """What a stage's line tells behind its status."""
    if progress := stage.get("progress"):
        left = f", {duration(progress['left'])} left" if progress["left"] is not None else ""
        note = f", {progress['note']}" if progress["note"] else ""
        rate = f", {progress['rate']:.3g} {progress['unit']}/s" if progress["rate"] else ""
        yield f"{progress['label']}: {progress['done']} of {progress['total']} {progress['unit']}{rate}{left}{note}"
        if progress["age"] > FRESH_SECONDS:
            yield f"nothing heard of it for {duration(progress['age'])}"
    if "seconds" in stage:
        yield f"in {duration(stage['seconds'])}"
    if counts := stage.get("counts"):
        yield ", ".join(f"{count} {name}" for name, count in counts.items())
    if failures := sorted((stage.get("failures") or {}).items(), key=lambda pair: -pair[1]):
        more = ", ..." if len(failures) > MOST_REASONS else ""
        yield f"without {', '.join(f'{count} {reason}' for reason, count in failures[:MOST_REASONS])}{more}"
    if scores := stage.get("mIoU"):
        yield f"average mIoU {', '.join(f'{name} {value:.1f}' for name, value in scores.items())}"


def _training(training: Mapping[str, Any]) -> str:
    of = f" of {training['steps']}" if training["steps"] else ""
    loss = f", loss {training['loss']:.3f}" if training["loss"] is not None else ""
    rate = f", {training['images_per_second']:.0f} images/s" if training["images_per_second"] else ""
    return f"step {training['step']}{of}{loss}{rate}"


def show(given: argparse.Namespace) -> None:
    """The verb."""
    storage = StorageConfig(endpoint=given.endpoint, region=given.region, anonymous=given.anonymous)
    try:
        files = run_files(given.run_dir, storage)
        if not files.exists:
            raise ConfigError(f"{given.run_dir}: there is no such folder; give that of a run (run_dir)")
        state = state_of(files)
    except InputError as error:
        raise ConfigError(_SETTING.sub(r"--\1", str(error))) from error
    print(json.dumps(state, indent=2, ensure_ascii=False) if given.json else "\n".join(lines_of(state)), flush=True)


def main(argv: Sequence[str]) -> int:
    """The verb, with the exit codes of all verbs."""
    parser = Parser(usage=f"{command_name()} RUN_DIR [--json]", description=__doc__)
    parser.add_argument("run_dir", metavar="RUN_DIR", help="the run's folder, here or in an object store")
    parser.add_argument("--json", action="store_true", help="the same for programs")
    parser.add_argument("--endpoint", default="", help="as storage.endpoint")
    parser.add_argument("--region", default="", help="as storage.region")
    parser.add_argument("--anonymous", action="store_true", help="ask a public bucket without credentials")
    return run_parsed(parser, argv, show)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
