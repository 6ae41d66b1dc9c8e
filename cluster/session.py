"""One Ray session per process: the cluster that a submitted job runs in, or a local one started when work first needs it."""

import ctypes
import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import InputError

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 8.0


@dataclass(frozen=True, kw_only=True)
class SessionConfig:
    """Where heavy work runs."""

    address: str = ""
    """Address of a running Ray cluster (host:6379, or "auto"); empty: the job's own cluster, or a local one on this machine."""
    num_cpus: int | None = None
    """CPUs that a local Ray may use; null: all of this machine."""
    object_store_mb: int = 256
    """Shared memory of a local Ray, in MiB; the stages pass file names, not data, so little is needed."""
    data_workers: int | None = None
    """Processes that filter and download at the same time; null: one per CPU of the cluster."""
    data_label: str = ""
    """Filter and download only on Ray nodes with this label, key=value (ray_cluster.yaml has role=data); empty: anywhere."""
    train_label: str = ""
    """Train and evaluate only on Ray nodes with this label, key=value (ray_cluster.yaml has role=train); empty: anywhere."""

    def __post_init__(self) -> None:
        for name, least in (("num_cpus", 1), ("object_store_mb", 80), ("data_workers", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name} must be at least {least}, not {value}")
        for name in ("data_label", "train_label"):
            selector_of(getattr(self, name), name)


def selector_of(label: str, name: str = "label") -> dict[str, str] | None:
    """Ray's label selector for "key=value"; None for the empty label."""
    key, equals, value = label.partition("=")
    if label and not (key and equals and value):
        raise InputError(f"{name} must be key=value (for example role=data) or empty, not '{label}'")
    return {key: value} if label else None


def ensure_session(config: SessionConfig) -> None:
    """Connect this process to Ray unless it already is. Raises InputError where the cluster cannot be reached."""
    _set_environment(local=not _address(config))
    import ray

    if ray.is_initialized():
        return
    common: dict[str, Any] = {
        "runtime_env": {"env_vars": _worker_environment(local=not _address(config))},
        "logging_level": logging.WARNING,
        "log_to_driver": False,  # what workers print is in Ray's session folder; progress and errors come through us
    }
    if not _address(config):
        common["runtime_env"]["worker_process_setup_hook"] = f"{__name__}.{prepare_local_worker.__name__}"
        with kept_signal_handlers():
            ray.init(
                address="local",  # otherwise Ray joins whatever `ray start` left its address in /tmp/ray, a dead cluster too
                num_cpus=config.num_cpus,
                object_store_memory=config.object_store_mb * 2**20,
                include_dashboard=False,
                **common,
            )
        return
    try:
        _probe(_address(config))
        # A submitted job finds its cluster in RAY_ADDRESS; Ray refuses sizes for a cluster that already runs.
        with kept_signal_handlers():
            ray.init(address=config.address or None, **common)
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"session.address: no Ray cluster answers at '{_address(config)}' ({reason}); start one or leave it empty"
        ) from None


@contextmanager
def kept_signal_handlers() -> Iterator[None]:
    """Put back what SIGINT and SIGTERM did before the block: Ray sets handlers of its own, and leaves them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _probe(address: str) -> None:
    """Raise OSError where nobody listens: Ray itself would try for ever."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()


def prepare_local_worker() -> None:
    """Run by Ray at the start of each worker of a local session.

    When the driver is killed, the kernel ends the raylet with it, but Ray's workers notice that only after seconds, in which
    they would keep writing where the next start already works. So the kernel shall end them too.
    """
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    # It asks the dashboard, which a local session does without, twice a second, and warns each time.
    cleaner = "ray.train.v2._internal.execution.controller.placement_group_cleaner"
    logging.getLogger(cleaner).setLevel(logging.ERROR)


def close_session() -> None:
    """Leave Ray, and stop it where this process started it. Only the command line calls this, when all is done."""
    import ray

    ray.shutdown()


def _address(config: SessionConfig) -> str:
    return config.address or os.environ.get("RAY_ADDRESS", "")


def is_shared(config: SessionConfig) -> bool:
    """Whether work goes to a cluster that runs by itself, and not to this process' own on this machine."""
    return bool(_address(config))


def _set_environment(*, local: bool) -> None:
    """Ray's own settings, which it reads when it is imported. Whatever the user has set stays."""
    defaults = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "RAY_TRAIN_V2_ENABLED": "1",
    }
    if local and "RAY_AUTH_MODE" not in os.environ:
        # A token of this session's own, in memory only. Left to itself Ray writes one to the home folder, and every later
        # `ray start` there demands it from clients that know nothing of it.
        defaults |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def _worker_environment(*, local: bool) -> dict[str, str]:
    """What worker processes get. Names set outside are left out: Ray refuses a name that the job sets too."""
    wanted = {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if local and not any(Path("/dev").glob("nvidia[0-9]*")):
        wanted["DS_ACCELERATOR"] = "cpu"  # DeepSpeed otherwise looks for one
    wanted = {name: value for name, value in wanted.items() if name not in os.environ}
    if local:
        # The very packages that this process runs: a clone wins over an installed copy. A submitted job's working_dir is
        # put on the path by Ray itself.
        root = str(Path(__file__).resolve().parents[1])
        wanted["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return wanted
