"""Features of image-caption tars as files: what frozen towers made of a tar's images and texts, a safetensors file for each.

A file `00003.safetensors` belongs to the fourth tar, in the order of their names. It holds

    image       [N, ...]   of the tar's usable samples, in its order; zeros for those whose image or caption cannot be read
    text        [T, D]     of all texts that training may read of them
    texts       [T] int64  the texts' own numbers (`number_of`), ascending
    keys, key_ends         the samples' keys, one behind the other, and where each ends

and, as metadata, what it was made of and with, and why samples cannot be used.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from owseg import InputError
from owseg.left_out import BadSample
from owseg.reading import Read, bad_sample
from owseg.shards import ShardReader
from storage.copies import fetched
from storage.node_arrays import Allocate, node_arrays

SUFFIX = ".safetensors"
AGAIN = "run the features stage again with --verify (owseg features ... --verify), which makes anew what differs"
_WITH, _TAR, _BAD = "made_with", "tar", "unreadable"
FLOATS = ("F16", "F32")
TYPES = {"image": FLOATS, "text": FLOATS, "texts": ("I64",), "keys": ("U8",), "key_ends": ("I64",)}
"""The tensors of a file, and of which types they may be."""


class TarFeatures(NamedTuple):
    """The features of one tar."""

    image: Tensor
    text: Tensor
    texts: np.ndarray
    """uint64, ascending."""
    unreadable: dict[int, str]
    """Why rows of `image` mean nothing."""


class FeatureShapes(NamedTuple):
    """Shapes of what stands for one of each."""

    image: tuple[int, ...]
    text: tuple[int, ...]


def file_of(folder: Path, number: int) -> Path:
    """Where the features of the tar in this place lie."""
    return folder / f"{number:05}{SUFFIX}"


def number_of(text: str) -> int:
    """The number of 64 bits that stands for a text; two of millions are hardly ever the same."""
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest())


def samples_of(reader: ShardReader, number: int) -> range:
    """The usable samples of the tar in this place."""
    first, stop = np.searchsorted(reader.samples.tars, [number, number + 1]).tolist()
    return range(first, stop)


def tar_of(reader: ShardReader, number: int) -> str:
    """What tells a tar, with those of its samples that are used, from all others: changes with either."""
    keys = _keys(reader, number)
    return hashlib.sha256(reader.indexes[number].header.digest + b"".join(array.tobytes() for array in keys)).hexdigest()


def write(file: Path, features: TarFeatures, reader: ShardReader, number: int, made_with: Mapping[str, str]) -> None:
    """Write the features of the tar in this place; `made_with` says with what."""
    keys, ends = _keys(reader, number)
    tensors = {
        "image": features.image,
        "text": features.text,
        "texts": torch.from_numpy(features.texts.view(np.int64)),
        "keys": torch.from_numpy(keys),
        "key_ends": torch.from_numpy(ends),
    }
    told = {_WITH: dict(made_with), _TAR: tar_of(reader, number), _BAD: features.unreadable}
    save_file(tensors, file, {name: json.dumps(value, sort_keys=True) for name, value in told.items()})


class StoredFeatures:
    """The features of a training's tars, read from their files. Loader processes share its memory."""

    def __init__(self, folder: Path, reader: ShardReader, made_with: Mapping[str, str], shapes: FeatureShapes) -> None:
        """Look at all files. Raises InputError where one is missing, damaged, of another tar, or not `made_with` the same."""
        self._folder, self._reader, self._shapes = folder, reader, shapes
        self._first = np.searchsorted(reader.samples.tars, np.arange(len(reader.shards)))
        self._open: dict[int, TarFeatures] = {}
        made = [self._checked(number, made_with) for number in range(len(reader.shards))]
        total = sum(len(self._of(number).texts) for number in range(len(made)))
        told = repr([*made, *sorted(made_with.items())])
        arrays = node_arrays(f"texts 1 {hashlib.sha256(told.encode()).hexdigest()}", total, self._merge)
        self._texts, self._places = arrays["texts"], arrays["places"]

    def read(self, index: int) -> Read[Tensor] | BadSample:
        """The features of a sample's image in the place of its photo, with its captions, which the tar has."""
        tar = self._reader.samples.place(index)[0]
        found, row = self._of(tar), index - int(self._first[tar])
        if reason := found.unreadable.get(row):
            return bad_sample(self._reader, index, reason)
        _, captions, entities = self._reader.read(index, pixels=False)
        return Read(self._finite(found.image[row], tar), captions, entities)

    def read_texts(self, texts: Sequence[str]) -> Tensor:
        """The features [n, D] of texts. Raises InputError where there are none of one."""
        numbers = np.array([number_of(text) for text in texts], np.uint64)
        places = np.searchsorted(self._texts, numbers).clip(max=len(self._texts) - 1)
        for text, number, place in zip(texts, numbers, places, strict=True):
            if self._texts[place] != number:
                raise InputError(f"features: {self._folder} has none of the text {text!r}; {AGAIN}")
        tars, rows = np.divmod(self._places[places], 1 << 32)
        found = zip(tars.tolist(), rows.tolist(), strict=True)
        return torch.stack([self._finite(self._of(tar).text[row], tar) for tar, row in found])

    def _finite(self, features: Tensor, number: int) -> Tensor:
        if not features.isfinite().all():
            raise InputError(f"features: {file_of(self._folder, number)} holds numbers that are not finite; {AGAIN}")
        return features

    def _of(self, number: int) -> TarFeatures:
        """The features of a tar. Their bytes stay on the disk until they are read."""
        if number not in self._open:
            with _opened(file_of(self._folder, number)) as file:
                unreadable = {int(row): reason for row, reason in json.loads(file.metadata()[_BAD]).items()}
                texts = file.get_tensor("texts").numpy().view(np.uint64)
                self._open[number] = TarFeatures(file.get_tensor("image"), file.get_tensor("text"), texts, unreadable)
        return self._open[number]

    def _checked(self, number: int, made_with: Mapping[str, str]) -> str:
        """What a tar's features are of, once that is what is asked for."""
        path, tar = file_of(self._folder, number), self._reader.shards[number]
        with _opened(path) as file:
            try:
                told: dict[str, Any] = {name: json.loads(file.metadata()[name]) for name in (_WITH, _TAR, _BAD)}
                found = _understood(file, told)
                keys = file.get_tensor("keys").numpy(), file.get_tensor("key_ends").numpy()
            except Exception as error:  # safetensors' own untyped error, or what a foreign file lacks
                raise InputError(f"features: {path} is no file of features ({error}); {AGAIN}") from error
        for what, value in made_with.items():
            if told[_WITH].get(what) != value:
                raise InputError(f"features: {path} was made with other {what} than this training's; {AGAIN}")
        if told[_TAR] != tar_of(self._reader, number):
            lacking = set(_texts(*_keys(self._reader, number))) - set(_texts(*keys))
            what = (
                f"lacks the sample {min(lacking).decode(errors='replace')} of" if lacking else "was not made of what is now in"
            )
            raise InputError(f"features: {path} {what} {tar}; {AGAIN}")
        if wrong := _misfits(found, told[_BAD], len(samples_of(self._reader, number)), self._shapes):
            raise InputError(f"features: {path} is damaged ({wrong}); {AGAIN}")
        return str(told[_TAR])

    def _merge(self, allocate: Allocate) -> None:
        """The texts of all tars, ascending, with the place of each: its tar and row."""
        found = [self._of(number).texts for number in range(len(self._first))]
        every = np.concatenate(found)
        places = np.concatenate([(number << 32) + np.arange(len(texts)) for number, texts in enumerate(found)])
        order = np.argsort(every, kind="stable")
        allocate("texts", np.uint64, len(every))[:] = every[order]
        allocate("places", np.int64, len(every))[:] = places[order]


def _opened(path: Path) -> Any:
    try:
        return safe_open(fetched(path), framework="pt")
    except FileNotFoundError:
        raise InputError(f"features: {path} is missing; {AGAIN}") from None
    except Exception as error:  # safetensors raises its own untyped errors for cut and foreign files
        raise InputError(f"features: {path} is damaged ({error}); {AGAIN}") from error


def _understood(file: Any, told: Mapping[str, Any]) -> dict[str, list[int]]:
    """Shapes of a file's tensors. Raises TypeError, or safetensors' own, where they or the metadata are of no type of ours."""
    bad = told[_BAD]
    if not isinstance(told[_WITH], dict) or not isinstance(bad, dict):
        raise TypeError(f"{_BAD if isinstance(told[_WITH], dict) else _WITH} is no mapping")
    if not all(row.isdecimal() and isinstance(reason, str) for row, reason in bad.items()):
        raise TypeError(f"{_BAD} does not give reasons by row")
    shapes = {}
    for name, types in TYPES.items():
        tensor = file.get_slice(name)
        shapes[name] = [*tensor.get_shape()]
        if tensor.get_dtype() not in types:
            raise TypeError(f"{name} is of the type {tensor.get_dtype()} and not {' or '.join(types)}")
        if types != FLOATS and len(shapes[name]) != 1:
            raise TypeError(f"{name} is no row of numbers")
    return shapes


def _misfits(found: Mapping[str, list[int]], bad: Mapping[str, str], samples: int, shapes: FeatureShapes) -> str:
    """How the shapes of a file's tensors differ from those of a tar with so many samples, in words."""
    (texts,) = found["texts"]
    wanted = {
        "image": [samples, *shapes.image] if len(bad) < samples else [samples, *found["image"][1:]],
        "text": [texts, *shapes.text] if texts else [0, *found["text"][1:]],
        "key_ends": [samples],
    }
    wrong = (f"{name} is {found[name]} and not {shape}" for name, shape in wanted.items() if found[name] != shape)
    return next(wrong, "")


def _keys(reader: ShardReader, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The keys of a tar's usable samples as UTF-8, one behind the other, and where each ends."""
    samples, rows = reader.samples, samples_of(reader, number)
    ends = samples.key_ends[rows.start : rows.stop + 1]
    return samples.keys[ends[0] : ends[-1]].copy(), (ends[1:] - ends[0]).astype(np.int64)


def _texts(flat: np.ndarray, ends: np.ndarray) -> list[bytes]:
    content, stops = flat.tobytes(), ends.tolist()
    return [content[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]
