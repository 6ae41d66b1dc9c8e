"""An address that listens is not yet a Ray cluster: what is there instead is told in one line and within a limit."""

import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager

import grpc
import pytest
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from cluster import InputError
from cluster.connection import check_cluster, given_address
from cluster.ray_messages import print_warnings
from cluster.session import SessionConfig, _why, ensure_session
from cluster.waiting import Waiting


@contextmanager
def listening(answer: bytes | None) -> Iterator[str]:
    """A TCP server that answers every connection with some bytes, and ends it; None: it says nothing and waits."""
    held = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                held.append(connection)
                if answer is not None:
                    connection.sendall(answer)
                    connection.close()

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
    for connection in held:
        connection.close()


@contextmanager
def grpc_server(version: str | None) -> Iterator[str]:
    """A gRPC server; with `version`, one that answers as a Ray cluster of that version."""

    class Cluster(gcs_service_pb2_grpc.NodeInfoGcsServiceServicer):  # type: ignore[misc]
        def CheckAlive(self, request: object, context: object) -> object:  # noqa: N802 -- its name on the wire
            return gcs_service_pb2.CheckAliveReply(ray_version=version)

    server = grpc.server(ThreadPoolExecutor(1))
    if version is not None:
        gcs_service_pb2_grpc.add_NodeInfoGcsServiceServicer_to_server(Cluster(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


@pytest.mark.parametrize(
    ("serve", "reason"),
    [
        (lambda: listening(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"), "what listens there is not Ray's"),
        (lambda: listening(b"SSH-2.0-OpenSSH_9.6\r\n"), "what listens there is not Ray's"),
        (lambda: listening(b""), "what listens there is not Ray's"),
        (lambda: listening(None), "no answer within 0.5 s"),
        (lambda: grpc_server(None), "what listens there is not Ray's"),
        (lambda: grpc_server("2.9.1"), "it runs Ray 2.9.1, this environment Ray 2.60.0: install the same"),
    ],
    ids=["http", "ssh", "closes", "silent", "grpc", "version"],
)
def test_what_is_no_cluster_is_told_within_the_limit(
    serve: Callable[[], AbstractContextManager[str]], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "0.5 s" in reason:
        monkeypatch.setattr("cluster.connection.CONNECT_SECONDS", 0.5)
    with serve() as address, pytest.raises(InputError) as caught:
        check_cluster(address, "session.address")
    assert str(caught.value) == (
        f"session.address: no Ray cluster answers at '{address}' ({reason}); start one, correct it, or leave it empty"
    )


def test_a_cluster_of_this_version_is_one() -> None:
    import ray

    with grpc_server(ray.__version__) as address:
        check_cluster(address, "session.address")


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("http://127.0.0.1:8265", "'http://127.0.0.1:8265' is no address of a cluster (the address of Ray's dashboard, which"),
        ("https://cluster.test", "'https://cluster.test' is no address of a cluster (the address of Ray's dashboard"),
        ("tcp://a:1", "'tcp://a:1' is no address of a cluster; give host:port"),
        ("127.0.0.1", "'127.0.0.1' is no address of a cluster; give host:port"),
        ("host:port", "'host:port' is no address of a cluster; give host:port"),
        ("host:99999", "'host:99999' is no address of a cluster; give host:port"),
        ("127.0.0.1:1", "no Ray cluster answers at '127.0.0.1:1' (Connection refused)"),
        ("ray://127.0.0.1:1", "no Ray cluster answers at 'ray://127.0.0.1:1' (no answer within 0.5 s)"),
    ],
)
def test_an_address_from_the_environment_is_checked_and_named(address: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.connection.CONNECT_SECONDS", 0.5)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InputError) as caught:
        ensure_session(SessionConfig())
    assert str(caught.value).startswith(f"RAY_ADDRESS: {told}")
    assert "\n" not in str(caught.value)


def test_the_setting_goes_before_the_environment_and_local_is_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert given_address("") == ("", "")
    assert given_address("auto") == ("auto", "session.address")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            OSError("validate_socket_filename failed: AF_UNIX path length cannot exceed 107 bytes: /x"),
            "set RAY_TMPDIR to a short",
        ),
        (OSError(28, "No space left on device", "/dev/shm/x"), "/dev/shm/x: No space left on device; free some space"),
        (FileNotFoundError(2, "No such file or directory", "/proc/x"), "set RAY_TMPDIR to a folder that can be written"),
        (RuntimeError("Timed out waiting for file /tmp/ray/gcs_server_port\nx"), "the machine may be too busy"),
        (Exception("The current node timed out during startup. This could happen because"), "the machine may be too busy"),
        (ValueError("The configured object store size (1 GB) exceeds the object store"), "set session.object_store_mb"),
    ],
)
def test_why_ray_does_not_start_is_one_line_with_a_cure(error: Exception, told: str) -> None:
    assert told in _why(error)
    assert "\n" not in _why(error)


def test_what_is_waited_for_is_said_and_said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.waiting.FIRST_SECONDS", 0.01)
    monkeypatch.setattr("cluster.waiting.SECONDS_BETWEEN", 0.01)
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    with Waiting("Ray: starting on this machine"):
        while stream.getvalue().count("\n") < 2:
            time.sleep(0.01)
    assert set(stream.getvalue().splitlines()) == {"Ray: starting on this machine ... 0 s"}
    monkeypatch.setattr("cluster.waiting.FIRST_SECONDS", 30.0)
    with Waiting("nothing"):
        pass
    assert "nothing" not in stream.getvalue(), "what is quick needs no word"


def test_what_ray_warns_of_is_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    import ray._private.worker as worker

    assert callable(worker.print_to_stdstream), "the name that is replaced"
    oom = "Task f failed due to oom. There are 3 oom retries\n\nObject store memory usage: [-\n  objects" + "x" * 1000
    print_warnings({"lines": [oom, "A node\n died"], "pid": "raylet", "is_err": False})
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "Ray: a worker was ended, as its machine runs out of memory; its work is repeated a few times",
        "Ray: A node died",
    ]
