"""An S3 server on loopback, and a proxy before it that fails as stores and networks do."""

import http.client
import logging
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

from moto.server import ThreadedMotoServer

SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"
KEY = "AKIAIOSFODNN7EXAMPLE"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass(frozen=True)
class Fault:
    """What becomes of a request: an answer instead of the store's, a wait before it, or a connection that ends midway."""

    status: int = 0
    code: str = ""
    seconds: float = 0.0
    cut: bool = False
    """The connection ends after half of the answer's body."""


Faults = Callable[[str, str, int], Fault | None]
"""Takes the method, the path and the number of the request, from 0."""


@dataclass
class S3:
    """A server that runs: the address of its proxy, and what that does to requests."""

    endpoint: str
    faults: Faults = lambda method, path, number: None
    requests: list[str] = field(default_factory=list)
    """Method and path of each."""

    @property
    def environment(self) -> Mapping[str, str]:
        """What a process needs to reach it."""
        return {**CREDENTIALS, "AWS_ENDPOINT_URL": self.endpoint}

    def make_bucket(self, name: str) -> str:
        """Returns the URL of a new bucket."""
        with urllib.request.urlopen(urllib.request.Request(f"{self.endpoint}/{name}", method="PUT")):
            return f"s3://{name}"


@contextmanager
def s3_server() -> Iterator[S3]:
    """An empty store."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it writes a line for each request
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    reset = urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset).close()  # servers of one process share what they hold
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), _Proxy)
    proxy.daemon_threads = True
    server = S3(f"http://127.0.0.1:{proxy.server_port}")
    _Proxy.servers[proxy.server_port] = (server, (host, port))
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        proxy.shutdown()
        proxy.server_close()
        moto.stop()


class _Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    servers: ClassVar[dict[int, tuple[S3, tuple[str, int]]]] = {}

    def log_message(self, format: str, *args: object) -> None: ...

    def _answer(self) -> None:
        server, upstream = self.servers[self.server.server_address[1]]
        number = len(server.requests)
        server.requests.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = server.faults(self.command, self.path, number) or Fault()
        time.sleep(fault.seconds)
        if fault.status:
            text = f"<?xml version='1.0'?><Error><Code>{fault.code}</Code><Message>as asked</Message></Error>".encode()
            self._send(fault.status, {"Content-Type": "application/xml"}, text, cut=False)
            return
        connection = http.client.HTTPConnection(*upstream)
        connection.request(self.command, self.path, body, {**self.headers, "Connection": "close"})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        headers = {name: value for name, value in answer.getheaders() if name.lower() not in _OURS}
        if self.command == "HEAD":
            headers["Content-Length"] = answer.getheader("Content-Length") or "0"
        self._send(answer.status, headers, content, cut=fault.cut)

    def _send(self, status: int, headers: Mapping[str, str], content: bytes, *, cut: bool) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if "Content-Length" not in headers:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if cut:
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
            else:
                self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _answer  # noqa: N815 -- http.server's names


_OURS = ("content-length", "transfer-encoding", "connection", "date", "server")
