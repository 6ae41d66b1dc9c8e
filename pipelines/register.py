"""A finished run in, its best method in MLflow's model registry: one version of a name, and the alias `champion`.

The alias goes to the version with the best average mIoU. Then models:/NAME@champion is a checkpoint for `segment --checkpoint`,
for weights.METHOD and init.METHOD of a run, and for `mlflow models serve`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.open_tracker import set_client_environment
from cluster.store_uri import MEMORY, artifacts_here, check_uri, sqlite_file, store_uri
from filtering.secrets import holds_mask, masked
from owseg import near_miss
from pipelines.app.arguments import Parser, command_name, run_parsed
from pipelines.app.config import ConfigError
from pipelines.app.run_files import named_folder
from storage.understood import UNUSABLE, shaped

_SUMMARY = {"stages": {"evaluate": {"mIoU": {str: {"average": float}}}}}
_MEMORY = {"tracking_uri": str, "models": {str: str}}
"""What is read of a run's records."""


def main(argv: Sequence[str]) -> int:
    """The verb, with the exit codes of all verbs."""
    return run_parsed(_parser(), argv, register)


def register(arguments: argparse.Namespace) -> None:
    """Register a method of a finished run."""
    run_dir = named_folder(arguments.run_dir).resolve()
    miou, memory = _scores(run_dir), _memory(run_dir)
    uri = _store(arguments.tracking_uri, memory["tracking_uri"], run_dir)
    set_client_environment()
    from cluster.mlflow_registry import CHAMPION, PREFIX, register_best  # MLflow takes seconds to load, as torch does
    from owseg.evaluation.intervals import AVERAGE
    from pipelines.app.records import average_name

    if arguments.method and arguments.method not in miou:
        known = f"{near_miss(arguments.method, miou)}; it scored {', '.join(miou)}"
        raise ConfigError(f"--method: {run_dir} has no method {arguments.method!r}{known}")
    ranked = [arguments.method] if arguments.method else sorted(miou, key=lambda name: -miou[name][AVERAGE])
    metric = f"mIoU/{average_name([*miou[ranked[0]]])}"
    method, made = register_best(uri, memory["models"], ranked, arguments.name, metric)
    print(f"registered: {method} of {run_dir}, {metric} {miou[method][AVERAGE]:.1f}, is version {made.version} of {made.name}")
    champion = f"{PREFIX}{made.name}@{CHAMPION}"
    print(f"{champion} is {'this one' if made.champion else 'another version, with a better average'}")
    print(f"serve it: MLFLOW_TRACKING_URI={masked(uri)} mlflow models serve --env-manager local --model-uri {champion}")


def _store(given: str, remembered: str, run_dir: Path) -> str:
    """The address of the store that is meant. Raises ConfigError or InputError where there cannot be one."""
    if given:
        check_uri(given, "--tracking-uri")
    uri = store_uri(given or ("" if holds_mask(remembered) else remembered), run_dir)
    if (database := sqlite_file(uri)) is not None:
        if not database.is_file():
            name = "--tracking-uri" if given else str(run_dir)
            raise ConfigError(f"{name}: there is no MLflow store at {database}; give --tracking-uri the one that has the run")
        artifacts_here(database)
    return uri


def _scores(run_dir: Path) -> dict[str, dict[str, float]]:
    try:
        summary = json.loads((run_dir / "summary.json").read_bytes())
        scores: dict[str, dict[str, float]] = shaped(summary, _SUMMARY)["stages"]["evaluate"]["mIoU"]
        if not scores:
            raise ValueError
    except UNUSABLE:
        raise ConfigError(f"{run_dir}: holds no finished evaluation; run `evaluate` or `full` into it first") from None
    return scores


def _memory(run_dir: Path) -> dict[str, Any]:
    try:
        memory: dict[str, Any] = shaped(json.loads((run_dir / MEMORY).read_bytes()), _MEMORY)
        return memory
    except UNUSABLE:
        raise ConfigError(
            f"{run_dir}: nothing of it is recorded in MLflow; run `evaluate` again with tracking.enabled=true"
        ) from None


def _parser() -> Parser:
    parser = Parser(usage=f"{command_name()} RUN_DIR [--name NAME] [--method METHOD]", description=__doc__)
    add = parser.add_argument
    add("run_dir", metavar="RUN_DIR", help="the folder of a finished run")
    add("--name", default="owseg", help="the registered model's name (default: %(default)s)")
    add("--method", default="", help="which method; without it the one with the best average among those that have weights")
    add("--tracking-uri", default="", metavar="URI", help="the MLflow store, where mlflow.json holds it without its password")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
