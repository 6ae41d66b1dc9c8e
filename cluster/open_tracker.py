"""Opening a run's tracker: MLflow's, once its store is known to answer, or the twin that keeps nothing."""

import getpass
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cluster.store_uri import store_uri
from cluster.tracking import NullTracker, Tracker, TrackingConfig
from owseg.fields import flatten


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
    set_client_environment()
    from cluster.mlflow_runs import MlflowTracker  # MLflow takes seconds to import

    tracker = MlflowTracker.open(uri, config.experiment, run_dir, name)
    try:
        with tracker.running():
            above = {"mlflow.parentRunId": config.parent} if config.parent else {}
            tracker.everywhere = {"config_digest": digest, **_code_version(), **_environment()}
            tracker.tags({**tracker.everywhere, **above})
            tracker.params(as_parameters(flatten(settings)))
            tracker.document(settings, "config.yaml")
            yield tracker
    finally:
        tracker.close(interrupted=isinstance(sys.exception(), KeyboardInterrupt))


def as_parameters(settings: Iterable[tuple[str, object]]) -> dict[str, object]:
    """Settings as parameters: MLflow shows an empty one as if it were missing."""
    return {key: "none" if value is None or value in ("", [], {}) else value for key, value in settings if key}


def _environment() -> dict[str, str]:
    """Who recorded a run, by what command, on what kind of machine, with which versions."""
    versions = {}
    for name in ("torch", "ray", "deepspeed", "mlflow"):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "mlflow.user": _user(),
        "mlflow.source.name": "/".join(Path(sys.argv[0]).parts[-2:]),
        "mlflow.source.type": "LOCAL",
        "python": platform.python_version(),
        **versions,
        "host": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


def set_client_environment() -> None:
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
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, encoding="utf-8", check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return {"mlflow.source.git.commit": git("rev-parse", "HEAD"), "git.clean": str(not changed).lower()}
    except (OSError, subprocess.CalledProcessError):
        return {}
