"""A Ray cluster that starts as a head alone and grows: Ray's own autoscaler, whose nodes are raylets on this machine."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from helpers.paths import PYTHONPATH

HEAD = "f" * 51 + "0" * 5
"""The node id by which the provider knows the head."""
PORT = 6379
"""The provider looks for the head there and nowhere else."""
LISTS = (
    *("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands"),
    *("head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands"),
)


def config_of(types: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What `ray start` reads: node types as in ray_cluster.yaml, without a cloud's part."""
    head = {"resources": {"CPU": 0}, "labels": {"role": "head"}, "node_config": {}, "max_workers": 0}
    provider = {
        "type": "external",  # Ray's wheel lacks a file that its built-in name asks for
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "head_node_id": HEAD,
        "launch_multiple": True,
        "disable_node_updaters": True,
        "use_node_id_as_ip": True,
    }
    return {
        **{key: [] for key in LISTS},
        **{key: {} for key in ("auth", "docker", "file_mounts")},
        "cluster_name": "autoscaled",
        "max_workers": 8,
        "idle_timeout_minutes": 5,
        "upscaling_speed": 1.0,
        "file_mounts_sync_continuously": False,
        "provider": provider,
        "head_node_type": "ray.head.default",
        "available_node_types": {"ray.head.default": head, **{name: {"node_config": {}, **one} for name, one in types.items()}},
    }


@contextmanager
def autoscaled(folder: Path, types: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The address of the cluster; all of its processes end with the block. `folder` has a short path: sockets go there."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", PORT)) == 0:
            pytest.skip(f"another Ray uses port {PORT}, and the provider knows no other")
    file, log = folder / "cluster.json", folder / "head.log"
    file.write_text(json.dumps(config_of(types)))
    settings = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_TMPDIR": str(folder),
        "PYTHONPATH": PYTHONPATH,
    }
    ray = Path(sys.executable).with_name("ray")
    command = f"{ray} start --head --block --port={PORT} --num-cpus=0 --labels=role=head --include-dashboard=false"
    with log.open("w") as output:
        head = subprocess.Popen(
            [*command.split(), "--object-store-memory=100000000", f"--autoscaling-config={file}"],
            env={**os.environ, **settings},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        while "will now block" not in log.read_text():
            assert head.poll() is None, log.read_text()
            with suppress(subprocess.TimeoutExpired):
                head.wait(0.2)
        yield f"127.0.0.1:{PORT}"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            head.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
