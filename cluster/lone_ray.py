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


def plan_without_helpers() -> None:
    """Let Ray Data do without the actors that only a cluster needs: one that shares out its nodes, one that keeps figures for
    the dashboard, one that knows which worker is on which node. Each is a process of 60 to 110 MB."""
    import ray
    import ray.data._internal.cluster_autoscaler.rate_based_cluster_autoscaler as autoscaler
    import ray.data._internal.execution.operators.actor_pool_map_operator as workers
    import ray.data._internal.stats as stats
    import ray.data._internal.utils.cached_ray_internals as locations

    class WholeMachine:
        """As `ray.data._internal.cluster_autoscaler.AutoscalingCoordinator`: all of the machine, always."""

        def __init__(self, **_: object) -> None:
            self._nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}

        request_resources = cancel_request = _nothing

        def get_reserved_resources(self) -> dict[str, dict[str, float]]:
            return self._nodes

    for module, name, instead in (
        (autoscaler, "DefaultAutoscalingCoordinator", WholeMachine),
        (stats, "get_or_create_stats_actor", Nobody),
        (workers, "get_or_create_actor_location_tracker", Nobody),
        (locations, "get_or_create_actor_location_tracker", Nobody),
    ):
        if hasattr(module, name):
            vars(module)[name] = instead


class _Call:
    """A method of `Nobody`, called as an actor's."""

    def __init__(self, answer: object) -> None:
        self._answer = answer

    def remote(self, *_: object) -> object:
        import ray

        return ray.put(self._answer)


class Nobody:
    """In the place of Ray Data's `_StatsActor` and `ActorLocationTracker`: keeps nothing and knows nothing. Workers get one."""

    register_dataset = update_execution_metrics = update_iteration_metrics = update_actor_location = _Call(None)
    get_actor_locations = _Call({})  # Ray Data then goes by where a worker said it is when it started


def _nothing(*_: object, **__: object) -> None: ...
