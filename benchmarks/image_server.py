"""A small web of photo-like JPEGs on loopback addresses, and of all that goes wrong with links, in a process of its own.

    python benchmarks/image_server.py FOLDER [--hosts 64] [--drip-seconds 60]

Draws the images into FOLDER unless they are there, prints its port and answers until its standard input is closed. It listens
on 127.0.0.1, 127.0.0.2, ...: so many hosts. All answers are held in memory. The first part of a path says what happens; what
follows only tells links apart:

    /image/NNN.jpg?k    an image
    /heal/NNN.jpg?k     503 to the first request of this very path, then an image
    /404/k, /403/k      that status
    /html/k             a page where an image is expected
    /huge/k             a PNG of 16000x16000 pixels in less than 1 MB
    /drip/k             a byte per second of a body that does not end; the connection is closed after --drip-seconds
    /_counts, /_total   how often each path was asked for; times of the first and last request, seconds of processor time
    /_reset             counts start at nought

Its UDP port of the same number is a name server that knows no name.
"""

import argparse
import asyncio
import http.client
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

IMAGES = 500
LONGER_SIDE = (500, 1600)
HUGE_SIDE = 16_000


class Total(NamedTuple):
    """What the server has done so far: requests, the times (`time.time`) of the first and last, its seconds of processor."""

    requests: int
    first: float
    last: float
    cpu_seconds: float


@dataclass(frozen=True)
class ImageServer:
    """A server that runs, as its user sees it."""

    port: int
    hosts: int
    images: int

    @property
    def nameserver(self) -> str:
        """A name server, as "address:port": it knows no name at all."""
        return f"127.0.0.1:{self.port}"

    def image(self, number: int, kind: str = "image") -> str:
        """The URL of an image, by the number of the link."""
        return self.url(f"/{kind}/{number % self.images:04d}.jpg?{number}", number)

    def url(self, path: str, number: int) -> str:
        """The URL of a path at one of the hosts, by the number of the link."""
        return f"http://127.0.0.{1 + number % self.hosts}:{self.port}{path}"

    def counts(self) -> Counter[str]:
        """Requests by path."""
        return Counter(self._ask("/_counts"))

    def total(self) -> Total:
        return Total(**self._ask("/_total"))

    def reset(self) -> None:
        self._ask("/_reset")

    def _ask(self, path: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", path)
        try:
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()


@contextmanager
def serve_images(folder: Path, *, hosts: int = 1, images: int = IMAGES, drip_seconds: float = 60.0) -> Iterator[ImageServer]:
    """Run the server in a process of its own while the block lasts; it ends with this process, however that ends."""
    command = [
        sys.executable,
        __file__,
        str(folder),
        f"--hosts={hosts}",
        f"--images={images}",
        f"--drip-seconds={drip_seconds}",
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield ImageServer(int(process.stdout.readline()), hosts, images)
        finally:
            process.kill()


def kind_of(path: str) -> str:
    """The class of a path: its first part."""
    return path.split("/")[1]


class _Site:
    """The answers, and the count of those who asked."""

    def __init__(self, images: list[bytes], huge: bytes, drip_seconds: float) -> None:
        self.images = [_answer(200, "image/jpeg", image) for image in images]
        self.fixed = {
            "404": _answer(404, "text/html", b"<h1>Not found</h1>"),
            "403": _answer(403, "text/html", b"<h1>Forbidden</h1>"),
            "html": _answer(200, "text/html", b"<html><body>This image has moved.</body></html>"),
            "huge": _answer(200, "image/png", huge),
        }
        self.unwell = _answer(503, "text/html", b"<h1>Try again</h1>")
        self.unknown = _answer(400, "text/html", b"<h1>No such kind of path</h1>")
        self.drip_seconds = drip_seconds
        self.reset()

    def reset(self) -> None:
        self.counts = Counter[str]()
        self.first = self.last = 0.0

    def answer(self, path: str) -> bytes | None:
        """The whole answer to one request; None for a drip."""
        if path.startswith("/_"):
            return self._about(path)
        self.last = time.time()
        self.first = self.first or self.last
        self.counts[path] += 1
        kind = kind_of(path)
        if kind == "image" or (kind == "heal" and self.counts[path] > 1):
            return self.images[int(path.split("/")[2].partition(".")[0]) % len(self.images)]
        if kind == "drip":
            return None
        return self.unwell if kind == "heal" else self.fixed.get(kind, self.unknown)

    def _about(self, path: str) -> bytes:
        if path == "/_counts":
            told: object = self.counts
        else:
            told = Total(self.counts.total(), self.first, self.last, time.process_time())._asdict()
        if path == "/_reset":
            self.reset()
        return _answer(200, "application/json", json.dumps(told).encode())


class _Connection(asyncio.Protocol):
    """One connection; kept alive until the client closes it or asks for that. Reads GET requests without a body."""

    def __init__(self, site: _Site) -> None:
        self._site = site
        self._unread = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self._unread += data
        while (end := self._unread.find(b"\r\n\r\n")) >= 0:
            head, self._unread = self._unread[:end], self._unread[end + 4 :]
            answer = self._site.answer(head.split(b" ", 2)[1].decode("latin-1"))
            if answer is None:
                self._transport.write(_head(200, "image/jpeg", 100_000))
                self._drip(time.monotonic() + self._site.drip_seconds)
                return
            self._transport.write(answer)
            if b"connection: close" in head.lower():
                self._transport.close()
                return

    def _drip(self, until: float) -> None:
        if self._transport.is_closing():
            return
        if time.monotonic() >= until:
            self._transport.close()
            return
        self._transport.write(b"\xff")
        asyncio.get_running_loop().call_later(1.0, self._drip, until)


class _NoNames(asyncio.DatagramProtocol):
    """A name server that answers every question with "no such name" (RFC 1035, section 4.1)."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        end = data.index(0, 12) + 5  # the name, its closing zero, type and class
        self._transport.sendto(data[:2] + b"\x81\x83" + data[4:6] + bytes(6) + data[12:end], address)


def _head(status: int, kind: str, length: int) -> bytes:
    reason = http.client.responses[status]
    return f"HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n".encode()


def _answer(status: int, kind: str, body: bytes) -> bytes:
    return _head(status, kind, len(body)) + body


def draw_images(folder: Path, count: int) -> list[bytes]:
    """The first `count` images, drawn into the folder unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    return [_kept(folder / f"{number:04d}.jpg", partial(draw, number)) for number in range(count)]


def draw(number: int) -> bytes:
    """JPEG number `number`, always the same: noise that falls with frequency as in photos, with shapes upon it."""
    random = np.random.default_rng(number)
    longer = int(random.integers(LONGER_SIDE[0], LONGER_SIDE[1] + 1))
    shorter = round(longer * random.choice([2 / 3, 3 / 4, 1.0], p=[0.4, 0.5, 0.1]))
    width, height = (longer, shorter) if random.random() < 0.7 else (shorter, longer)
    image = np.full((height, width, 3), random.uniform(60, 190, 3), np.float32)
    for octave in range(2, 9):  # the finer the detail, the fainter; the cells of the last octave are 2 to 6 pixels wide
        rows = 2**octave * height // longer + 2
        cells = random.normal(0, 48 / 1.5**octave, (rows, 2**octave + 2, 3)).astype(np.float32)
        cells = 0.35 * cells + 1.7 * cells.mean(axis=2, keepdims=True)  # light varies more than colour
        image += cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC)
    shapes = image.copy()
    for _ in range(int(random.integers(4, 14))):
        colour = random.uniform(0, 255, 3).tolist()
        x, y = int(random.integers(width)), int(random.integers(height))
        dx, dy = random.integers(longer // 40, longer // 6, 2).tolist()
        if random.random() < 0.5:
            cv2.ellipse(shapes, (x, y), (dx, dy), float(random.uniform(0, 180)), 0, 360, colour, -1)
        else:
            cv2.rectangle(shapes, (x, y), (x + dx, y + dy), colour, -1)
    image = cv2.addWeighted(image, 0.5, shapes, 0.5, 0)
    image += np.tile(random.normal(0, 1.5, (200, 200, 1)).astype(np.float32), (8, 8, 1))[:height, :width]  # a sensor's noise
    quality = int(random.integers(85, 91))
    encoded, jpeg = cv2.imencode(".jpg", np.clip(image, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert encoded
    return bytes(jpeg)


def huge_png() -> bytes:
    """A black PNG of 16000x16000 pixels: 768 MB once it is decoded."""
    deflate = zlib.compressobj(9)
    row = bytes(1 + 3 * HUGE_SIDE)
    data = b"".join([*(deflate.compress(row) for _ in range(HUGE_SIDE)), deflate.flush()])
    header = struct.pack(">IIBBBBB", HUGE_SIDE, HUGE_SIDE, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def _kept(path: Path, make: Any) -> bytes:
    """The bytes of a file, which is made if it is not there."""
    if not path.exists():
        temporary = path.with_suffix(".part")
        temporary.write_bytes(make())
        os.replace(temporary, path)
    return path.read_bytes()


async def _serve(site: _Site, hosts: int) -> None:
    loop = asyncio.get_running_loop()
    first = _listen("127.0.0.1", 0)
    port = first.getsockname()[1]
    for listening in [first, *(_listen(f"127.0.0.{host}", port) for host in range(2, hosts + 1))]:
        await loop.create_server(partial(_Connection, site), sock=listening, backlog=1024)
    await loop.create_datagram_endpoint(_NoNames, local_addr=("127.0.0.1", port))
    print(port, flush=True)
    await asyncio.Event().wait()


def _listen(address: str, port: int) -> socket.socket:
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((address, port))
    return listening


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hosts", type=int, default=64)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--drip-seconds", type=float, default=60.0)
    args = parser.parse_args()
    images = draw_images(args.folder, args.images)
    site = _Site(images, _kept(args.folder / "huge.png", huge_png), args.drip_seconds)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    asyncio.run(_serve(site, args.hosts))


if __name__ == "__main__":
    main()
