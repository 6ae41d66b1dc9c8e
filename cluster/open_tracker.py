"""Opening a run's tracker: MLflow's, once its store is known to answer, or the twin that keeps nothing."""

import logging
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cluster.store_uri import store_uri
from cluster.tracking import NullTracker, Tracker, TrackingConfig


@contextmanager
def open_tracker(
    config: TrackingConfig, run_dir: Path, *, name: str, settings: Mapping[str, object], digest: str
) -> Iterator[Tracker]:
    """The parent run of `run_dir`, begun or taken up again, with `settings` (the resolved config) and their digest logged.

    Raises InputError where the store cannot be used; a later outage is only reported.
    """
    if not config.enabled:
        yield NullTracker()
        return
    uri = store_uri(config.uri, run_dir)
    _set_environment()
    from cluster.mlflow_runs import MlflowTracker  # MLflow takes seconds to import

    tracker = MlflowTracker.open(uri, config.experiment, run_dir, name)
    try:
        with tracker.running():
            above = {"mlflow.parentRunId": config.parent} if config.parent else {}
            tracker.tags({"config_digest": digest, **above, **_code_version()})
            tracker.document(settings, "config.yaml")
            yield tracker
    finally:
        tracker.close()


def _set_environment() -> None:
    """MLflow's own settings. Whatever the user has set stays; attempts after the first are the outbox's."""
    for key, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
    }.items():
        os.environ.setdefault(key, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def _code_version() -> dict[str, str]:
    """The commit of this clone; nothing in an installed copy or a submitted job's folder."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return {}

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return {"mlflow.source.git.commit": git("rev-parse", "HEAD"), "git.clean": str(not changed).lower()}
    except (OSError, subprocess.CalledProcessError):
        return {}
