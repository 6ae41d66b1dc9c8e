"""Texts of the entities that curation stored with captions: what stands in for a caption where heads are chosen by entity."""

import random
from collections.abc import Iterator, Sequence
from zlib import crc32

import torch
from torch import Tensor

from owseg.methods.talk2dino.contrast import NONE
from owseg.text import ReadTexts, prompt_templates

MOST = 4
"""Entities of an image in one step; of more, some are drawn."""
EMPTY = ""
"""The text in places without an entity."""


class EntityPrompts:
    """Makes the texts of a batch from its captions' entities. Picklable: loaders have a copy."""

    def __init__(self, tokenize: ReadTexts, templates: str) -> None:
        self._tokenize, self._templates = tokenize, prompt_templates(templates)

    def __call__(
        self, captions: list[str], entities: list[list[str]], shared: list[str] | None, randoms: list[random.Random]
    ) -> dict[str, Tensor]:
        """Tokens "entity" [B, M, L] of templates filled with each image's entities, and "labels" [B, M] that stand for them.

        Which entities and templates is drawn of each sample's own `randoms`. An image without entities has its caption, with a
        label of its own.
        """
        del shared
        rows = [self._row(*sample) for sample in zip(captions, entities, randoms, strict=True)]
        texts = self._tokenize([text for row, _ in rows for text in row])
        return {"entity": texts.reshape(len(rows), MOST, -1), "labels": torch.tensor([labels for _, labels in rows])}

    def possible(self, entities: Sequence[Sequence[str]]) -> Iterator[str]:
        """Every text but its captions that may be made of a sample, whose captions have these entities each."""
        yield EMPTY
        for name in {name for some in entities for name in _names(some)}:
            yield from (template.format(name) for template in self._templates)

    def _row(self, caption: str, entities: Sequence[str], own: random.Random) -> tuple[list[str], list[int]]:
        names = _names(entities)
        own.shuffle(names)
        texts = [own.choice(self._templates).format(name) for name in names[:MOST]] or [caption]
        labels = [crc32(name.encode()) for name in names[:MOST]] or [crc32(caption.encode()) + (1 << 32)]
        empty = MOST - len(texts)
        return [*texts, *[EMPTY] * empty], [*labels, *[NONE] * empty]


def _names(entities: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(filter(None, entities)))
