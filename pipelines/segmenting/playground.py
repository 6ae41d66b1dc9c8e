"""What the playground does behind its page: the models that it offers, and bounds on what a visitor may ask of them."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from owseg import InputError
from owseg.checkpoint import Checkpoint, find_checkpoint, trained_in, training_free
from owseg.frozen_tower import TowerSettings
from owseg.methods import PRETRAININGS
from owseg.methods.chance import ChanceConfig
from owseg.methods.dino import DinoConfig
from owseg.photos import UNREADABLE, open_image, read_photo
from owseg.predict import Model, Segmentation, clean_labels
from pipelines.app.models import load_model, short_name
from pipelines.app.registered import checkpoint_here

MAX_BYTES = 32 * 2**20
"""Size of a photo's file ..."""
MAX_PIXELS = 25_000_000
"""... and of the photo; its scores are kept while the page is open, some 10 bytes for each pixel and method."""
MAX_LABELS = 100
MAX_LETTERS = 5000
"""Of all labels together."""
NOT_OFFERED = (*PRETRAININGS, ChanceConfig().name)
"""What draws no masks, or random ones."""
SHOWN_FIRST = 3
"""Methods of a run that are chosen when the page opens."""


@dataclass(frozen=True)
class Choice:
    """A model that can be chosen: what `find_checkpoint` is asked for when it is."""

    source: str
    method: str = ""
    trained: bool = True


def choices_of(sources: Sequence[str], encoder: Mapping[str, str]) -> dict[str, Choice]:
    """The models in runs' folders and checkpoints, by the names that the page shows; those that were trained come first.

    encoder: the keywords of `find_checkpoint` that name it. Raises InputError for what is neither.
    """
    found: list[tuple[str, Choice]] = []
    for source in map(checkpoint_here, sources):
        trained = trained_in(Path(source))
        names = [name for name in trained if name not in NOT_OFFERED]
        if not trained:
            found.append((short_name(find_checkpoint(source, **encoder)), Choice(source)))
            continue
        found += [(name, Choice(source, name)) for name in names]
        has_tower = DinoConfig().name in trained
        modes = {name: mode for name, mode in training_free().items() if has_tower or not isinstance(mode, TowerSettings)}
        free = [name for name in modes if name not in NOT_OFFERED]
        found += [(name, Choice(source, name, trained=False)) for name in free]
    found.sort(key=lambda pair: not pair[1].trained)
    several = len(sources) > 1
    return {f"{name} ({choice.source})" if several else name: choice for name, choice in found}


class Playground:
    """Models that are loaded when they are first chosen, and then kept."""

    def __init__(self, sources: Sequence[str], encoder: Mapping[str, str], device: str) -> None:
        self.choices = choices_of(sources, encoder)
        trained = [name for name, choice in self.choices.items() if choice.trained]
        self.first = (trained or [*self.choices])[:SHOWN_FIRST]
        """What is chosen when the page opens."""
        self._encoder, self._device = encoder, device
        self._models: dict[str, Model] = {}
        self._loading = threading.Lock()

    def segment(self, photo: str | None, text: str, names: Sequence[str], *, background: bool) -> dict[str, Segmentation]:
        """The photo in a file by each of the named models. Raises InputError in the page's words for what cannot be done."""
        if not photo:
            raise InputError("photo: there is none; drop one on the page")
        if not names or not set(names) <= self.choices.keys():
            raise InputError(f"methods: choose at least one of {', '.join(self.choices)}")
        labels = read_bounded(text)
        image = read_bounded_photo(Path(photo))
        return {name: self._model(name).segment(image, labels, background=background) for name in names}

    def _model(self, name: str) -> Model:
        with self._loading:
            if name not in self._models:
                self._models[name] = load_model(self._checkpoint(name), self._device)
            return self._models[name]

    def _checkpoint(self, name: str) -> Checkpoint:
        choice = self.choices[name]
        return find_checkpoint(choice.source, choice.method, **self._encoder)


def read_bounded(text: str) -> tuple[str, ...]:
    """The labels of "cat, wooden table, sky"; one a line will do, too. Raises InputError for none, or too many."""
    if len(text) > MAX_LETTERS:
        raise InputError(f"labels: {len(text)} letters are too many; at most {MAX_LETTERS}")
    labels = clean_labels([label for label in text.replace("\n", ",").split(",") if label.strip()])
    if len(labels) > MAX_LABELS:
        raise InputError(f"labels: {len(labels)} are too many; at most {MAX_LABELS}")
    return labels


def read_bounded_photo(path: Path) -> np.ndarray:
    """The photo in a file, RGB [H, W, 3] uint8. Raises InputError where it is too large, before its pixels are decoded."""
    try:
        bytes_of_file = path.stat().st_size
        with open_image(path) as opened:
            width, height = opened.size
    except UNREADABLE:
        bytes_of_file = width = height = 0  # what is wrong is told below
    if bytes_of_file > MAX_BYTES:
        raise InputError(f"photo: {bytes_of_file / 2**20:.0f} MB are too many; at most {MAX_BYTES // 2**20}")
    if width * height > MAX_PIXELS:
        raise InputError(f"photo: {width} x {height} pixels are too many; at most {MAX_PIXELS / 1e6:.0f} megapixels")
    try:
        return read_photo(path)
    except InputError as error:
        raise InputError(str(error).replace(str(path), path.name)) from None
