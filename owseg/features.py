"""Features in the place of pixels: what frozen towers make of images and texts is made once, and each training reads it.

That takes towers that never learn, and images that are the same at each step (`crop=centre`, nothing random). Which samples a
step shows, and which of their captions, stays as it is.
"""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from owseg import InputError
from owseg.augmentation import TrainingTransform
from owseg.data import Batch, Prepare
from owseg.fit import learned_state
from owseg.left_out import BadSample
from owseg.losses import at_least_float32
from owseg.method_config import TrainableConfig
from owseg.micro_batches import ContrastiveMethod
from owseg.normalisation import Normalisation
from owseg.phases import Phase, augmentations
from owseg.reading import Read, read_sample
from owseg.shards import ShardReader
from owseg.stored_features import FeatureShapes, StoredFeatures, TarFeatures, number_of, samples_of, write
from owseg.text import ReadTexts
from owseg.trainable import TrainableMethod

FORMAT = 1
"""Counts changes of what is computed, or of how it is written: files of another one are made anew."""
IMAGES, TEXTS = 16, 256
"""Images and texts that go through a tower at once."""


class FrozenFeatures(ContrastiveMethod):
    """A method whose towers never learn: its losses read nothing of an image or a text but what these make of it.

    Its settings say with `reads_features` that its images are the same at each step.
    """

    @abstractmethod
    def image_features(self, image: Tensor) -> Tensor:
        """[B, ...] of images [B, 3, H, W]: a row for each, whatever lies beside it."""

    @abstractmethod
    def text_features(self, tokens: Tensor) -> Tensor:
        """[n, D] of token ids [n, L], likewise."""

    @property
    @abstractmethod
    def feature_shapes(self) -> FeatureShapes:
        """Of what stands for an image, and for a text."""

    def texts_of(self, captions: Sequence[str], entities: Sequence[Sequence[str]]) -> Iterable[str]:
        """Every text that any step may read of a sample, captions that are only tokenised among them."""
        del entities
        return captions

    @property
    def text_settings(self) -> tuple[str, ...]:
        """What of the settings has a say in `texts_of`."""
        return ()

    def prepare_with(self, read: ReadTexts) -> Prepare | None:
        """`prepare`, with this in the tokenizer's place."""
        del read
        return None

    def features_of_images(self, batch: Batch) -> Tensor:
        """[B, ...], float32 or longer: computed, or those that the batch holds."""
        return _in_full(batch.image if batch.features else self.image_features(batch.image))

    @torch.no_grad()
    def features_of_texts(self, tokens: Tensor, batch: Batch) -> Tensor:
        """[n, D], likewise, of tokens [n, L] of the batch."""
        return _in_full(tokens if batch.features else self.text_features(tokens))


def _in_full(features: Tensor) -> Tensor:
    return features.to(at_least_float32(features))


def ensure_frozen(method: TrainableMethod, config: TrainableConfig) -> FrozenFeatures:
    """The method, of which features are wanted. Raises InputError where there can be none."""
    if not isinstance(method, FrozenFeatures) or not config.reads_features:
        raise InputError(
            f"features: {config.name} cannot read them: its towers learn, or its images differ from step to step "
            f"(method_settings.{config.name}.augment.crop=centre, rand_augment= and erase=0); leave them out"
        )
    return method


def stored_features(
    folder: Path | None,
    method: TrainableMethod,
    config: TrainableConfig,
    reader: ShardReader,
    normalisation: Normalisation,
    *,
    bf16: bool,
) -> StoredFeatures | None:
    """Those of a training's tars in a folder. InputError where they are not what the method itself would make of the tars."""
    if folder is None:
        return None
    frozen = ensure_frozen(method, config)
    return StoredFeatures(folder, reader, made_with(frozen, config, reader, normalisation, bf16=bf16), frozen.feature_shapes)


def texts_through(method: TrainableMethod, features: StoredFeatures | None) -> tuple[ReadTexts, Prepare | None]:
    """What a loader reads captions with, and makes further texts with: the method's own, or the features of both."""
    if features is None or not isinstance(method, FrozenFeatures):
        return method.tokenize, method.prepare
    return features.read_texts, method.prepare_with(features.read_texts)


def made_with(
    method: FrozenFeatures, config: TrainableConfig, reader: ShardReader, normalisation: Normalisation, *, bf16: bool
) -> dict[str, str]:
    """What features depend on besides the tars, by what it is: SHA-256 of the frozen weights, and of settings."""
    (_, augment), *_ = augmentations(config.phases, config.augment)
    images = json.dumps([FORMAT, asdict(augment), asdict(normalisation), bf16], sort_keys=True)
    texts = json.dumps([FORMAT, reader.caption_field, *method.text_settings])
    return {
        "weights": _digest_of_frozen(method, config.phases),
        "images": hashlib.sha256(images.encode()).hexdigest(),
        "texts": hashlib.sha256(texts.encode()).hexdigest(),
    }


def _digest_of_frozen(method: TrainableMethod, phases: Sequence[Phase]) -> str:
    """SHA-256 of all tensors that no phase trains: names, shapes and numbers."""
    digest, learned = hashlib.sha256(), learned_state(method, phases).keys()
    for name, tensor in sorted(method.state_dict().items()):
        if name not in learned:
            digest.update(f"{name} {tensor.dtype} {[*tensor.shape]} ".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class FeatureMaker:
    """Makes the features of tars, one after the other."""

    def __init__(
        self,
        method: FrozenFeatures,
        config: TrainableConfig,
        reader: ShardReader,
        normalisation: Normalisation,
        *,
        dtype: torch.dtype = torch.float16,
        bf16: bool = False,
        device: torch.device | str = "cpu",
        loader_workers: int = 0,
    ) -> None:
        """dtype: of the files. bf16: compute as a training with bf16 does. loader_workers: processes that decode beside it."""
        self.device = torch.device(device)
        self.made_with = made_with(method, config, reader, normalisation, bf16=bf16)
        self.method, self.reader = method.to(self.device).eval(), reader
        self.dtype, self.bf16, self.loader_workers = dtype, bf16, loader_workers
        (_, augment), *_ = augmentations(config.phases, config.augment)
        self.samples = _Samples(reader, TrainingTransform(augment, normalisation))

    def __call__(self, number: int, file: Path, tell: Callable[[int], None] = lambda done: None) -> dict[str, int]:
        """Write those of the tar in this place; `tell` hears how many of its samples are done. Returns counts.

        Raises InputError where the tar cannot be read, or features do not fit into the type of the files.
        """
        rows = samples_of(self.reader, number)
        image, texts, unreadable = torch.zeros(len(rows), 0, dtype=self.dtype), set[str](), dict[int, str]()
        done = 0
        for some in self._read(rows):
            found = {done + place: one for place, one in enumerate(some) if isinstance(one, Read)}
            unreadable |= {done + place: one.reason for place, one in enumerate(some) if isinstance(one, BadSample)}
            if found:
                made = self._compute(self.method.image_features, torch.stack([one.photo for one in found.values()]))
                image = image if image.numel() else torch.zeros(len(rows), *made.shape[1:], dtype=self.dtype)
                image[[*found]] = made
            for one in found.values():
                texts.update(self.method.texts_of(one.captions, one.entities))
            done += len(some)
            tell(done)
        write(file, self._with_texts(image, texts, unreadable), self.reader, number, self.made_with)
        return {"images": len(rows) - len(unreadable), "unreadable": len(unreadable), "texts": len(texts)}

    def _read(self, rows: range) -> Iterable[list[Read[Tensor] | BadSample]]:
        loader = DataLoader(self.samples, IMAGES, sampler=rows, num_workers=self.loader_workers, collate_fn=list)
        for some in loader:
            if mistake := next((one for one in some if isinstance(one, InputError)), None):
                raise mistake
            yield some

    def _with_texts(self, image: Tensor, texts: set[str], unreadable: dict[int, str]) -> TarFeatures:
        """Complete features: the texts by their numbers, and what is made of each."""
        by_number = {number_of(text): text for text in texts}
        numbers = sorted(by_number)
        found = []
        for start in range(0, len(numbers), TEXTS):
            tokens = self.method.tokenize([by_number[number] for number in numbers[start : start + TEXTS]])
            found.append(self._compute(self.method.text_features, tokens))
        text = torch.cat(found) if found else torch.zeros(0, 0, dtype=self.dtype)
        return TarFeatures(image, text, np.array(numbers, np.uint64), unreadable)

    @torch.no_grad()
    def _compute(self, tower: Callable[[Tensor], Tensor], of: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            found = tower(of.to(self.device)).to("cpu", self.dtype)
        if not found.isfinite().all():
            raise InputError(
                f"features: some do not fit into {str(self.dtype).removeprefix('torch.')}; set train.features=float32"
            )
        return found


class _Samples(Dataset["Read[Tensor] | BadSample | InputError"]):
    """Samples as training sees them; the user's mistakes come as values: torch adds its traceback to what is raised."""

    def __init__(self, reader: ShardReader, transform: TrainingTransform) -> None:
        self.reader, self.transform = reader, transform

    def __getitem__(self, index: int) -> Read[Tensor] | BadSample | InputError:
        try:
            return read_sample(self.reader, index, self._seen)
        except InputError as mistake:
            return InputError(str(mistake))

    def _seen(self, image: Image.Image) -> Tensor:
        return self.transform(self.transform.decode(image))
