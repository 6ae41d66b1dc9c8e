"""WebDataset shards as training batches: random access, and every batch a function of (seed, step) alone.

A tar stores its members uncompressed, so an index of offsets gives random access with no unpacking. Batches then depend on
nothing but the seed, the step and the rank, which makes a resumed run continue with exactly the sample it would have seen.
"""

import io
import random
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from owseg import InputError
from owseg.text import Tokenizer

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


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

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on `device`."""
        return self._replace(image=self.image.to(device, non_blocking=True), tokens=self.tokens.to(device, non_blocking=True))


class Sample(NamedTuple):
    """Where a sample lies: tar number, then (offset, size) of its image and of its caption."""

    shard: int
    image: tuple[int, int]
    caption: tuple[int, int]


class ShardReader:
    """Random access to the samples of WebDataset tars (`key.jpg`, `key.txt`), ordered by tar name and position."""

    def __init__(self, shards: Sequence[Path]) -> None:
        """Index the tars. Raises InputError where a tar is unreadable or there is no sample at all."""
        self.shards = sorted(shards)
        self.keys: list[str] = []
        self.samples: list[Sample] = []
        for number, shard in enumerate(self.shards):
            for key, image, caption in _index(shard):
                self.keys.append(key)
                self.samples.append(Sample(number, image, caption))
        if not self.samples:
            raise InputError("no training samples: the shards hold no image with a caption; check the download stage")

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> tuple[bytes, str]:
        """Encoded image and caption of a sample."""
        shard, image, caption = self.samples[index]
        with self.shards[shard].open("rb") as file:
            file.seek(image[0])
            encoded = file.read(image[1])
            file.seek(caption[0])
            return encoded, file.read(caption[1]).decode()


def _index(shard: Path) -> Iterator[tuple[str, tuple[int, int], tuple[int, int]]]:
    members: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                members.setdefault(key, {})[f".{suffix}"] = (member.offset_data, member.size)
    except (OSError, tarfile.TarError) as error:
        raise InputError(f"{shard}: not a readable tar ({error}); delete it and run the download stage again") from error
    for key, files in members.items():
        image = next((files[suffix] for suffix in IMAGE_SUFFIXES if suffix in files), None)
        if image and ".txt" in files:
            yield key, image, files[".txt"]


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make every random draw of a step a function of (seed, step, rank), so that a resumed run repeats it."""
    state = np.random.SeedSequence([seed, step, rank]).generate_state(1)[0]
    random.seed(int(state))
    np.random.seed(state)
    torch.manual_seed(int(state))


def epoch_order(samples: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch visits its samples; a new one every epoch."""
    return np.random.default_rng([seed, epoch]).permutation(samples)


class CaptionBatches(Dataset[Batch]):
    """Item t is this rank's batch of step t. Incomplete batches at an epoch's end are left out."""

    def __init__(
        self,
        reader: ShardReader,
        tokenize: Tokenizer,
        augment: AugmentConfig,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """batch_size is global, over all ranks. Raises InputError where the corpus cannot fill one batch."""
        if batch_size % world_size:
            raise InputError(f"optim.batch_size: {batch_size} does not divide over {world_size} workers")
        if batch_size > len(reader):
            raise InputError(f"optim.batch_size: {batch_size} is more than the corpus' {len(reader)} samples; lower it")
        self.reader, self.tokenize = reader, tokenize
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
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
            mean=tuple(mean),
            std=tuple(std),
        )

    def __getitem__(self, step: int) -> Batch:
        per_epoch = len(self.reader) // self.batch_size
        epoch, position = divmod(step, per_epoch)
        order = epoch_order(len(self.reader), self.seed, epoch)
        start = position * self.batch_size
        mine = order[start : start + self.batch_size].reshape(self.world_size, -1)[self.rank]
        seed_step(self.seed, step, self.rank)
        images, captions = [], []
        for index in mine:
            encoded, caption = self.reader.read(int(index))
            with Image.open(io.BytesIO(encoded)) as image:
                images.append(self.transform(image.convert("RGB")))
            captions.append(caption)
        keys = [self.reader.keys[int(index)] for index in mine]
        return Batch(torch.stack(images), self.tokenize(captions), captions, keys)


def batches_from(batches: CaptionBatches, start: int, stop: int, *, workers: int) -> Iterator[Batch]:
    """Batches of steps start..stop-1; the number of loader processes changes the speed, never the content."""
    steps: Sequence[int] = range(start, stop)
    return iter(DataLoader(batches, batch_size=None, sampler=steps, num_workers=workers))
