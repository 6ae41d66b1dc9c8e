"""Whether a Ray cluster has room for work, and whether its autoscaler brings it: Ray itself would wait without a word."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from cluster import InputError

SECONDS_BETWEEN_LINES = 10.0
LONGEST_SECONDS = 1800.0
"""Nodes that are said to come and have not by then will not."""
LONGEST_REASON = 200
CURE = "give it more nodes, or its autoscaler leave to start as many ({setting}: how long it may take to begin)"
Resources = Mapping[str, float]


def room(nodes: Iterable[Mapping[str, Any]], each: Resources, label: Mapping[str, str] | None) -> int:
    """How many processes that ask for `each` fit on nodes, as `ray.nodes()` describes them, with a label."""
    return sum(
        int(min((node["Resources"].get(name, 0.0) + 1e-6) // asked for name, asked in each.items()))
        for node in nodes
        if node["Alive"] and all(node.get("Labels", {}).get(key) == value for key, value in (label or {}).items())
    )


def ensure_room(
    workers: int,
    each: Resources,
    label: Mapping[str, str] | None,
    *,
    patience: float,
    say: Callable[[str], None],
    setting: str = "train.wait_seconds",
) -> None:
    """Wait until the cluster has room for the workers of a training, as `await_room` does; `setting` says the patience.

    Raises InputError where it has none.
    """
    import ray

    growth = await_room(workers, each, label, asked(workers, each), patience=patience, say=say)
    if growth is None:
        return
    nodes = ray.nodes()
    fitting = room(nodes, each, label)
    others = room(nodes, each, None) - fitting
    unlabelled = (
        f". Nodes without that label have room for {others} (session.train_label)" if fitting + others >= workers else ""
    )
    told = no_room(workers, each, fitting, "the Ray cluster", CURE.format(setting=setting), on=on_nodes(label))
    raise InputError(told + unlabelled + growth.why_not)


class Growth(NamedTuple):
    """What the cluster's autoscaler is about."""

    coming: int = 0
    """Nodes that are asked for or boot."""
    failed: str = ""
    """Why the last one did not come; "" where none failed."""

    @property
    def why_not(self) -> str:
        """For the end of a refusal."""
        return f". Its autoscaler last failed to bring a node: {self.failed}" if self.failed else ""


def await_room(
    workers: int,
    each: Resources,
    label: Mapping[str, str] | None,
    what: str,
    *,
    patience: float,
    say: Callable[[str], None],
) -> Growth | None:
    """Wait until so many processes fit on the cluster, asking its autoscaler for nodes; None when they do.

    Gives up where for `patience` seconds there is neither room nor a node on its way, and after half an hour anyhow: a node
    that boots is waited for, one that nobody brings is not. Returns what the autoscaler was about then.
    """
    import ray

    if room(ray.nodes(), each, label) >= workers:
        return None
    if not patience:
        return Growth()
    _ask_for_nodes([dict(each)] * workers, [dict(label)] * workers if label else None)
    try:
        began = told = hopeful = time.monotonic()
        while (found := room(ray.nodes(), each, label)) < workers:
            now, growth = time.monotonic(), nodes_to_come()
            hopeful = now if growth.coming else hopeful
            if now - hopeful >= patience or now - began >= max(patience, LONGEST_SECONDS):
                return growth
            if now - told >= SECONDS_BETWEEN_LINES:
                told = now
                coming = f", nodes on their way: {growth.coming}" if growth.coming else ""
                say(f"waits for a cluster with room for {what}: {found} fit by now ({now - began:.0f} s){coming}")
            time.sleep(1.0)
        return None
    finally:
        # Ray keeps such a wish for ever, and the nodes with it. The work asks for itself now.
        _ask_for_nodes([], None)


def nodes_to_come() -> Growth:
    """What the autoscaler of the cluster says; nothing is coming where there is none, or one of the first version."""
    import ray
    from ray.autoscaler.v2.sdk import get_cluster_status

    return growth_of(get_cluster_status(ray.get_runtime_context().gcs_address))


def growth_of(status: Any) -> Growth:
    """The same from Ray's own ClusterStatus."""
    coming = sum(launch.count for launch in status.pending_launches) + len(status.pending_nodes)
    failed = max(status.failed_launches, key=lambda launch: launch.request_ts_s, default=None)
    reason = " ".join(f"{failed.ray_node_type_name}: {failed.details}".split()) if failed else ""
    return Growth(coming, reason[:LONGEST_REASON])


def _ask_for_nodes(bundles: list[dict[str, float]], labels: list[dict[str, str]] | None) -> None:
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=bundles, bundle_label_selectors=labels)


def no_room(workers: int, each: Resources, fitting: int, where: str, cure: str, on: str = "") -> str:
    """The mistake of asking for more than there is, in words."""
    gpu = ", train.use_gpu=false trains without GPUs" if "GPU" in each else ""
    return f"train.workers: {asked(workers, each)}{on}, and {where} has room for {fitting}; lower train.workers{gpu}, or {cure}"


def on_nodes(label: Mapping[str, str] | None) -> str:
    """Where work is to run, in words; "" for anywhere."""
    return "".join(f" on nodes with {key}={value}" for key, value in (label or {}).items())


def asked(workers: int, each: Resources) -> str:
    """What a training asks for, in words."""
    wanted = " and ".join(f"{amount:g} {name}" for name, amount in each.items())
    return f"{workers} training process{'es' * (workers > 1)} with {wanted} each"
