"""Entities that curation stored with captions: drawn for a step, and numbers that stand for them where losses compare them."""

import random
from collections.abc import Sequence
from zlib import crc32

NONE = -1
"""Fills up rows of labels: there is no further one."""
_CAPTIONS = 1 << 32
"""What a caption's label has more than any entity's."""


def drawn(entities: Sequence[str], own: random.Random) -> list[str]:
    """Each entity once, in an order that is drawn of the sample's `own` random numbers."""
    found = list(dict.fromkeys(filter(None, entities)))
    own.shuffle(found)
    return found


def label_of(entity: str) -> int:
    """A number that stands for an entity, the same in every process."""
    return crc32(entity.encode(errors="replace"))


def caption_label(caption: str) -> int:
    """The same of a caption, which no entity has."""
    return _CAPTIONS + crc32(caption.encode(errors="replace"))


def padded(labels: Sequence[int], length: int) -> list[int]:
    """The first `length` labels, filled up with `NONE`."""
    return [*labels[:length], *[NONE] * (length - len(labels))]
