"""Tars of given files for tests of readers."""

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image


def picture(colour: str = "red", kind: str = "JPEG", mode: str = "RGB", size: tuple[int, int] = (40, 48)) -> bytes:
    """An encoded picture of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def write(path: Path, files: Iterable[tuple[str, bytes]], **options: Any) -> Path:
    """A tar of (name, content) in the order given; options are tarfile's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def sample(key: str, caption: str | bytes = "a wall", image: bytes | None = None, **about: Any) -> list[tuple[str, bytes]]:
    """The files of a sample, with a JSON of what is known about it, if anything is."""
    text = caption.encode() if isinstance(caption, str) else caption
    sidecar = [(f"{key}.json", json.dumps(about).encode())] if about else []
    return [(f"{key}.jpg", picture() if image is None else image), *sidecar, (f"{key}.txt", text)]


def samples(number: int, spoilt: Mapping[int, tuple[str, bytes]] | None = None, **about: Any) -> list[tuple[str, bytes]]:
    """The files of so many samples; `spoilt` replaces of some one file: {3: (".jpg", b"")}."""
    files = [file for index in range(number) for file in sample(f"{index:04}", f"wall {index}", **about)]
    for index, (suffix, content) in (spoilt or {}).items():
        name = f"{index:04}{suffix}"
        files = [(there, content if there == name else data) for there, data in files]
    return files
