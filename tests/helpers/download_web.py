"""A small real web server for the download's tests: each path is one way in which the web answers."""

import asyncio
import gzip
import io
import socket
import ssl
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import lru_cache
from types import TracebackType
from typing import Self

import numpy as np
from aiohttp import web
from PIL import Image

HOST = "photos.test"
"""A name that no name server knows: it is reached through `connect_to` alone."""


@lru_cache
def picture(seed: int = 0, size: tuple[int, int] = (96, 64), kind: str = "JPEG") -> bytes:
    """A coloured picture of (width, height), smooth enough to compress."""
    small = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(file, kind)
    return file.getvalue()


def png_header(width: int, height: int, depth: int = 8) -> bytes:
    """A PNG that claims a size: header, almost no data, end."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


class Web:
    """The server in a thread. `requests` counts what was asked, by path and query; `most_at_once` what was open together."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.user_agents: set[str] = set()
        self.hosts: set[str] = set()
        self.times: dict[str, list[float]] = {}
        self.most_at_once = 0
        self._open = 0
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def connect_to(self) -> dict[str, str]:
        return {HOST: f"127.0.0.1:{self.port}", f"*.{HOST}": f"127.0.0.1:{self.port}"}

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(20)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)

    def _serve(self) -> None:
        self._loop.run_until_complete(self._start())
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(self._runner.cleanup())
        self._loop.close()

    async def _start(self) -> None:
        application = web.Application()
        application.router.add_get("/{name:.*}", self._answer)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests[request.path_qs] += 1
        self.times.setdefault(request.path_qs, []).append(time.monotonic())
        self.user_agents.add(request.headers["User-Agent"])
        self.hosts.add(request.headers["Host"])
        self._open += 1
        self.most_at_once = max(self.most_at_once, self._open)
        try:
            name = request.match_info["name"].split("/")[0]
            handler: Callable[[web.Request], Awaitable[web.StreamResponse]] = getattr(self, name)
            return await handler(request)
        finally:
            self._open -= 1

    def _seen(self, request: web.Request) -> int:
        return self.requests[request.path_qs]

    async def image(self, request: web.Request) -> web.Response:
        await asyncio.sleep(float(request.query.get("wait", 0)))
        return web.Response(body=picture(int(request.query.get("seed", 0))), content_type="image/jpeg")

    async def status(self, request: web.Request) -> web.Response:
        return web.Response(status=int(request.path.split("/")[2]), text="no")

    async def heal(self, request: web.Request) -> web.Response:
        """500 for the first `times` requests of a link, then its image."""
        return await self.image(request) if self._seen(request) > int(request.query["times"]) else web.Response(status=500)

    async def back(self, request: web.Request) -> web.Response:
        """404 for the first `after` requests of a link, then its image."""
        return await self.image(request) if self._seen(request) > int(request.query["after"]) else web.Response(status=404)

    async def later(self, request: web.Request) -> web.Response:
        """429 once, with the Retry-After that the query asks for."""
        if self._seen(request) > 1:
            return await self.image(request)
        return web.Response(status=429, headers={"Retry-After": request.query["after"]})

    async def slow_500(self, request: web.Request) -> web.Response:
        await asyncio.sleep(0.3)
        return web.Response(status=500)

    async def drip(self, request: web.Request) -> web.StreamResponse:
        """One byte at a time, for ever."""
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x")
            await asyncio.sleep(0.05)

    async def endless(self, request: web.Request) -> web.StreamResponse:
        """As many bytes as the client takes, without Content-Length."""
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(bytes(2**16))

    async def silent(self, request: web.Request) -> web.Response:
        await asyncio.sleep(3600)
        raise AssertionError

    async def sized(self, request: web.Request) -> web.StreamResponse:
        """Announces more bytes than the client may want; a client that goes on reading waits for them in vain."""
        response = web.StreamResponse(headers={"Content-Length": str(2**40)})
        await response.prepare(request)
        await response.write(b"x")
        await asyncio.sleep(3600)
        return response

    async def bomb(self, request: web.Request) -> web.Response:
        """50 MB of zeros in 50 kB of gzip."""
        return web.Response(body=gzip.compress(bytes(50 * 10**6)), headers={"Content-Encoding": "gzip"})

    async def zipped(self, request: web.Request) -> web.Response:
        return web.Response(body=gzip.compress(picture()), headers={"Content-Encoding": "gzip"})

    async def short(self, request: web.Request) -> web.StreamResponse:
        """Hangs up in the middle of the body."""
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b"x" * 10)
        assert request.transport is not None
        request.transport.close()
        return response

    async def robots(self, request: web.Request) -> web.Response:
        response = web.Response(body=picture())
        for tag in request.query.getall("tag"):
            response.headers.add("X-Robots-Tag", tag)
        return response

    async def redirect(self, request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": request.query["to"]})

    async def loop(self, request: web.Request) -> web.Response:
        """/loop/n redirects n times, then comes the image."""
        left = int(request.path.split("/")[2])
        return web.Response(status=301, headers={"Location": f"/loop/{left - 1}"}) if left else await self.image(request)

    async def html(self, request: web.Request) -> web.Response:
        return web.Response(text="<html>this photo is gone</html>", content_type="text/html")

    async def truncated(self, request: web.Request) -> web.Response:
        return web.Response(body=picture()[:-200])

    async def huge(self, request: web.Request) -> web.Response:
        return web.Response(body=png_header(10_000, 8_000))

    async def tiny(self, request: web.Request) -> web.Response:
        return web.Response(body=picture(0, (20, 20)))


class Raw:
    """A server that answers every connection with the same bytes, or as `answer` does with the socket; over TLS with `tls`.

    `requests` are the first bytes that each connection brought; `connections` counts those made, also without a request.
    """

    def __init__(
        self,
        answer: bytes | Callable[[socket.socket], None] = b"",
        *,
        address: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.connections = 0
        self.requests: list[bytes] = []
        self._answer = answer
        self._tls = tls
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener = socket.create_server((address, port), family=family)
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    @property
    def connect_to(self) -> dict[str, str]:
        return {HOST: f"127.0.0.1:{self.port}"}

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(20)
        self._listener.close()
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(20)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            self._threads.append(threading.Thread(target=self._serve, args=(connection,), daemon=True))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:  # clients hang up
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
            if request := connection.recv(2**16):
                self.requests.append(request)
                if callable(self._answer):
                    self._answer(connection)
                else:
                    connection.sendall(self._answer)


def answer(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """An HTTP answer with its Content-Length, unless `headers` give one, after which the server hangs up."""
    if not any(header.lower().startswith(("content-length:", "transfer-encoding:")) for header in headers):
        headers = (f"Content-Length: {len(body)}", *headers)
    head = "\r\n".join((f"HTTP/1.1 {status}", "Connection: close", *headers, "", ""))
    return head.encode() + body


def gzip_bomb(megabytes: int) -> bytes:
    """Zeros in gzip, a thousandth of their size: one compressed megabyte, again and again."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    megabyte = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)  # makes no reference to what lies before it
    return b"\x1f\x8b\x08" + bytes(6) + b"\xff" + megabyte * megabytes
