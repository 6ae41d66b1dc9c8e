"""Opening a run's tracker: MLflow's, once its store is known to answer, or the twin that keeps nothing."""

import logging
import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cluster import InputError
from cluster.tracking import NullTracker, Tracker, TrackingConfig

REACHABILITY_SECONDS = 8.0


@contextmanager
def open_tracker(
    config: TrackingConfig, run_dir: Path, *, name: str, settings: Mapping[str, object], digest: str
) -> Iterator[Tracker]:
    """The parent run of `run_dir`, begun or taken up again, with `settings` (the resolved config) and their digest logged.

    Raises InputError where the store cannot be reached; a later outage is only reported.
    """
    if not config.enabled:
        yield NullTracker()
        return
    uri = config.uri or f"sqlite:///{run_dir.resolve() / 'mlflow.db'}"
    _prepare(uri)
    from cluster.mlflow_runs import MlflowTracker  # MLflow takes seconds to import

    tracker = MlflowTracker.open(uri, config.experiment, run_dir, name)
    with tracker.running():
        above = {"mlflow.parentRunId": config.parent} if config.parent else {}
        tracker.tags({"config_digest": digest, **above, **_code_version()})
        tracker.document(settings, "config.yaml")
        yield tracker


def _prepare(uri: str) -> None:
    """Set MLflow's environment, and find out whether its server answers before any work is done."""
    for key, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
    }.items():
        os.environ.setdefault(key, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    if not uri.startswith("http"):
        return
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=REACHABILITY_SECONDS):
            pass
    except urllib.error.HTTPError:
        pass  # something answers; the client finds out what
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise InputError(
            f"tracking.uri: no MLflow server answers at {uri} ({reason}); start one, correct it, or set tracking.enabled=false"
        ) from None


def _code_version() -> dict[str, str]:
    """The commit of this clone; nothing in an installed copy or a submitted job's folder."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return {}

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, encoding="utf-8", check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return {"mlflow.source.git.commit": git("rev-parse", "HEAD"), "git.clean": str(not changed).lower()}
    except (OSError, subprocess.CalledProcessError):
        return {}
