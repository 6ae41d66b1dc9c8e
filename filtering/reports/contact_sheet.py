"""Some images of a download, small enough to stand in its page: what numbers do not show."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import cv2
import numpy as np

from storage.copies import names_in, opened
from storage.indexes import indexes_of, read
from storage.tar_index import TarIndex
from storage.tars import BLOCK

IMAGES = 36
HEIGHT = 96
WIDEST = 3
"""A thumbnail's width at most, in heights."""
_QUALITY = 80


class Thumbnail(NamedTuple):
    """A small JPEG as base64, its size in pixels, and its sample's key and caption."""

    jpeg: str
    width: int
    height: int
    key: str
    caption: str


def thumbnails(shards: Path, most: int = IMAGES) -> list[Thumbnail]:
    """Up to `most` images of the tars in a folder, the same ones each time.

    Samples are dealt out to shards by a hash, and of a shard those with the smallest keys, hashes too, are taken: a fair choice
    that looks into as few tars as it needs. Images that cannot be decoded are passed over.
    """
    chosen: list[Thumbnail] = []
    for name in names_in(shards):
        if len(chosen) == most:
            break
        if name.endswith(".tar"):
            for thumbnail in _of_tar(shards / name):
                chosen.append(thumbnail)
                if len(chosen) == most:
                    break
    return chosen


def _of_tar(tar: Path) -> Iterator[Thumbnail]:
    """The thumbnails of a tar in the order of its keys."""
    (file,) = indexes_of([tar])
    index = read(file)
    where = opened(tar)
    with where.open("rb") if isinstance(where, Path) else io.BufferedReader(where) as content:
        for key, sample in sorted((index.key(sample), sample) for sample in range(index.header.samples)):
            image, caption = (_file(content, index, sample, name) for name in ("image", "caption"))
            if small := _small(image):
                jpeg, width, height = small
                text = caption.decode("utf-8", "replace")
                yield Thumbnail(base64.b64encode(jpeg).decode(), width, height, key, text)


def _file(tar: BinaryIO, index: TarIndex, sample: int, name: str) -> bytes:
    """A sample's image or caption; empty where it has none."""
    record = index.records[sample]
    if not record[name]:
        return b""
    tar.seek(int(record[name]) * BLOCK)
    return tar.read(int(record[f"{name}_bytes"]))


def _small(image: bytes) -> tuple[bytes, int, int] | None:
    """A JPEG of `HEIGHT` pixels or less, with its width and height; None where the image cannot be decoded."""
    if not image:
        return None
    try:
        pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:  # of more pixels than OpenCV reads
        return None
    if pixels is None:
        return None
    scale = min(1.0, HEIGHT / pixels.shape[0], WIDEST * HEIGHT / pixels.shape[1])
    width, height = (max(1, round(side * scale)) for side in (pixels.shape[1], pixels.shape[0]))
    small = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes(), width, height
