"""A video through a model: frames in, a video of overlays out."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from cluster.progress import Progress
from owseg.evaluation.pictures import legend_panel, overlay, palette
from owseg.predict import NOTHING, Model, Segmentation
from owseg.videos import VideoReader, VideoWriter
from pipelines.app.config import ConfigError
from pipelines.segmenting.results import MASKS, VIDEO, label_table, shares_line, write_told

MARGIN = 0.01
"""Distance of the legend from the corner, as a share of the height."""


@dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """How a video's frames are segmented."""

    background: bool = True
    every: int = 1
    """Each so many frames one is segmented; those between keep its labels."""
    smooth: float = 0.0
    """The part of the scores before in a frame's: an exponential mean over the frames that are segmented. 0 = none."""
    masks: bool = False
    """Whether the mask of each segmented frame is written."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigError(f"--every: {self.every} must be at least 1")
        if not 0 <= self.smooth < 1:
            raise ConfigError(f"--smooth: {self.smooth:g} is out of range; give 0 (none) up to, but not, 1")


def segment_video(
    model: Model, path: Path, stem: Path, names: tuple[str, ...], options: VideoOptions, made_by: dict[str, Any]
) -> str:
    """Write overlay video, JSON and, on request, masks; returns what is said of it.

    Raises InputError for a video that cannot be read, and ConfigError where results cannot be written.
    """
    drawn = stem.with_name(stem.name + VIDEO)
    colours = palette(len(names))
    counts = np.zeros(1 + len(names), np.int64)
    frames = segmented = 0
    try:
        with VideoReader(path) as video:
            stem.parent.mkdir(parents=True, exist_ok=True)
            size = {"width": video.width, "height": video.height}
            panel = np.asarray(legend_panel([*zip(names, colours, strict=True)], video.width, video.height))
            with (
                VideoWriter(drawn, **size, rate=video.rate) as out,
                Progress(path.name, total=video.stated, unit="frames") as progress,
            ):
                for frame, result, fresh in _segmented(model, video, names, options):
                    if fresh:
                        counts += np.bincount(result.labels.ravel() + 1, minlength=len(counts))
                        if options.masks:
                            _write_mask(result, stem, frames)
                    out.write(_drawn(frame, result, panel))
                    frames, segmented = frames + 1, segmented + fresh
                    progress.expect(max(video.stated, frames))
                    progress.advance()
        nothing, *of_labels = (counts / counts.sum()).tolist()
        shares = dict(zip(names, of_labels, strict=True))
        told = {"video": path.name, **made_by, **size, "rate": video.rate, "frames": frames, "segmented": segmented}
        told |= {"every": options.every, "smooth": options.smooth, "labels": label_table(shares, colours)}
        write_told(told | {"nothing": round(nothing, 6), "threshold": result.threshold}, stem)
    except OSError as error:
        raise ConfigError(f"--out: {stem} cannot be written ({error.strerror or error})") from None
    return f"{frames} frames of {video.width} x {video.height}, {shares_line(shares, nothing)} → {drawn}"


def _segmented(
    model: Model, video: VideoReader, names: tuple[str, ...], options: VideoOptions
) -> Iterator[tuple[np.ndarray, Segmentation, bool]]:
    """Each frame, the segmentation that holds there, and whether it is the frame's own."""
    mean: Tensor | None = None
    for number, frame in enumerate(video):
        fresh = number % options.every == 0
        if fresh:
            scores = model.score(frame, names, background=options.background)
            mean = scores if mean is None or not options.smooth else scores.lerp(mean, options.smooth)
            result = model.decide(frame, names, mean, background=options.background)
        yield frame, result, fresh


def _drawn(frame: np.ndarray, result: Segmentation, panel: np.ndarray) -> np.ndarray:
    """The labels' colours on a frame, with the legend in its lower left corner."""
    picture = overlay(frame, result.labels, result.colours, ignore=NOTHING)
    height, width = panel.shape[:2]
    left = round(MARGIN * len(frame))
    bottom = len(frame) - left
    picture[bottom - height : bottom, left : left + width] = panel
    return picture


def _write_mask(result: Segmentation, stem: Path, number: int) -> None:
    folder = stem.with_name(stem.name + MASKS)
    folder.mkdir(exist_ok=True)
    result.mask().save(folder / f"{number:06}.png")
