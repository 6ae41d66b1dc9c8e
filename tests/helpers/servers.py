"""Servers for tests of tracking: a real MLflow, a proxy that fails as asked, and listeners that are no MLflow."""

import base64
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, Self

Fault = Literal["none", "closed", "hang"] | int


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def greeter(greeting: bytes) -> Iterator[int]:
    """The port of a listener that greets each caller and hangs up; with no greeting it never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            while True:
                try:
                    caller, _ = listener.accept()
                except OSError:
                    return
                if greeting:
                    caller.recv(65536)
                    caller.sendall(greeting)
                    caller.close()

        threading.Thread(target=greet, daemon=True).start()
        yield listener.getsockname()[1]


@contextmanager
def mlflow_server(folder: Path, *options: str) -> Iterator[str]:
    """The address of a real MLflow server on `server.db` in a folder."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1", *options]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    process = subprocess.Popen(
        command, cwd=folder, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while process.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
            except OSError:
                time.sleep(0.1)
            else:
                yield f"http://127.0.0.1:{port}"
                return
        raise AssertionError(f"the server ended with {process.returncode}")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Proxy:
    """Passes requests on to a server, but for its `fault`: calls closed, left hanging, or answered with a status.

    `only` limits the fault to paths that hold it; with a `password` ("user:secret") it asks for Basic authentication.
    """

    def __init__(self, server: str) -> None:
        self.host = server.removeprefix("http://")
        self.fault: Fault = "none"
        self.only = ""
        self.password = ""
        proxy, self.freed = self, threading.Event()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fault = proxy.fault if proxy.only in self.path else "none"
                if fault == "hang":
                    proxy.freed.wait(60)
                if fault in ("hang", "closed"):
                    self.close_connection = True
                elif isinstance(fault, int):
                    self.reply(fault, b"no")
                elif proxy.password and self.headers.get("Authorization") != proxy.expected:
                    self.reply(401, b"who are you?")
                else:
                    upstream = http.client.HTTPConnection(proxy.host, timeout=60)
                    headers = {
                        key: value for key, value in self.headers.items() if key.lower() not in ("host", "authorization")
                    }
                    upstream.request(self.command, self.path, body, headers)
                    told = upstream.getresponse()
                    self.reply(told.status, told.read())

            def reply(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: Any) -> None: ...

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815

        class Server(ThreadingHTTPServer):
            def handle_error(self, *arguments: Any) -> None: ...

        self._server = Server(("127.0.0.1", 0), Handler)

    @property
    def expected(self) -> str:
        return "Basic " + base64.b64encode(self.password.encode()).decode()

    def address(self, user: str = "") -> str:
        return f"http://{user}127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.freed.set()
        self._server.shutdown()
        self._server.server_close()
