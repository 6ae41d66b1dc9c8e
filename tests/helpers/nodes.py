"""A Ray cluster of several nodes on this machine: raylets of their own, which can be killed and joined by others."""

import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from socket import socket

from helpers.chain import environment, wait_for
from helpers.paths import PYTHONPATH

BIN = Path(sys.executable).parent
DEATH = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3"}
"""Ray's own: how soon a node that does not answer counts as dead."""


class Nodes:
    """A head without CPUs, and what nodes are started beside it. Each is the session of processes of one `ray start`."""

    def __init__(self, *, jobs: bool = False) -> None:
        """jobs: the head takes submitted jobs, at `api`."""
        self.folder = Path(tempfile.mkdtemp(prefix="nodes-", dir="/tmp"))  # short: the paths of Ray's sockets have a limit
        self.port, client, dashboard = free_ports(3)
        self.api = f"http://127.0.0.1:{dashboard}"
        self.address = f"127.0.0.1:{self.port}"
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.environment = {
            **environment(),
            **token,
            **DEATH,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": PYTHONPATH,
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
        }
        self.processes: list[subprocess.Popen[bytes]] = []
        head = ["--head", f"--port={self.port}", "--num-cpus=0", f"--include-dashboard={str(jobs).lower()}"]
        head += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"] if jobs else []
        self._start([*head, f"--temp-dir={self.folder}", f"--ray-client-server-port={client}"])

    def add(self, cpus: int, own_folder: Path | None = None, **ray: str) -> int:
        """Start a node, with Ray's own settings, and wait until the cluster has it; returns its session.

        own_folder: to be one of the node's own at that path, in a mount namespace; it is there already.
        """
        node = self._start([f"--address={self.address}", f"--num-cpus={cpus}"], ray, own_folder)
        place = self._place(node.pid)
        wait_for(lambda: place in self.alive(), lambda: node.poll() is None, f"a node to join: {self.folder}")
        return node.pid

    def alive(self) -> list[str]:
        """Addresses of the nodes that the head counts as alive, itself one of them."""
        listed = subprocess.run(
            [sys.executable, "-c", ALIVE, self.address], env=self.environment, capture_output=True, text=True, check=False
        )
        return listed.stdout.split()

    def kill(self, node: int) -> None:
        """What a power cut does: all processes of the node end at once."""
        for pid in processes_of(node):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def drain(self, node: int, seconds: int) -> None:
        """Tell the cluster that a cloud takes the node back in so many seconds, and do so."""
        given = [self.address, self._place(node), str(seconds)]
        subprocess.run([sys.executable, "-c", DRAIN, *given], env=self.environment, check=True)

    def workers(self, *nodes: int) -> list[int]:
        """Training processes on these nodes, or on all."""
        return [
            pid for node in nodes or [process.pid for process in self.processes] for pid in processes_of(node, "RayTrainWorker")
        ]

    def end(self) -> None:
        for process in reversed(self.processes):
            self.kill(process.pid)
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _place(self, node: int) -> str:
        """A node's address: each has its own, or the driver takes another than the head for its own."""
        return f"127.0.0.{1 + next(number for number, process in enumerate(self.processes) if process.pid == node)}"

    def _start(
        self, options: list[str], ray: Mapping[str, str] = {}, own_folder: Path | None = None
    ) -> subprocess.Popen[bytes]:
        number = len(self.processes)
        agent, metrics = free_ports(2)
        ports = [f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}"]
        command = ["ray", "start", "--block", f"--object-store-memory={80 * 2**20}"]
        command += [f"--node-ip-address=127.0.0.{number + 1}"] if number else []
        command += [*ports, *options]
        if own_folder:
            mount = f"mount -t tmpfs none {shlex.quote(str(own_folder))} && exec {shlex.join(command)}"
            command = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount]
        with (self.folder / f"node{number}.log").open("w") as log:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**self.environment, **{f"RAY_{name}": value for name, value in ray.items()}},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(process)
        if number == 0:
            wait_for(lambda: bool(self.alive()), lambda: process.poll() is None, f"the head to start: {self.folder}")
        return process


ALIVE = """
import sys
from ray._raylet import GcsClient
nodes = GcsClient(address=sys.argv[1]).get_all_node_info().values()
print(*(node.node_manager_address for node in nodes if node.state == 0))
"""

DRAIN = """
import sys, time
from ray._raylet import GcsClient
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
address, ip, seconds = sys.argv[1:]
client = GcsClient(address=address)
node = next(id for id, node in client.get_all_node_info().items() if node.node_manager_address == ip)
end = int((time.time() + float(seconds)) * 1000)
taken, why = client.drain_node(node.hex(), DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"), "taken back", end)
assert taken, why
"""


@contextmanager
def nodes(*, jobs: bool = False) -> Iterator[Nodes]:
    """A cluster with its head alone, ended with all that was started on it."""
    cluster = Nodes(jobs=jobs)
    try:
        yield cluster
    finally:
        cluster.end()


def free_ports(count: int) -> list[int]:
    probes = [socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def processes_of(session: int, name: str = "") -> list[int]:
    """Process ids (of those with `name` in their command line) of a session."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            state, _, _, of = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            line = (folder / "cmdline").read_text().replace("\0", " ")
            if int(of) == session and state != "Z" and name in line:
                found.append(int(folder.name))
    return found
