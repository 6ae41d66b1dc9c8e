"""How busy the machines are while a stage works: processors, memory, disk and GPUs of each node, as MLflow's system metrics."""

import importlib
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol

SECONDS_BETWEEN_LOOKS = 10.0
SECONDS_FOR_ANSWER = 5.0
KINDS = {"cpu_monitor": "CPUMonitor", "disk_monitor": "DiskMonitor", "gpu_monitor": "GPUMonitor"}
"""MLflow's own monitors, by module."""


class Records(Protocol):
    """What numbers go to."""

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None: ...


class Load:
    """The load of the machine that it is made on; the first look at the processors starts their count."""

    def __init__(self) -> None:
        self.monitors = []
        for module, kind in KINDS.items():
            with suppress(ImportError, RuntimeError):  # no GPU here, or nothing to read it with
                self.monitors.append(getattr(importlib.import_module(f"mlflow.system_metrics.metrics.{module}"), kind)())
        self.look()

    def look(self) -> dict[str, float]:
        """Numbers since the last look by name: "cpu_utilization_percentage", ..."""
        found: dict[str, float] = {}
        for monitor in self.monitors:
            monitor.collect_metrics()
            found |= {name: float(value) for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return found


class Loads:
    """Looks at this machine, and at each other node of the Ray cluster, while there are runs that want to know."""

    def __init__(self) -> None:
        self._runs: list[Records] = []
        self._lock = threading.Lock()  # one look at a time: each says what was since the last
        self._here: Load | None = None
        self._elsewhere = _OtherNodes()
        self._changed = threading.Event()

    @contextmanager
    def told_to(self, run: Records) -> Iterator[None]:
        """Record them under each node's name while the block runs, at its end at the latest."""
        with self._lock:
            self._here = self._here or Load()
            self._runs.append(run)
            if len(self._runs) == 1:
                self._changed = threading.Event()
                threading.Thread(target=self._follow, args=(self._changed,), name="system metrics", daemon=True).start()
        try:
            yield
        finally:
            self._look(here_alone=True)
            with self._lock:
                self._runs.remove(run)
                if not self._runs:
                    self._changed.set()
                    self._elsewhere.forget()

    def _follow(self, ended: threading.Event) -> None:
        while not ended.wait(SECONDS_BETWEEN_LOOKS):
            self._look()

    def _look(self, *, here_alone: bool = False) -> None:
        with self._lock:
            if not self._runs or self._here is None:
                return
            loads = {socket.gethostname(): self._here.look(), **({} if here_alone else self._elsewhere.look())}
            values = {f"system/{node}/{name}": value for node, load in loads.items() for name, value in load.items()}
            for run in self._runs if values else ():
                run.metrics(values, int(time.time()))  # steps that go on where a resumed run does


class _OtherNodes:
    """The nodes of the Ray cluster that this process is connected to, but for its own; none without Ray."""

    def __init__(self) -> None:
        self.actors: dict[str, Any] = {}
        self.names: dict[str, str] = {}

    def look(self) -> dict[str, dict[str, float]]:
        """The load of each that answers, by the node's name."""
        ray = sys.modules.get("ray")
        found: dict[str, dict[str, float]] = {}
        try:
            if ray is None or not ray.is_initialized():
                return found
            self._meet(ray)
            asked = {node: actor.look.remote() for node, actor in self.actors.items()}
        except Exception:  # Ray is being imported, or the session ends: what a machine does is no reason to stop work
            return found
        for node, answer in asked.items():
            try:
                found[self.names[node]] = ray.get(answer, timeout=SECONDS_FOR_ANSWER)
            except Exception:  # the node is lost, or slow
                self.actors.pop(node)
        return found

    def _meet(self, ray: Any) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        own = ray.get_runtime_context().get_node_id()
        for node in ray.nodes():
            name = str(node["NodeID"])
            if node["Alive"] and name not in (own, *self.actors):
                strategy = NodeAffinitySchedulingStrategy(name, soft=False)
                self.actors[name] = ray.remote(Load).options(num_cpus=0, scheduling_strategy=strategy).remote()
                self.names[name] = f"{node['NodeManagerHostname']}-{name[:4]}"

    def forget(self) -> None:
        for actor in self.actors.values():
            with suppress(Exception):  # gone with its node, or with the session
                sys.modules["ray"].kill(actor)
        self.actors.clear()
