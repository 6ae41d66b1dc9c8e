"""Whole runs as Ray tasks beside each other: each drives its own training or evaluation, and takes a share of the cluster."""

from collections.abc import Callable
from typing import Any, Generic, Self, TypeVar

from cluster.session import SessionConfig, ensure_session
from cluster.train_config import TrainConfig

R = TypeVar("R")
SLACK = 1e-9
STOP_SECONDS = 15.0
"""How long calls that are stopped have to put things away."""


class TaskPool(Generic[R]):
    """Calls of `function` on this process's node, as many at once as their shares of the cluster allow.

    A call itself asks Ray for nothing: what it starts does.
    """

    def __init__(self, function: Callable[..., R], session: SessionConfig) -> None:
        ensure_session(session)
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._remote = ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=here)
        self._resources: dict[str, float] = ray.cluster_resources()
        self._running: dict[Any, tuple[Any, float]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Interrupt what still runs, as Ctrl-C would, and give it time to record that."""
        import ray

        if self._running:
            for call in self._running:
                ray.cancel(call)
            ray.wait(list(self._running), num_returns=len(self._running), timeout=STOP_SECONDS)

    @property
    def running(self) -> int:
        """How many calls are under way."""
        return len(self._running)

    def share_of(self, train: TrainConfig) -> float:
        """The part of the cluster's GPUs or cores that a training keeps busy: of cores it asks Ray for fewer than it uses."""
        if train.use_gpu:
            return train.most_workers / max(self._resources.get("GPU", 0), 1)
        return train.most_workers * (train.threads + train.loader_workers) / max(self._resources.get("CPU", 1), 1)

    def fits(self, share: float) -> bool:
        """Whether a call with this share may start now; one always may run alone."""
        return not self._running or sum(taken for _, taken in self._running.values()) + share <= 1 + SLACK

    def start(self, key: object, *arguments: object, share: float) -> None:
        """Start a call; `wait` returns its key."""
        self._running[self._remote.remote(*arguments)] = (key, share)

    def wait(self) -> tuple[Any, R | Exception]:
        """The key of a call that has ended, the first to do so, and its result, or why its process broke off."""
        import ray

        (ended, *_), _ = ray.wait(list(self._running), num_returns=1)
        key, _ = self._running.pop(ended)
        try:
            return key, ray.get(ended)
        except ray.exceptions.RayError as error:
            return key, error
