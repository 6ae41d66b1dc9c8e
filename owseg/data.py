"""WebDataset shards as training batches: random access, and every batch a function of (seed, step) alone.

A tar stores its members uncompressed, so an index of offsets gives random access with no unpacking. Batches then depend on
nothing but the seed, the step and the rank, which makes a resumed run continue with exactly the sample it would have seen.
"""

import io
import json
import random
import tarfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from owseg import InputError
from owseg.normalisation import Normalisation
from owseg.partners import EntityLists, Partners
from owseg.photos import UNREADABLE
from owseg.text import Tokenizer

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")

Prepare = Callable[[list[str], list[list[str]], list[str] | None], dict[str, Tensor]]
"""What a method makes of a batch's captions, their entities, and the entities shared with partners: token ids by name."""
Views = Callable[[Image.Image, "AugmentConfig"], dict[str, Tensor]]
"""What a method draws of an RGB image besides the augmented one: crops [n, 3, h, w] in 0..1 by name."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Training augmentation, timm's order: resized crop, flip, RandAugment, normalisation, random erasing."""

    size: int = 224
    """Side of the square training crop in pixels."""
    min_area: float = 0.08
    """Smallest share of the image's area that a crop may cover, 0..1."""
    rand_augment: str = "rand-m9-mstd0.5-inc1"
    """timm's RandAugment policy; empty = none."""
    erase: float = 0.25
    """Probability of erasing one random box with per-pixel noise."""

    def __post_init__(self) -> None:
        if not 0 < self.min_area <= 1 or not 0 <= self.erase <= 1:
            raise InputError("min_area must be above 0 and at most 1, erase within 0..1")


class Batch(NamedTuple):
    """One rank's share of a step: image [B, 3, H, W] normalised float32, tokens [B, L] int64, captions and keys of length B."""

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


Place = tuple[int, int]
"""Offset and size of a file in its tar."""


class Samples:
    """Key and place of each sample, in flat arrays: some 60 bytes a sample, which loader processes share.

    Python objects would take 400, and again in every loader process: a forked process copies what it counts references of.
    """

    def __init__(self) -> None:
        self.keys, self.ends = bytearray(), array("q", [0])
        """Sample i has the key keys[ends[i]:ends[i + 1]], in UTF-8."""
        self.places = array("q")
        """Tar number, and offset and size of image and caption: five numbers for each sample."""

    def append(self, key: str, shard: int, image: Place, caption: Place) -> None:
        """The next sample."""
        self.keys += key.encode(errors="surrogateescape")
        self.ends.append(len(self.keys))
        self.places.extend((shard, *image, *caption))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def key(self, index: int) -> str:
        """A sample's key."""
        return self.keys[self.ends[index] : self.ends[index + 1]].decode(errors="surrogateescape")

    def place(self, index: int) -> tuple[int, Place, Place]:
        """Tar number, and where in it a sample's image and caption lie."""
        shard, *places = self.places[5 * index : 5 * (index + 1)]
        return shard, (places[0], places[1]), (places[2], places[3])


class ShardReader:
    """Random access to the samples of WebDataset tars (`key.jpg`, `key.txt`), ordered by tar name and position."""

    def __init__(self, shards: Sequence[Path], *, entities: bool = False) -> None:
        """Index the tars, with what `key.json` has as "entities" where asked for.

        Raises InputError where a tar is unreadable, there is no sample at all, or a sample has no such list.
        """
        self.shards = sorted(shards)
        self.samples = Samples()
        self.entities = EntityLists()
        """Each sample's entities; empty where they were not asked for."""
        for number, shard in enumerate(self.shards):
            for key, image, caption, names in _index(shard, entities):
                self.samples.append(key, number, image, caption)
                if names is not None:
                    self.entities.append(names)
        if not len(self.samples):
            raise InputError("no training samples: the shards hold no image with a caption; check the download stage")

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> tuple[bytes, str]:
        """Encoded image and caption of a sample."""
        shard, image, caption = self.samples.place(index)
        with self.shards[shard].open("rb") as file:
            file.seek(image[0])
            encoded = file.read(image[1])
            file.seek(caption[0])
            return encoded, file.read(caption[1]).decode()


def _index(shard: Path, entities: bool) -> Iterator[tuple[str, Place, Place, list[str] | None]]:
    members: dict[str, dict[str, Place]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                members.setdefault(key, {})[f".{suffix}"] = (member.offset_data, member.size)
    except (OSError, tarfile.TarError) as error:
        raise InputError(f"{shard}: not a readable tar ({error}); delete it and run the download stage again") from error
    with shard.open("rb") as file:
        for key, files in members.items():
            image = next((files[suffix] for suffix in IMAGE_SUFFIXES if suffix in files), None)
            if image and ".txt" in files:
                yield key, image, files[".txt"], _entities(file, files.get(".json"), key) if entities else None


def _entities(file: BinaryIO, about: Place | None, key: str) -> list[str]:
    """The list "entities" of a sample's JSON."""
    if about is not None:
        file.seek(about[0])
        try:
            found = json.loads(file.read(about[1])).get("entities")
        except (ValueError, AttributeError, RecursionError):  # not JSON, or not a mapping
            found = None
        if isinstance(found, list) and all(isinstance(name, str) for name in found):
            return found
    raise InputError(f"{file.name}: sample {key} carries no list of entities; curate the corpus (pipelines/filter.py) first")


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make every random draw of a step a function of (seed, step, rank), so that a resumed run repeats it."""
    state = np.random.SeedSequence([seed, step, rank]).generate_state(1)[0]
    random.seed(int(state))
    np.random.seed(state)
    torch.manual_seed(int(state))


@lru_cache(maxsize=1)  # each step of an epoch asks for it, and millions take 0.1 s to shuffle
def epoch_order(samples: int, seed: int, epoch: int, schedule: int = 0) -> np.ndarray:
    """The order in which an epoch of a schedule visits its samples; a new one every epoch and in every schedule."""
    order = np.random.default_rng([seed, epoch, *([schedule] if schedule else [])]).permutation(samples)
    order.setflags(write=False)
    return order


def check_batch_size(batch_size: int, *, samples: int, workers: int, key: str = "optim.batch_size") -> None:
    """Raise InputError that names `key` where a global batch cannot be shared out, or the corpus cannot fill one."""
    if batch_size % workers:
        raise InputError(f"{key}: {batch_size} does not divide over {workers} workers")
    if batch_size > samples:
        raise InputError(f"{key}: {batch_size} is more than the corpus' {samples} samples; lower it")


class CaptionBatches(Dataset[Batch]):
    """Item t is this rank's batch of step t. Incomplete batches at an epoch's end are left out."""

    def __init__(
        self,
        reader: ShardReader,
        tokenize: Tokenizer,
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
    ) -> None:
        """The batches of one schedule, which begins at step `start`.

        batch_size is global, over all ranks. With `partners` or `prepare` the reader must have indexed entities. Raises
        InputError where the corpus cannot fill one batch.
        """
        check_batch_size(batch_size, samples=len(reader), workers=world_size)
        self.reader, self.tokenize, self.prepare = reader, tokenize, prepare
        self.names = list(reader.entities.numbers)
        self.partners = Partners(reader.entities) if partners else None
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        self.start, self.schedule = start, schedule
        self.augment, self.views = augment, views
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (normalisation.mean, normalisation.std))
        from timm.data.transforms_factory import create_transform  # takes seconds, and settings are read without it

        self.transform = create_transform(
            input_size=augment.size,
            is_training=True,
            scale=(augment.min_area, 1.0),
            color_jitter=None,
            auto_augment=augment.rand_augment or None,
            interpolation="bilinear",
            re_prob=augment.erase,
            re_mode="pixel",
            mean=normalisation.mean,
            std=normalisation.std,
        )

    def __getitem__(self, step: int) -> Batch:
        mine = self._samples(step)
        seed_step(self.seed, step, self.rank)
        photos, captions = zip(*map(self._open, mine), strict=True)
        keys = [self.reader.samples.key(index) for index in mine]
        images = torch.stack([self.transform(photo) for photo in photos])
        batch = Batch(images, self.tokenize(captions), list(captions), keys, views=self._draw_views(photos))
        shared: list[str] | None = None
        if self.partners is not None:
            rng = np.random.default_rng([self.seed, step, self.rank, 1])  # its own, lest it shift other draws of the step
            drawn = [self.partners.draw(index, rng) for index in mine]
            shared = [entity for _, entity in drawn]
            batch = batch._replace(partner=torch.stack([self.transform(self._open(index)[0]) for index, _ in drawn]))
        if self.prepare is not None:
            entities = [[self.names[number] for number in self.reader.entities.of(index)] for index in mine]
            batch = batch._replace(texts=self.prepare(batch.captions, entities, shared))
        return batch

    def _samples(self, step: int) -> list[int]:
        """Numbers of the samples of this rank's batch."""
        epoch, position = divmod(step - self.start, len(self.reader) // self.batch_size)
        order = epoch_order(len(self.reader), self.seed, epoch, self.schedule)
        whole = order[position * self.batch_size :][: self.batch_size]
        mine: list[int] = whole.reshape(self.world_size, -1)[self.rank].tolist()
        return mine

    def _open(self, index: int) -> tuple[Image.Image, str]:
        """A sample's image, RGB, and its caption."""
        try:
            encoded, caption = self.reader.read(index)
            with Image.open(io.BytesIO(encoded)) as image:
                return image.convert("RGB"), caption
        except UNREADABLE as error:
            shard = self.reader.shards[self.reader.samples.place(index)[0]]
            key = self.reader.samples.key(index)
            raise InputError(f"{shard}: sample {key} cannot be read ({error}); take it out of the tar") from error

    def _draw_views(self, photos: Sequence[Image.Image]) -> dict[str, Tensor]:
        """What the method's `views` draws of each image, normalised and stacked by name."""
        if self.views is None:
            return {}
        drawn = [self.views(photo, self.augment) for photo in photos]
        return {name: (torch.stack([crops[name] for crops in drawn]) - self.mean) / self.std for name in drawn[0]}


def batches_from(batches: CaptionBatches, start: int, stop: int, *, workers: int) -> Iterator[Batch]:
    """Batches of steps start..stop-1; the number of loader processes changes the speed, never the content."""
    steps: Sequence[int] = range(start, stop)
    return iter(DataLoader(batches, batch_size=None, sampler=steps, num_workers=workers))
