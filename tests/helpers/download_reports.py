"""Status tables of downloads that never were, and their reports."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from filtering.files import write_table
from filtering.images.reasons import failure_of
from filtering.reports.download import write
from filtering.schema import STATUS, key_of

SETTINGS = {
    "fetch": {
        "timeout": 10.0,
        "contact": "me@mail.example",
        "connect_to": {"a": "127.0.0.1:1"},
        "nameservers": ("10.9.8.7",),
        "allow": ("10.9.8.0/24",),
    },
    "image": {"image_size": 512},
    "target": "s3://our-bucket",
}


LOST = ("http_404", "http_403", "dns_unknown", "timeout", "http_503", "too_small", "opt_out", "not_an_image", "http_599", "new")


def link(url: str | None, status: str | None = "success", **columns: object) -> dict[str, Any]:
    """A row of a status table; an obtained image has 1000 bytes that are its own."""
    obtained = status == "success"
    image = {
        "bytes": 1000,
        "sha256": hashlib.sha256(f"{url}".encode()).hexdigest(),
        "phash": hashlib.md5(f"{url}".encode()).hexdigest()[:16],
        "original_width": 640,
        "original_height": 480,
        "width": 96,
        "height": 72,
    }
    return {
        "key": key_of(url or "", "a cat"),
        "url": url,
        "caption": "a cat",
        "entities": ["cat"],
        "status": status,
        "failure": failure_of(status or ""),
        "retryable": failure_of(status or "") == "transient",
        "attempts": 1,
        "bytes": 0,
        **(image if obtained else {}),
        **columns,
    }


def crawl(seed: int, links: int, hosts: int) -> list[dict[str, Any]]:
    """Links of all kinds; few hosts have many, most have few."""
    random = np.random.default_rng(seed)
    at = np.minimum((random.pareto(0.5, links) * 3).astype(int), hosts - 1).tolist()
    statuses = random.choice(["success", *LOST], links, p=[0.6, *[0.04] * 10]).tolist()
    return [
        link(f"https://host-{host}.example/{n}.jpg", status) for n, (host, status) in enumerate(zip(at, statuses, strict=True))
    ]


def folder(out: Path, rows: list[dict[str, Any]], shard: int = 1000) -> dict[str, Any]:
    """Write the rows as a download's tables; returns its summary."""
    for number, start in enumerate(range(0, max(1, len(rows)), shard)):
        write_table(out / f"{number:05d}.parquet", pa.Table.from_pylist(rows[start : start + shard], schema=STATUS))
    captions = sum(len(row.get("captions") or [row["caption"]]) for row in rows)
    return {"links": len(rows), "captions": captions, "digest": "0123abcd"}


def report(out: Path, rows: list[dict[str, Any]], **kinds: int) -> dict[str, Any]:
    return write(out, folder(out, rows, **kinds), SETTINGS)
