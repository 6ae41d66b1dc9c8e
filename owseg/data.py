"""Samples of image-caption shards as training batches, each a function of (seed, step) alone.

Batches depend on nothing but the samples, the seed, the step and the rank, which makes a resumed run continue with exactly the
sample it would have seen.
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from owseg import InputError
from owseg.augmentation import AugmentConfig, Decoded, TrainingTransform
from owseg.left_out import BadSample, refuse_more
from owseg.normalisation import Normalisation
from owseg.partners import Partners
from owseg.reading import Read, read_sample
from owseg.shards import ShardReader
from owseg.stored_features import StoredFeatures
from owseg.text import ReadTexts
from storage.node_arrays import Allocate, node_arrays

Prepare = Callable[[list[str], list[list[str]], list[str] | None, list[random.Random]], dict[str, Tensor]]
"""What a method makes of a batch's captions, their entities, and the entities shared with partners: token ids by name.

The last list has each sample's random numbers: what is drawn from them is the same on any number of ranks.
"""
Views = Callable[[Image.Image, AugmentConfig], dict[str, Tensor]]
"""What a method draws of an RGB image besides the augmented one: crops [n, 3, h, w] in 0..1 by name.

Draws from torch, numpy and `random`, which are seeded for each sample.
"""


class Batch(NamedTuple):
    """One rank's share of a step: image [B, 3, H, W] normalised float32, tokens [B, L] int64, captions and keys of length B.

    Where it holds `features`, these stand in the place of pixels and of token ids (`owseg.features`).
    """

    image: Tensor
    tokens: Tensor
    captions: list[str]
    keys: list[str]
    texts: dict[str, Tensor] = {}  # noqa: RUF012 -- read-only: all batches without texts share it
    """What the method's `prepare` made of captions and entities."""
    partner: Tensor | None = None
    """[B, 3, H, W]: for each image another one that shares an entity with it, in phases that ask for it."""
    views: dict[str, Tensor] = {}  # noqa: RUF012 -- read-only, too
    """What the method's `views` drew of each image: [B, n, 3, h, w] normalised float32."""
    first: int = 0
    """Place of the first row in the global batch."""
    bad: Sequence[BadSample] = ()
    """Samples that were to be in the batch and cannot be read: others took their places."""
    features: bool = False
    """Whether `image`, `tokens` and `texts` hold what frozen towers have made of images and texts."""

    def part(self, start: int, stop: int) -> "Batch":
        """The rows start..stop-1."""
        rows = slice(start, stop)
        return self._replace(
            image=self.image[rows],
            tokens=self.tokens[rows],
            captions=self.captions[rows],
            keys=self.keys[rows],
            texts={name: tensor[rows] for name, tensor in self.texts.items()},
            partner=None if self.partner is None else self.partner[rows],
            views={name: tensor[rows] for name, tensor in self.views.items()},
            first=self.first + start,
        )

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on `device`."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return self._replace(
            image=move(self.image),
            tokens=move(self.tokens),
            texts={name: move(tensor) for name, tensor in self.texts.items()},
            partner=None if self.partner is None else move(self.partner),
            views={name: move(tensor) for name, tensor in self.views.items()},
        )


def seed_sample(seed: int, step: int, place: int) -> None:
    """Make what is drawn next a function of (seed, step, place in the global batch), whatever the number of ranks."""
    state = np.random.SeedSequence([seed, step, place]).generate_state(1)[0]
    random.seed(int(state))
    np.random.seed(state)
    torch.default_generator.manual_seed(int(state))  # torch.manual_seed would seed GPUs, too, which takes longer than a crop


@lru_cache(maxsize=1)  # each step of an epoch asks for it, and millions take 0.1 s to shuffle
def epoch_order(samples: int, seed: int, epoch: int, schedule: int = 0) -> np.ndarray:
    """The order in which an epoch of a schedule visits its samples; a new one every epoch and in every schedule."""

    def shuffle(allocate: Allocate) -> None:
        rng = np.random.default_rng([seed, epoch, *([schedule] if schedule else [])])
        allocate("order", np.int32 if samples < 1 << 31 else np.int64, samples)[:] = rng.permutation(samples)

    return node_arrays(f"order {samples} {seed} {epoch} {schedule}", samples, shuffle)["order"]


def caption_number(captions: int, seed: int, epoch: int, key: str, schedule: int = 0) -> int:
    """Which of a sample's captions an epoch of a schedule shows."""
    if captions == 1:
        return 0
    number = int.from_bytes(hashlib.sha256(key.encode(errors="surrogateescape")).digest()[:8])
    return int(np.random.default_rng([seed, epoch, number, *([schedule] if schedule else [])]).integers(captions))


class Opened(NamedTuple):
    """A sample of a batch: its number in the reader, its image, and the caption that was drawn, with its entities."""

    number: int
    photo: Decoded | Tensor
    """Decoded, or its features."""
    caption: str
    entities: list[str]


class _Drawn(NamedTuple):
    """A sample of a batch, and what the loader draws of it."""

    number: int
    caption: str
    entities: list[str]
    image: Tensor
    views: dict[str, Tensor]
    partner: list[tuple[Tensor, str]]
    """Image and shared entity of its partner; none in phases without."""


def _number(*parts: int) -> int:
    """One number that stands for several."""
    return int(np.random.SeedSequence(parts).generate_state(2, np.uint64)[0])


def check_batch_size(batch_size: int, *, samples: int, workers: int, key: str = "optim.batch_size") -> None:
    """Raise InputError that names `key` where a global batch cannot be shared out, or the corpus cannot fill one."""
    if batch_size % workers:
        fitting = max(n for n in range(1, min(workers, batch_size) + 1) if batch_size % n == 0)
        raise InputError(f"{key}: {batch_size} does not divide over {workers} workers; it does over {fitting}")
    if batch_size > samples:
        raise InputError(f"{key}: {batch_size} is more than the corpus' {samples} samples; lower it")


class CaptionBatches(Dataset[Batch]):
    """Item t is this rank's batch of step t. Incomplete batches at an epoch's end are left out."""

    def __init__(
        self,
        reader: ShardReader,
        tokenize: ReadTexts,
        augment: AugmentConfig,
        *,
        normalisation: Normalisation,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        schedule: int = 0,
        prepare: Prepare | None = None,
        partners: bool = False,
        views: Views | None = None,
        features: StoredFeatures | None = None,
    ) -> None:
        """The batches of one schedule, which begins at step `start`.

        batch_size is global, over all ranks. With `partners` or `prepare` the reader must have indexed entities. With
        `features` no image is decoded: these are its samples'; `tokenize` and `prepare` then read theirs of texts. Raises
        InputError where the corpus cannot fill one batch.
        """
        check_batch_size(batch_size, samples=len(reader), workers=world_size)
        self.reader, self.tokenize, self.prepare = reader, tokenize, prepare
        self.partners = Partners(reader.entities) if partners else None
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        self.start, self.schedule = start, schedule
        self.augment, self.views, self.features = augment, views, features
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (normalisation.mean, normalisation.std))
        self.transform = TrainingTransform(augment, normalisation)

    def __getitem__(self, step: int) -> Batch:
        bad, places = dict[int, BadSample](), self._places
        self._expect(step)
        drawn = [self._draw(step, place, bad) for place in places]
        captions, keys = [one.caption for one in drawn], [self.reader.samples.key(one.number) for one in drawn]
        batch = Batch(torch.stack([one.image for one in drawn]), self.tokenize(captions), captions, keys, first=places.start)
        batch = batch._replace(features=self.features is not None)
        batch = batch._replace(views={name: torch.stack([one.views[name] for one in drawn]) for name in drawn[0].views})
        shared: list[str] | None = None
        if self.partners is not None:
            shared = [entity for one in drawn for _, entity in one.partner]
            batch = batch._replace(partner=torch.stack([image for one in drawn for image, _ in one.partner]))
        if self.prepare is not None:
            randoms = [random.Random(_number(self.seed, step, place, 2)) for place in places]
            batch = batch._replace(texts=self.prepare(captions, [one.entities for one in drawn], shared, randoms))
        return batch._replace(bad=tuple(bad.values()))

    def _draw(self, step: int, place: int, bad: dict[int, BadSample]) -> _Drawn:
        """The sample of a place in the global batch, and what is drawn of it: ranks have no say in it."""
        one = self._fill(step, place, bad)
        if isinstance(one.photo, Tensor):
            return _Drawn(one.number, one.caption, one.entities, one.photo, {}, [])
        image, views = self.transform(one.photo), self._draw_views(one.photo.image)
        partner = []
        if self.partners is not None:
            rng = np.random.default_rng([self.seed, step, place, 1])  # its own, lest it shift other draws of the sample
            photo, entity = self._partner(one, self.epoch(step), rng, bad)
            partner.append((self.transform(photo), entity))
        return _Drawn(one.number, one.caption, one.entities, image, views, partner)

    def _expect(self, step: int) -> None:
        order = epoch_order(len(self.reader), self.seed, self.epoch(step), self.schedule)
        self.reader.expect([int(order[self._slot(step, place)]) for place in self._places])

    def prefetch(self, step: int) -> None:
        """Have what this rank reads from a step on brought nearer, where it is far: the rest of the epoch, in its order."""
        order = epoch_order(len(self.reader), self.seed, self.epoch(step), self.schedule)
        steps = len(self.reader) // self.batch_size
        first = (step - self.start) % steps
        own = order[: steps * self.batch_size].reshape(steps, self.world_size, self._share)[first:, self.rank]
        self.reader.prefetch(own.ravel())

    def keys(self, step: int) -> list[str]:
        """The keys of this rank's batch of a step, without what else is drawn of it."""
        bad = dict[int, BadSample]()
        return [self.reader.samples.key(self._fill(step, place, bad).number) for place in self._places]

    def epoch(self, step: int) -> int:
        """The epoch of the schedule that a step is in."""
        return (step - self.start) // (len(self.reader) // self.batch_size)

    @property
    def _places(self) -> range:
        """Places of this rank's rows in the global batch."""
        return range(self.rank * self._share, (self.rank + 1) * self._share)

    def _slot(self, step: int, place: int) -> int:
        """Where in the epoch's order the sample of a place is."""
        return (step - self.start) % (len(self.reader) // self.batch_size) * self.batch_size + place

    @property
    def _share(self) -> int:
        """Rows of this rank's batch."""
        return self.batch_size // self.world_size

    def _fill(self, step: int, place: int, bad: dict[int, BadSample]) -> Opened:
        """The sample of a place in the epoch's order or, where it cannot be read, the next one that can, from a batch later on.

        From there, since what lies between is in the same batch. Raises InputError where more are met than may be left out.
        """
        samples, epoch, slot = len(self.reader), self.epoch(step), self._slot(step, place)
        order = epoch_order(samples, self.seed, epoch, self.schedule)
        later = slot + self.batch_size
        for at in chain([slot], range(later, later + samples)):
            seed_sample(self.seed, step, place)
            found = self._open(int(order[at % samples]), epoch)
            if isinstance(found, Opened):
                return found
            self._leave_out(int(order[at % samples]), found, bad)
        raise AssertionError("fewer than all samples may be left out")

    def _leave_out(self, index: int, found: BadSample, bad: dict[int, BadSample]) -> None:
        bad[index] = found
        refuse_more([*self.reader.bad, *bad.values()], self.reader.total, self.reader.max_bad_share)

    def _open(self, index: int, epoch: int) -> Opened | BadSample:
        """A sample with the caption that the epoch draws for it."""
        found = self._read(index)
        if isinstance(found, BadSample):
            return found
        number = caption_number(len(found.captions), self.seed, epoch, self.reader.samples.key(index), self.schedule)
        return Opened(index, found.photo, found.captions[number], list(dict.fromkeys(found.entities[number])))

    def _read(self, index: int) -> Read[Decoded] | Read[Tensor] | BadSample:
        if self.features is not None:
            return self.features.read(index)
        return read_sample(self.reader, index, partial(self.transform.decode, whole=self.views is not None))

    def _partner(self, one: Opened, epoch: int, rng: np.random.Generator, bad: dict[int, BadSample]) -> tuple[Decoded, str]:
        """The image of a sample that shares an entity with one, and the entity; where it cannot be read, another draw's."""
        assert self.partners is not None
        own, unread = [self.reader.entities.numbers[name] for name in one.entities], set[int]()
        while True:
            index, entity = self.partners.draw(one.number, rng, own)
            if index in unread:  # perhaps the only one there is
                index = one.number
            found = self._open(index, epoch)
            if isinstance(found, Opened) and not isinstance(found.photo, Tensor):
                return found.photo, entity
            assert isinstance(found, BadSample)
            unread.add(index)
            self._leave_out(index, found, bad)

    def _draw_views(self, photo: Image.Image) -> dict[str, Tensor]:
        """What the method's `views` draws of an image, normalised, by name."""
        drawn = self.views(photo, self.augment) if self.views else {}
        return {name: (crops - self.mean) / self.std for name, crops in drawn.items()}


def batches_from(batches: CaptionBatches, start: int, stop: int, *, workers: int, pin: bool = False) -> Iterator[Batch]:
    """Batches of steps start..stop-1; the number of loader processes changes the speed, never the content.

    pin: in page-locked memory, which a GPU copies while it computes.
    """
    steps: Sequence[int] = range(start, stop)
    return map(_given, iter(DataLoader(_Told(batches), batch_size=None, sampler=steps, num_workers=workers, pin_memory=pin)))


class _Told(Dataset[Batch | InputError]):
    """Batches; the user's mistakes come as values: to what a loader process raises, torch adds the process' traceback."""

    def __init__(self, batches: CaptionBatches) -> None:
        self.batches = batches

    def __getitem__(self, step: int) -> Batch | InputError:
        try:
            return self.batches[step]
        except InputError as mistake:
            return InputError(str(mistake))


def _given(batch: Batch | InputError) -> Batch:
    if isinstance(batch, InputError):
        raise batch
    return batch
