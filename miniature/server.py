"""A web server for a folder of images, with the faults of the real web.

    python -m miniature.server ROOT [--port 0] [--log FILE]

prints its address as one line when it is ready, and ends when its standard input closes. It looks at the path alone,
whatever the host, so that links to many hosts can be answered by one address. `ROOT/faults.json` is optional and maps
paths to faults:

    {"fault": "404"}  {"fault": "410"}     gone
    {"fault": "heal", "after": k}          500 for the first k requests, then the image
    {"fault": "drip"}                      the image, one byte at a time, never to its end
    {"fault": "html"}                      a web page under the image's name
    {"fault": "truncated"}                 the first half of the image
    {"fault": "noai"}                      the image, with a header that opts out of training
    {"fault": "redirect", "to": path}      302 to the right image

`GET /_requests` returns how often each path was asked for, as JSON.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote, unquote, urlsplit

from miniature import InputError
from miniature.lifeline import exit_with_parent

TYPES = {
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".bmp": "image/bmp",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
}
"""What is served; any other file is not found."""
FAULTS = ("404", "410", "heal", "drip", "html", "truncated", "noai", "redirect")
DRIP_PAUSE = 0.2
DRIP_LIMIT = 60.0
"""Seconds after which a slow drip hangs up."""
COUNTS = "/_requests"
HTML = b"<!doctype html><html><title>Not here any more</title><body>This picture has moved.</body></html>\n"


class ImageServer(ThreadingHTTPServer):
    """Serves one folder. The counts and the healing live here, and end with the process."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, root: Path, port: int = 0, log: TextIO | None = None) -> None:
        self.root = root.resolve()
        self.faults = _read_faults(root)
        self.counts: Counter[str] = Counter()
        self._log = log
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", port), _Handler)

    def count(self, path: str) -> int:
        """Note one more request for `path`; returns how many there were."""
        with self._lock:
            self.counts[path] += 1
            if self._log:
                self._log.write(quote(path) + "\n")
                self._log.flush()
            return self.counts[path]

    def counted(self) -> dict[str, int]:
        """A copy of the counts."""
        with self._lock:
            return dict(sorted(self.counts.items()))

    def find(self, path: str) -> Path | None:
        """The image at a path of a URL; None if there is none, or if it lies outside the folder."""
        try:
            file = (self.root / path.lstrip("/")).resolve()
            found = file.suffix.lower() in TYPES and file.is_relative_to(self.root) and file.is_file()
        except (OSError, ValueError):  # a name that no file can have
            return None
        return file if found else None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients hang up on a server with faults; anything else is shown."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    server: ImageServer

    def do_GET(self) -> None:
        try:
            path = unquote(urlsplit(self.path).path)
        except ValueError:  # not a URL
            self.send_plain(400)
            return
        if path == COUNTS:
            self._send(200, "application/json", json.dumps(self.server.counted()).encode())
            return
        times = self.server.count(path)
        match self.server.faults.get(path):
            case {"fault": "404" | "410" as status}:
                self.send_plain(int(status))
            case {"fault": "heal", "after": after} if times <= after:
                self.send_plain(500)
            case {"fault": "html"}:
                self._send(200, "text/html; charset=utf-8", HTML)
            case {"fault": "redirect", "to": target}:
                self._send(302, "text/plain", b"", Location=target)
            case fault:
                self._send_image(path, (fault or {}).get("fault"))

    def _send_image(self, path: str, fault: str | None) -> None:
        file = self.server.find(path)
        if file is None:
            self.send_plain(404)
            return
        kind, body = TYPES[file.suffix.lower()], file.read_bytes()
        if fault == "drip":
            self._drip(kind, body)
        elif fault == "truncated":
            self._send(200, kind, body[: len(body) // 2])
        elif fault == "noai":
            self._send(200, kind, body, **{"X-Robots-Tag": "noai"})
        else:
            self._send(200, kind, body)

    def send_plain(self, status: int) -> None:
        """An answer without an image."""
        self._send(status, "text/plain", f"{status}\n".encode())

    def _send(self, status: int, kind: str, body: bytes, **headers: str) -> None:
        self._send_head(status, kind, len(body), **headers)
        self.wfile.write(body)

    def _send_head(self, status: int, kind: str, length: int, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _drip(self, kind: str, body: bytes) -> None:
        end = time.monotonic() + DRIP_LIMIT
        self.close_connection = True
        self._send_head(200, kind, len(body))
        for byte in body[:-1]:
            if time.monotonic() > end:
                return
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(DRIP_PAUSE)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: `/_requests` and the log file tell what was asked for."""


@contextmanager
def serve(root: Path, *, log: Path | None = None, port: int = 0) -> Iterator[str]:
    """Serve the images under `root` from a process of its own; yields "127.0.0.1:PORT".

    The process ends with the block, or with this process, however that ends. `log` gets the path of every request, one a line,
    and is appended to. Raises `InputError` if the server does not start.
    """
    _read_faults(root)
    command = [sys.executable, "-m", "miniature.server", str(root.resolve()), "--port", str(port)]
    if log:
        command += ["--log", str(log.resolve())]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", cwd=Path(__file__).parents[1]
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        if not address:
            raise InputError(f"{root}: the image server did not start; its error stands above")
        yield address
    finally:
        process.kill()
        process.communicate()


def _read_faults(root: Path) -> dict[str, dict[str, Any]]:
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give a folder of images")
    file = root / "faults.json"
    if not file.exists():
        return {}
    try:
        faults: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
        unknown = sorted({fault["fault"] for fault in faults.values()} - set(FAULTS))
    except (ValueError, AttributeError, KeyError, TypeError):
        raise InputError(f'{file}: not a map of paths to faults; write {{"/a.jpg": {{"fault": "404"}}}}') from None
    if unknown:
        raise InputError(f"{file}: unknown fault {unknown[0]!r}; choose from {', '.join(FAULTS)}")
    return faults


def main(arguments: list[str] | None = None) -> None:
    """Serve until standard input closes."""
    parser = argparse.ArgumentParser(prog="python -m miniature.server", description="Serve a folder of images, with faults.")
    parser.add_argument("root", type=Path, help="the folder; faults.json in it is optional")
    parser.add_argument("--port", type=int, default=0, help="0 takes any free one")
    parser.add_argument("--log", type=Path, help="append the path of every request to this file")
    options = parser.parse_args(arguments)
    try:
        log = options.log.open("a", encoding="utf-8") if options.log else None
        server = ImageServer(options.root, options.port, log)
    except InputError as error:
        parser.exit(2, f"error: {error}\n")
    except (OSError, OverflowError) as error:
        at = options.log if isinstance(error, FileNotFoundError | IsADirectoryError) else f"--port {options.port}"
        parser.exit(2, f"error: {at}: {getattr(error, 'strerror', None) or 'not a port'}; choose another\n")
    exit_with_parent()
    print(f"127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
