"""Texts of the entities that curation stored with captions: what stands in for a caption where heads are chosen by entity."""

import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from owseg.entity_labels import caption_label, drawn, label_of, padded
from owseg.text import ReadTexts, prompt_templates

MOST = 4
"""Entities of an image in one step; of more, some are drawn."""
EMPTY = ""
"""The text in places without an entity."""


class EntityPrompts:
    """Makes the texts of a batch from its captions' entities. Picklable: loaders have a copy."""

    def __init__(self, tokenize: ReadTexts) -> None:
        self._tokenize, self._templates = tokenize, prompt_templates("imagenet7")

    def __call__(
        self, captions: list[str], entities: list[list[str]], shared: list[str] | None, randoms: list[random.Random]
    ) -> dict[str, Tensor]:
        """Tokens "entity" [B, M, L] of each image's entities in prompts, and "labels" [B, M] that stand for them.

        A prompt is one of CLIP's seven best templates, filled. Which entities and templates is drawn of each sample's own
        `randoms`. An image without entities has its caption, with a label of its own.
        """
        del shared
        rows = [self._row(*sample) for sample in zip(captions, entities, randoms, strict=True)]
        texts = self._tokenize([text for row, _ in rows for text in row])
        return {"entity": texts.reshape(len(rows), MOST, -1), "labels": torch.tensor([labels for _, labels in rows])}

    def possible(self, entities: Sequence[Sequence[str]]) -> Iterator[str]:
        """Every text but its captions that may be made of a sample, whose captions have these entities each."""
        yield EMPTY
        for name in sorted({name for some in entities for name in some if name}):
            yield from (template.format(name) for template in self._templates)

    def _row(self, caption: str, entities: Sequence[str], own: random.Random) -> tuple[list[str], list[int]]:
        names = drawn(entities, own)[:MOST]
        texts = [own.choice(self._templates).format(name) for name in names] or [caption]
        labels = [label_of(name) for name in names] or [caption_label(caption)]
        return [*texts, *[EMPTY] * (MOST - len(texts))], padded(labels, MOST)
