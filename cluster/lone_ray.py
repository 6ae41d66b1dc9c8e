"""Ray for one machine, without the services that only a cluster needs: they take memory, and seconds of each start."""

from collections.abc import Iterator
from contextlib import contextmanager

SERVICES = ("start_monitor", "start_log_monitor", "start_api_server")
"""What Ray's head node starts to scale a cluster, to send workers' output to drivers, and for the dashboard. `ray.init` has no
option for the first two, and starts a process for the third even where there is to be no dashboard."""
ENVIRONMENT = {"RAY_prestart_worker_first_driver": "0", "RAY_enable_worker_prestart": "0"}
"""No workers ahead of need: ours have an environment of their own, so that they would stay idle."""


@contextmanager
def without_services() -> Iterator[None]:
    """Ray that starts in this block starts none of `SERVICES`. A Ray that starts them by other names starts whole."""
    from ray._private.node import Node

    kept = {name: getattr(Node, name) for name in SERVICES if hasattr(Node, name)}
    for name in kept:
        setattr(Node, name, _nothing)
    try:
        yield
    finally:
        for name, start in kept.items():
            setattr(Node, name, start)


def plan_without_autoscaler() -> None:
    """Let Ray Data ask this process, and not an actor of its own, how much of the machine is there: all of it, always."""
    import ray
    import ray.data._internal.cluster_autoscaler.rate_based_cluster_autoscaler as autoscaler

    class WholeMachine:
        """As `ray.data._internal.cluster_autoscaler.AutoscalingCoordinator`."""

        def __init__(self, **_: object) -> None:
            self._nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}

        request_resources = cancel_request = _nothing

        def get_reserved_resources(self) -> dict[str, dict[str, float]]:
            return self._nodes

    if hasattr(autoscaler, "DefaultAutoscalingCoordinator"):
        vars(autoscaler)["DefaultAutoscalingCoordinator"] = WholeMachine


def _nothing(*_: object, **__: object) -> None: ...
