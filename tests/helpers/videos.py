"""Tiny videos, as tests write them."""

from pathlib import Path

import cv2
import numpy as np

from helpers import tiny


def moving(frames: int = 5, height: int = 40, width: int = 56) -> list[np.ndarray]:
    """Frames [H, W, 3] uint8 of blocks that move to the right."""
    still = tiny.blocks(height, width)
    return [np.roll(still, 4 * number, axis=1) for number in range(frames)]


def write_video(path: Path, frames: list[np.ndarray], rate: float = 12.5) -> Path:
    """RGB frames as a video of the kind that the name says; AVI is Motion JPEG, WebM is VP8."""
    height, width = frames[0].shape[:2]
    code = {".avi": "MJPG", ".webm": "VP80"}.get(path.suffix, "mp4v")
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*code), rate, (width, height))
    assert writer.isOpened()
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def read_video(path: Path) -> tuple[list[np.ndarray], float]:
    """A video's frames, RGB, and its rate, as OpenCV alone reads them."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    frames = []
    while (read := capture.read())[0]:
        frames.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
    return frames, capture.get(cv2.CAP_PROP_FPS)
