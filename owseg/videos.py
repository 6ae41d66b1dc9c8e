"""Video files, read and written through OpenCV a frame at a time, so that memory does not grow with their length."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cv2
import numpy as np
from PIL import Image

from owseg import InputError
from owseg.photos import reason

SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm")
"""What is taken for a video, besides a GIF that moves."""
OPENINGS = (b"RIFF", b"\x1a\x45\xdf\xa3", b"GIF8")
"""How AVI, Matroska with WebM, and GIF begin ..."""
BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
"""... and what bytes 4 to 8 of MP4 and QuickTime say. FFmpeg would read playlists, too, which name files and addresses."""
MAX_SIDE = 8190
"""Longest side in pixels that MPEG-4 can hold, in whole pairs."""
RATES = (1.0, 240.0)
USUAL_RATE = 25.0
"""Frames per second where a file names none, or, being of variable rate, one outside of RATES."""
MISSED = 0.02
"""The share of the frames stated by a file that may be missing: containers estimate."""
# What FFmpeg inside of OpenCV goes by, from its first use on: no lines of its own, and nothing but files.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "protocol_whitelist;file")


def is_video(path: Path) -> bool:
    """Whether a file is taken for a video: by its name and, of a GIF, by whether it has several frames."""
    if path.suffix.lower() != ".gif":
        return path.suffix.lower() in SUFFIXES
    with suppress(Exception), Image.open(path) as image:  # what is wrong with it is told where it is read
        return bool(getattr(image, "is_animated", False))
    return False


class VideoReader:
    """The frames of a video, upright RGB [H, W, 3] uint8, one at a time.

    Raises InputError that names the file where it is no video, is too large, is cut, or changes its size.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if trouble := _trouble(path):
            raise InputError(f"{path}: not a readable video ({trouble})")
        self._capture = _quiet(cv2.VideoCapture, str(path), cv2.CAP_FFMPEG)
        self.width, self.height, stated = (
            round(self._number(what))
            for what in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_COUNT)
        )
        if not self._capture.isOpened() or min(self.width, self.height) < 1:
            raise InputError(f"{path}: not a readable video (damaged, or coded in a way that OpenCV does not know)")
        if max(self.width, self.height) > MAX_SIDE:
            raise InputError(f"{path}: {self.width} x {self.height} pixels; at most {MAX_SIDE} a side can be written: scale it")
        self.stated = max(stated, 0)
        """How many frames the file says that it has; 0 where it does not."""
        rate = self._number(cv2.CAP_PROP_FPS)
        self.rate = rate if RATES[0] <= rate <= RATES[1] else USUAL_RATE
        """Frames per second."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._capture.release()

    def __iter__(self) -> Iterator[np.ndarray]:
        count = 0
        while (frame := self._next()) is not None:
            if frame.shape != (self.height, self.width, 3):
                size = f"{frame.shape[1]} x {frame.shape[0]}"
                raise InputError(
                    f"{self.path}: frame {count + 1} is {size} pixels, and those before {self.width} x {self.height}"
                )
            count += 1
            yield frame
        if not count:
            raise InputError(f"{self.path}: not a readable video (it has no frames)")
        if self.stated - count > max(1, MISSED * self.stated):
            raise InputError(f"{self.path}: is cut or damaged after {count} of {self.stated} frames")

    def _next(self) -> np.ndarray | None:
        there, frame = self._capture.read()
        return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) if there else None

    def _number(self, what: int) -> float:
        value = float(self._capture.get(what))
        return value if math.isfinite(value) else 0.0


class VideoWriter:
    """An MP4 of RGB frames [H, W, 3] uint8. It gets its name when it is whole; what ends the block before leaves no file.

    An odd side grows by a pixel, as MP4 holds whole pairs alone. Raises InputError where the file cannot be written.
    """

    def __init__(self, path: Path, *, width: int, height: int, rate: float) -> None:
        self.path = path
        self._temporary = path.with_name(f".{path.stem}.{os.getpid()}.mp4")
        self._missing = (height % 2, width % 2)
        size = (width + width % 2, height + height % 2)
        self._writer = _quiet(
            cv2.VideoWriter, str(self._temporary), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), rate, size
        )
        self._frames = 0
        if not self._writer.isOpened():
            self._discard()
            raise InputError(f"{path}: this video cannot be written; look at the folder and the room on its disk")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._writer.release()
        if error is not None:
            self._discard()
            return
        if not self._is_whole():  # a full disk, of which OpenCV says nothing
            self._discard()
            raise InputError(f"{self.path}: this video cannot be written to its end; make room on the disk")
        os.replace(self._temporary, self.path)

    def write(self, frame: np.ndarray) -> None:
        """Add a frame."""
        if any(self._missing):
            frame = np.pad(frame, ((0, self._missing[0]), (0, self._missing[1]), (0, 0)), mode="edge")
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        self._frames += 1

    def _is_whole(self) -> bool:
        written = _quiet(cv2.VideoCapture, str(self._temporary), cv2.CAP_FFMPEG)
        count = round(written.get(cv2.CAP_PROP_FRAME_COUNT)) if written.isOpened() else 0
        written.release()
        return count == self._frames

    def _discard(self) -> None:
        self._writer.release()
        with suppress(OSError):
            self._temporary.unlink()


def _trouble(path: Path) -> str:
    """Why a file cannot be a video, as far as its beginning tells; empty where it may be one."""
    try:
        if not path.is_file():
            return "not a regular file" if path.exists() else "no such file"
        with path.open("rb") as file:
            head = file.read(12)
    except OSError as error:
        return reason(path, error)
    if not head:
        return "the file is empty"
    known = head.startswith(OPENINGS) or head[4:8] in BOXES
    return "" if known else "neither MP4, QuickTime, AVI, Matroska, WebM nor GIF"


def _quiet(make: Any, *arguments: Any) -> Any:
    """What OpenCV makes, without its lines on stderr: outcomes are told here."""
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return make(*arguments)
