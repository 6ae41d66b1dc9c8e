"""One Ray session per process: the cluster that a submitted job runs in, or a local one started when work first needs it."""

import ctypes
import logging
import os
import secrets
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import InputError
from cluster.connection import VARIABLE, check_cluster, given_address, no_cluster
from cluster.failures import machine_problem
from cluster.lone_ray import ENVIRONMENT, without_services
from cluster.ray_messages import tell_in_a_line, without_native_lines
from cluster.waiting import Waiting
from cluster.without_wandb import without_wandb

logger = logging.getLogger(__name__)

LONGEST_REASON = 300
OOM_RETRIES = 3
"""How often Ray repeats work that ran out of memory; by itself it would for ever."""


@dataclass(frozen=True, kw_only=True)
class SessionConfig:
    """Where heavy work runs."""

    address: str = ""
    """Address of a running Ray cluster (host:6379, ray://host:10001 or auto); empty: the job's own, or a local one."""
    num_cpus: int | None = None
    """CPUs that a local Ray may use; null: all of this machine."""
    object_store_mb: int = 256
    """Shared memory of a local Ray, in MiB; the stages pass file names, not data, so little is needed."""
    metrics_port: int | None = None
    """Port on which a local Ray offers its metrics and this program's to Prometheus; null: one that is free."""
    data_workers: int | None = None
    """Workers that filter, download or make features at the same time; null: as many as keep the CPUs busy that are there when
    they begin (one for each; one for two where download.image.pixels is img2dataset). More than fit make a cluster's autoscaler
    start nodes."""
    data_label: str = ""
    """Filter, download and make features only on Ray nodes with this label, key=value (ray_cluster.yaml has role=data); empty:
    anywhere."""
    train_label: str = ""
    """Train and evaluate only on Ray nodes with this label, key=value (ray_cluster.yaml has role=train); empty: anywhere."""

    def __post_init__(self) -> None:
        for name, least in (("num_cpus", 1), ("object_store_mb", 80), ("data_workers", 1), ("metrics_port", 1)):
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
    """Connect this process to Ray unless it already is.

    Raises InputError where the cluster cannot be reached, or where Ray does not start on this machine.
    """
    address, name = given_address(config.address)
    set_environment(local=not address)
    with Waiting(f"Ray: connecting to {address}" if address else "Ray: starting on this machine"):
        import ray

        if ray.is_initialized():
            return
        tell_in_a_line()
        common: dict[str, Any] = {
            "runtime_env": {"env_vars": _worker_environment(local=not address)},
            "logging_level": logging.WARNING,
            "log_to_driver": False,  # what workers print is in Ray's session folder; progress and errors come through us
        }
        if address:
            _connect(address, name, common)
        else:
            _start(config, common)


def _connect(address: str, name: str, common: dict[str, Any]) -> None:
    import ray

    check_cluster(address, name)
    try:
        # A submitted job finds its cluster in RAY_ADDRESS; Ray refuses sizes for a cluster that already runs.
        with kept_signal_handlers(), without_native_lines():
            ray.init(address=None if name == VARIABLE else address, **common)
    except (OSError, RuntimeError, ValueError) as error:
        raise no_cluster(name, address, " ".join(str(error).split())[:LONGEST_REASON]) from None


def _start(config: SessionConfig, common: dict[str, Any]) -> None:
    import ray

    common["runtime_env"]["worker_process_setup_hook"] = f"{__name__}.{prepare_local_worker.__name__}"
    try:
        with kept_signal_handlers(), without_native_lines(), without_services():
            ray.init(
                address="local",  # otherwise Ray joins whatever `ray start` left its address in /tmp/ray, a dead cluster too
                num_cpus=config.num_cpus,
                object_store_memory=config.object_store_mb * 2**20,
                include_dashboard=False,
                _metrics_export_port=config.metrics_port,
                **common,
            )
    except (TypeError, AttributeError, AssertionError, ImportError):
        raise
    except Exception as error:  # Ray raises plain ones, too, for a machine that is too busy
        raise InputError(f"session: Ray does not start on this machine: {_why(error)}") from error


def _why(error: Exception) -> str:
    """Why Ray does not start, and what to do."""
    reason = " ".join(str(error).split())
    if "AF_UNIX path" in reason:
        folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
        return f"the path of its folder ({folder}) is too long for sockets; set RAY_TMPDIR to a short one, such as /tmp"
    if problem := machine_problem(error):
        return problem
    if isinstance(error, OSError):
        return f"{reason}; set RAY_TMPDIR to a folder that can be written"
    if "object_store_memory" in reason or "object store" in reason:
        return f"{reason[:LONGEST_REASON]}; set session.object_store_mb, or give /dev/shm more room"
    return f"{reason[:LONGEST_REASON]}; the machine may be too busy or short of memory or space: free some, and try again"


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


def prepare_local_worker() -> None:
    """Run by Ray at the start of each worker of a local session.

    When the driver is killed, the kernel ends the raylet with it, but Ray's workers notice that only after seconds, in which
    they would keep writing where the next start already works. So the kernel shall end them too.
    """
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    without_wandb()
    # It asks the dashboard, which a local session does without, twice a second, and warns each time.
    cleaner = "ray.train.v2._internal.execution.controller.placement_group_cleaner"
    logging.getLogger(cleaner).setLevel(logging.ERROR)


def close_session() -> None:
    """Leave Ray, and stop it where this process started it. Only the command line calls this, when all is done."""
    import ray

    ray.shutdown()


def is_shared(config: SessionConfig) -> bool:
    """Whether work goes to a cluster that runs by itself, and not to this process' own on this machine."""
    return bool(given_address(config.address)[0])


def set_environment(*, local: bool) -> None:
    """Ray's own settings, which it reads when it is imported. Whatever the user has set stays."""
    defaults = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "RAY_TRAIN_V2_ENABLED": "1",
        "RAY_task_oom_retries": str(OOM_RETRIES),
    }
    if local:
        defaults |= ENVIRONMENT
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
