"""A sample of a tar as training opens it: its photo decoded, with its captions; what cannot be read has a reason."""

import io
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from PIL import Image, UnidentifiedImageError

from owseg import InputError
from owseg.left_out import BadSample
from owseg.photos import UNREADABLE
from owseg.shards import ShardReader

P = TypeVar("P")


class Read(NamedTuple, Generic[P]):
    """A sample that can be used: its photo, and all of its captions, each with its entities."""

    photo: P
    captions: list[str]
    entities: list[list[str]]


def read_sample(reader: ShardReader, index: int, decode: Callable[[Image.Image], P]) -> Read[P] | BadSample:
    """The sample of this number, its opened photo through `decode`.

    Raises InputError where the tar is not there any more as it was indexed.
    """
    try:
        encoded, captions, entities = reader.read(index)
        with Image.open(io.BytesIO(encoded)) as image:
            return Read(decode(image), captions, entities)
    except InputError:
        raise
    except UnidentifiedImageError:
        reason = "has an image of no known format"
    except UNREADABLE as error:
        told = " ".join(str(error).split())
        reason = told if told.startswith("has ") else f"has an image that cannot be decoded ({told or repr(error)})"
    return bad_sample(reader, index, reason)


def bad_sample(reader: ShardReader, index: int, reason: str) -> BadSample:
    """The sample of this number as one that cannot be used."""
    samples = reader.samples
    return BadSample(str(reader.shards[samples.place(index)[0]]), samples.key(index), reason)
