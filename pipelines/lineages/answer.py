"""What there is to say about an image, as `lineage --json` prints it."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class CorpusRow:
    """A row of the corpus."""

    key: str
    url: str
    caption: str
    status: str
    """ "kept", or the rule that dropped it."""
    file: str


@dataclass(frozen=True, kw_only=True)
class Downloaded:
    """What the download did with a link."""

    key: str
    """The name of its sample."""
    keys: list[str]
    """Of all of its captions."""
    url: str
    status: str
    message: str
    file: str
    likeness: str = ""
    """How it was found where an image was looked for; "" where a link or key was."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the image of a sample lies."""

    tar: str
    key: str
    sample: int
    """Its place among the tar's samples, from 1 on."""
    samples: int
    offset: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class CheckpointSaw:
    """Weights, the steps behind them, and in how many places of these the image was shown."""

    path: str
    steps: int
    times: int


@dataclass(frozen=True, kw_only=True)
class TrainingSaw:
    """What a training showed of an image."""

    training: str
    """Its folder, in the run's."""
    fingerprint: str
    """What tells it from other trainings, whatever its folder is called by now."""
    steps: int
    """Steps that it has taken."""
    unknown: str
    """Why its steps cannot be told; "" where they are below."""
    shown: list[list[int]] = field(default_factory=list)
    """Step and place in the global batch, both from 0."""
    partner: list[list[int]] = field(default_factory=list)
    """Where it was shown as another image's partner."""
    checkpoints: list[CheckpointSaw] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Lines on files of it that are damaged."""

    @property
    def times(self) -> int:
        """How often it was shown."""
        return len(self.shown) + len(self.partner)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """All that is known of what was asked for."""

    name: str
    run: str
    forgotten: bool
    corpus: list[CorpusRow]
    download: list[Downloaded]
    places: list[Place]
    trainings: list[TrainingSaw]
    before: list[dict[str, Any]] = field(default_factory=list)
    """Answers that were given when the image was forgotten, each with the day."""

    @property
    def known(self) -> bool:
        """Whether the run has ever met it."""
        return bool(self.corpus or self.download or self.places or self.before)

    @property
    def keys(self) -> set[str]:
        """The keys of its rows and samples."""
        keys = {row.key for row in self.corpus} | {one.key for one in self.places}
        return keys | {key for row in self.download for key in row.keys}

    @property
    def urls(self) -> set[str]:
        """Its links."""
        return {row.url for row in self.corpus if row.url} | {row.url for row in self.download if row.url}
