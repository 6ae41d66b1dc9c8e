"""Whether a Ray cluster has room for the training processes: Ray itself would wait for it without a word."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cluster import InputError

SECONDS_BETWEEN_LINES = 10.0
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
    """Wait until the cluster has room for the workers, asking it to grow where it can.

    Raises InputError where it has none after `patience` seconds, which `setting` says.
    """
    import ray

    if room(ray.nodes(), each, label) >= workers:
        return
    if patience:
        _ask_for_nodes([dict(each)] * workers, [dict(label)] * workers if label else None)
    began = told = time.monotonic()
    while (found := room(ray.nodes(), each, label)) < workers:
        now = time.monotonic()
        if now - began >= patience:
            raise InputError(no_room(workers, each, found, "the Ray cluster", label, setting))
        if now - told >= SECONDS_BETWEEN_LINES:
            told = now
            say(f"waits for a cluster with room for {_asked(workers, each)}: {found} fit by now ({now - began:.0f} s)")
        time.sleep(1.0)
    _ask_for_nodes([], None)  # the workers ask for themselves now


def _ask_for_nodes(bundles: list[dict[str, float]], labels: list[dict[str, str]] | None) -> None:
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=bundles, bundle_label_selectors=labels)


def no_room(
    workers: int,
    each: Resources,
    fitting: int,
    where: str,
    label: Mapping[str, str] | None = None,
    setting: str = "train.wait_seconds",
) -> str:
    """The mistake of asking for more than there is, in words."""
    on = "".join(f" on nodes with {key}={value}" for key, value in (label or {}).items())
    gpu = ", train.use_gpu=false trains without GPUs" if "GPU" in each else ""
    return (
        f"train.workers: {_asked(workers, each)}{on}, and {where} has room for {fitting}; lower train.workers"
        f"{gpu}, or give it more nodes ({setting} says how long they may take)"
    )


def _asked(workers: int, each: Resources) -> str:
    wanted = " and ".join(f"{amount:g} {name}" for name, amount in each.items())
    return f"{workers} training process{'es' * (workers > 1)} with {wanted} each"
