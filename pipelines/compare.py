"""Finished runs side by side: one page with scores, which differences are larger than noise, settings, curves and images.

    owseg compare runs/one runs/two
    owseg compare runs/one s3://bucket/two mlflow:3f2a... --out two.html tracking.uri=http://127.0.0.1:5000

The first run is what the others are compared with. The page is one file without scripts that needs no network; it is also
put beside each run in MLflow. A table goes to the terminal.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.app.arguments import Parser, command_name, run_parsed
from pipelines.app.config import ConfigError, load

if TYPE_CHECKING:  # --help has no need of what takes seconds to load
    from pipelines.app.settings import Config
    from pipelines.comparisons.runs import FinishedRun

PAGE = "compare.html"
MLFLOW = "mlflow:"
SETTINGS = ("storage.", "tracking.")
IN_MLFLOW = "comparisons"
"""Folder of a run's artifacts that has the page."""


def main(argv: Sequence[str]) -> int:
    """The verb, with the exit codes of all verbs."""
    return run_parsed(_parser(), argv, run)


def run(given: argparse.Namespace) -> None:
    """Compare, write the page, log it and print the table."""
    from pipelines.app.settings import Config
    from pipelines.comparisons.page import MOST_RUNS, damaged, write
    from pipelines.comparisons.runs import read_runs
    from pipelines.comparisons.terminal import show

    settings = [word for word in given.runs if word.startswith(SETTINGS) and "=" in word]
    named = [word for word in given.runs if word not in settings]
    if not 2 <= len(named) <= MOST_RUNS:
        raise ConfigError(f"{len(named)} runs are named; give 2 to {MOST_RUNS}: their folders, or mlflow:ID")
    config = load(Config, None, settings)
    out = _place(given.out)
    runs = read_runs([_folder(word, config) for word in named], config.storage)
    show(runs, write(out, runs))
    told = _log(runs, out, config)
    for note in (*damaged(runs), *told):
        print(note)
    print(f"comparison: {out}")


def _place(out: str) -> Path:
    """Where the page goes. Raises ConfigError, before anything is read, where it cannot go."""
    path = Path(out)
    if not path.name or os.path.isdir(path):
        raise ConfigError(f"--out: {out!r} is no name of a file; give one, such as {PAGE}")
    if not os.path.isdir(path.parent):
        raise ConfigError(f"--out: {path.parent} is no folder; make it, or give another")
    attempt = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        attempt.touch()
        attempt.unlink()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"--out: {out[:100]!r} cannot be written ({reason}); give another") from None
    return path


def _folder(word: str, config: "Config") -> str:
    """The folder of a run that is named by it, or by its id in MLflow."""
    if not word.startswith(MLFLOW):
        return word
    from cluster.mlflow_lookup import folder_of
    from cluster.store_uri import store_uri

    return folder_of(store_uri(config.tracking.uri, Path.cwd()), word.removeprefix(MLFLOW))


def _log(runs: "Sequence[FinishedRun]", page: Path, config: "Config") -> list[str]:
    """Put the page beside the runs in MLflow; returns a line on each that it could not be put to."""
    from cluster.mlflow_lookup import put_page
    from cluster.store_uri import store_uri
    from storage.copies import at

    notes = []
    for run in runs:
        if not run.mlflow_id:
            continue
        uri = store_uri(config.tracking.uri or run.config.tracking.uri, run.folder)
        in_store = at(run.folder) and not config.tracking.uri and not run.config.tracking.uri
        reason = "its records lie in the object store" if in_store else put_page(uri, run.mlflow_id, page, IN_MLFLOW)
        if reason:
            notes.append(f"MLflow: {run.name} does not get the page: {reason}")
    return notes


def _parser() -> Parser:
    usage = f"{command_name()} RUN RUN ... [--out FILE] [tracking.uri=...] [storage.key=value ...]"
    parser = Parser(usage=usage, description=__doc__)
    parser.add_argument("runs", nargs="*", help="folders of finished runs, here or in an object store, or mlflow:ID")
    parser.add_argument("--out", default=PAGE, metavar="FILE", help=f"the page (default: {PAGE})")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
