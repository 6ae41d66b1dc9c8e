"""Segment any photo with any labels:

from owseg.predict import load

model = load("runs/demo/train/tcl")  # or a run's folder, an official .pth, or a training-free mode such as "naclip"
result = model.segment("photo.jpg", ["cat", "wooden table", "sky"])
result.labels  # [H, W]: the index of each pixel's label, -1 where it is none of them
result.overlay().save("overlay.png")
"""

import logging
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from owseg import InputError
from owseg.checkpoint import TRAINING_FREE, Checkpoint, find_checkpoint
from owseg.evaluation.inference import WINDOW_BATCH, predict_scores, upsample_argmax
from owseg.evaluation.pictures import NAME, Legend, legend_below, overlay, palette
from owseg.evaluation.protocols import View
from owseg.methods.clip import ClipConfig
from owseg.photos import Photo, read_photo
from owseg.segmenter import load_segmenter, shortened_names
from owseg.text import told_shortened

log = logging.getLogger(__name__)

NOTHING = -1
MOST_LABELS = 2**15 - 1
PLANES_AT_ONCE = 256
"""Masks of windows that are held at a time, so that many labels take time and not memory."""
OVERLAY_SIDE = 1600
"""Longest side of an overlay in pixels; masks keep the photo's own size."""
OPACITY = 0.6
"""Of the labels' colours on a photo."""


class Best(NamedTuple):
    """The label with the highest score in a photo."""

    label: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """What was found in a photo."""

    image: np.ndarray
    """The photo upright, [H, W, 3] uint8."""
    names: tuple[str, ...]
    """The labels that were asked for."""
    nearest: np.ndarray
    """[H, W] int16: the index in `names` of each pixel's best label, -1 where the method's own background is better."""
    scores: np.ndarray
    """[H, W] float32: the highest score that any label has at a pixel (of the method: a mask's value, a cosine)."""
    best: Best
    """The label that comes nearest to being found anywhere, or is found most surely."""
    threshold: float | None = None
    """The score that a label must exceed; None where each pixel has a label, or the method draws the background itself."""

    @cached_property
    def labels(self) -> np.ndarray:
        """[H, W] int16: the index in `names` of each pixel's label, -1 where it is none of them."""
        if self.threshold is None:
            return self.nearest
        return np.where(self.scores > np.float32(self.threshold), self.nearest, np.int16(NOTHING))

    @property
    def colours(self) -> np.ndarray:
        """A colour for each label, [n, 3] uint8."""
        return palette(len(self.names))

    def shares(self) -> dict[str, float]:
        """The share of the photo's pixels that each label has, 0..1; what is left to 1 is nothing."""
        counts = np.bincount(self.labels.ravel() + 1, minlength=1 + len(self.names))[1:]
        return dict(zip(self.names, (counts / self.labels.size).tolist(), strict=True))

    @property
    def nothing(self) -> float:
        """The share of the photo's pixels that have no label, 0..1."""
        return float(np.mean(self.labels == NOTHING))

    def why_nothing(self) -> str:
        """Why no label is anywhere in the photo, in a few words; empty where one is."""
        if (self.labels != NOTHING).any():
            return ""
        label = self.best.label if len(self.best.label) <= NAME else f"{self.best.label[: NAME - 3]}..."
        limit = (
            "is stronger than the background" if self.threshold is None else f"exceeds the threshold of {self.threshold:.3g}"
        )
        return f"no label {limit}; the best is {label!r} with {self.best.score:.3g}"

    def mask(self) -> Image.Image:
        """An indexed picture at the photo's size: 0 = nothing, i = label i counted from 1, in the overlay's colours.

        Beyond 255 labels it has 16 bits and no colours.
        """
        index = (self.labels + 1).astype(np.uint16)
        if len(self.names) > 255:
            return Image.fromarray(index)
        mask = Image.fromarray(index.astype(np.uint8), mode="P")
        mask.putpalette([0, 0, 0, *self.colours.ravel().tolist()])
        return mask

    def at(self, threshold: float) -> "Segmentation":
        """The same photo with the labels of another threshold. Without one, each pixel has a label or it is not ours to set."""
        return self if self.threshold is None else replace(self, threshold=threshold)

    def overlay(self, side: int = OVERLAY_SIDE) -> Image.Image:
        """The labels' colours on the photo, with a legend below; photos longer than `side` are scaled down to it."""
        shares = [*self.shares().items()]
        found = [(name, share, colour) for (name, share), colour in zip(shares, self.colours, strict=True) if share]
        legend: Legend = [(f"{name} {percent(share)}", colour) for name, share, colour in found]
        legend += [(f"nothing {percent(self.nothing)}", None)] if self.nothing else []
        return legend_below(self.drawn(side), legend, self.why_nothing())

    def drawn(self, side: int = OVERLAY_SIDE, opacity: float = OPACITY) -> Image.Image:
        """The overlay without its legend. opacity: of the colours, 0..1."""
        height, width = self.labels.shape
        scale = min(1.0, side / max(height, width))
        size = (max(round(width * scale), 1), max(round(height * scale), 1))
        image = np.asarray(Image.fromarray(self.image).resize(size, Image.Resampling.BOX))
        rows, columns = (np.arange(new) * old // new for new, old in zip(size[::-1], (height, width), strict=True))
        return Image.fromarray(overlay(image, self.labels[rows[:, None], columns], self.colours, opacity, ignore=NOTHING))


class Model:
    """A method ready to segment photos."""

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu") -> None:
        if isinstance(checkpoint.method, ClipConfig):
            raise InputError(
                "clip is an encoder and draws no masks by itself; name a training-free mode, such as maskclip, to read it"
            )
        try:
            self.device = torch.device(device)
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"device: {device!r} cannot be used here ({error})") from error
        self.checkpoint = checkpoint
        self.segmenter = load_segmenter(checkpoint.method, checkpoint.encoder, checkpoint.weights).to(self.device)
        self._embedded: tuple[tuple[str, ...], Tensor] | None = None

    def segment(self, photo: Photo, labels: Sequence[str], *, background: bool = True) -> Segmentation:
        """Give each pixel of a photo the label that fits it best.

        With `background`, pixels that no label fits as well as the method's threshold asks for become nothing. That is the
        default: labels of one's own choice seldom cover a photo, and a single label would cover all of it. Without it every
        pixel gets one of the labels. Raises InputError for labels that are empty or given twice, and unreadable photos.
        """
        names = clean_labels(labels)
        image = read_photo(photo)
        return self.decide(image, names, self.score(image, names, background=background), background=background)

    @torch.inference_mode()
    def score(self, image: np.ndarray, names: tuple[str, ...], *, background: bool = True) -> Tensor:
        """The first half of `segment`: scores [n, h, w] of clean labels in an RGB image [H, W, 3] uint8 at the view's size.

        With `background`, a method that draws the background itself has that plane in front: [1 + n, h, w].
        """
        checkpoint = self.checkpoint
        return predict_scores(
            self.segmenter,
            image,
            self._embed(names),
            background and self.draws_background,
            checkpoint.view,
            checkpoint.normalisation,
            batch=max(1, min(WINDOW_BATCH, PLANES_AT_ONCE // len(names))),
        )

    @torch.inference_mode()
    def decide(self, image: np.ndarray, names: tuple[str, ...], scores: Tensor, *, background: bool = True) -> Segmentation:
        """The second half of `segment`: what `score` of the same arguments, or a mean of several, says of each pixel."""
        own_plane = background and self.draws_background
        best, winner = upsample_argmax(scores, (image.shape[0], image.shape[1]))
        nearest = winner.sub_(int(own_plane)).to(torch.int16)
        surest = (
            Best(names[int(nearest.view(-1)[best.argmax()])], float(best.max())) if not own_plane else _peak(scores[1:], names)
        )
        return Segmentation(
            image=image,
            names=names,
            nearest=nearest.cpu().numpy(),
            scores=best.cpu().numpy(),
            best=surest,
            threshold=self.segmenter.background_threshold if background else None,
        )

    @property
    def draws_background(self) -> bool:
        """Whether the method draws the background as a plane of its own, so that no threshold decides on it."""
        return self.segmenter.background_threshold is None

    def _embed(self, names: tuple[str, ...]) -> Tensor:
        if self._embedded is None or self._embedded[0] != names:
            try:
                cut = shortened_names(self.segmenter, names)
            except InputError as error:
                raise InputError(f"labels: {error}") from error
            if cut:
                log.warning("labels: %s", told_shortened(cut))
            self._embedded = names, self.segmenter.embed_classes(names).to(self.device)
        return self._embedded[1]


def _peak(scores: Tensor, names: Sequence[str]) -> Best:
    """The label with the highest of the scores [n, h, w]."""
    of_label = scores.flatten(1).amax(dim=1)
    return Best(names[int(of_label.argmax())], float(of_label.max()))


def load(
    checkpoint: str | Path | Checkpoint = TRAINING_FREE,
    *,
    method: str = "",
    encoder_model: str = "",
    encoder_weights: str = "",
    view: View | None = None,
    device: str = "cpu",
    **settings: Any,
) -> Model:
    """A model from a folder that the train stage wrote, a run's folder, an official `.pth`, or a training-free mode's name.

    method and encoder_*: as in `find_checkpoint`. view: sizes and windows; by default what the checkpoint was made for.
    settings: of the method (`pamr=True`, `background_threshold=0.3`). Raises InputError that says what is wrong or missing.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = find_checkpoint(checkpoint, method, encoder_model=encoder_model, encoder_weights=encoder_weights)
    known = {field.name for field in fields(checkpoint.method)}
    if unknown := sorted(settings.keys() - known):
        raise InputError(f"{unknown[0]}: {checkpoint.method.name} has no such setting; it has {', '.join(sorted(known))}")
    return Model(replace(checkpoint, method=replace(checkpoint.method, **settings), view=view or checkpoint.view), device)


def percent(share: float) -> str:
    """A share of 0..1 in whole percent; what is there, but less, as "<1 %"."""
    return f"{100 * share:.0f} %" if share == 0 or share >= 0.005 else "<1 %"


def clean_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Labels with plain single spaces. Raises InputError where there is none, or one is empty or given twice."""
    if isinstance(labels, str):
        raise InputError('labels: give a list, such as ["cat", "sky"]')
    names = tuple(" ".join(label.split()) for label in labels)
    if not names:
        raise InputError("labels: there are none; name at least one thing to look for")
    if len(names) > MOST_LABELS:
        raise InputError(f"labels: {len(names)} are too many; at most {MOST_LABELS}")
    seen = set()
    for number, name in enumerate(names, 1):
        if not name:
            raise InputError(f"labels: number {number} is empty")
        # CLIP reads all ways of writing a letter alike, and capitals as small ones.
        if (read := unicodedata.normalize("NFC", name).casefold()) in seen:
            raise InputError(f"labels: '{name}' is given twice")
        seen.add(read)
    return names
