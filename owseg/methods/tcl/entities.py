"""Two of a caption's entities as texts to be grounded in its place (`texts: entities`), and which of them no loss may part."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from owseg.entity_labels import NONE, caption_label, drawn, label_of, padded
from owseg.losses import gather
from owseg.text import Tokenizer, prompt_templates

TEXTS = 2
"""Of each image."""
MOST_LABELS = 8
"""Entities of an image that losses know; of more, some are drawn."""


class EntityTexts:
    """Makes the texts of a batch from its captions' entities. Picklable: loaders have a copy."""

    def __init__(self, tokenize: Tokenizer) -> None:
        self._tokenize, self._templates = tokenize, prompt_templates("imagenet7")

    def __call__(
        self, captions: list[str], entities: list[list[str]], shared: list[str] | None, randoms: list[random.Random]
    ) -> dict[str, Tensor]:
        """Token ids "text" [B, 2, L], "label" [B, 2] that stand for these texts, and "labels" [B, M] for all that an image has.

        A text is one of CLIP's seven best templates, filled with an entity; both are drawn of each sample's own `randoms`.
        Where there are fewer entities than two, the caption stands in. A row of "labels" begins with the caption's.
        """
        del shared
        rows = [self._row(*sample) for sample in zip(captions, entities, randoms, strict=True)]
        texts = self._tokenize([text for texts, _, _ in rows for text in texts])
        label, labels = (torch.tensor([row[place] for row in rows]) for place in (1, 2))
        return {"text": texts.reshape(len(rows), TEXTS, -1), "label": label, "labels": labels}

    def _row(self, caption: str, entities: Sequence[str], own: random.Random) -> tuple[list[str], list[int], list[int]]:
        names, whole = drawn(entities, own), caption_label(caption)
        texts = [own.choice(self._templates).format(name) for name in names[:TEXTS]]
        labels = [label_of(name) for name in names[:MOST_LABELS]]
        lacking = TEXTS - len(texts)
        return (
            [*texts, *[caption] * lacking],
            [*labels[:TEXTS], *[whole] * lacking],
            padded([whole, *labels], MOST_LABELS + 1),
        )


@dataclass(frozen=True)
class Overlap:
    """Which of a rank's P pairs of an image and one of its texts are no mismatch with the global batch's Q, [P, Q] bool each.

    Every pair is none with itself.
    """

    same: Tensor
    """One pair's text speaks of what the other's does."""
    has: Tensor
    """The row's image has what the column's text speaks of."""
    had: Tensor
    """The column's image has what the row's text speaks of."""

    @property
    def of_texts(self) -> tuple[Tensor, Tensor]:
        """What is no negative where an image is seen under its own text's mask, as `info_nce` wants it."""
        return self.same, self.same

    @property
    def of_images(self) -> tuple[Tensor, Tensor]:
        """The same where it is seen whole, or under the other text's mask."""
        return self.has, self.had


def overlap(label: Tensor, labels: Tensor) -> Overlap:
    """Of the labels [B, K] of the images' texts and [B, M] of all that the images have, the caption's first.

    An entity speaks of itself, a caption of all that its image has.
    """
    count = label.shape[1]
    own, others = label.flatten(), gather(label).flatten()
    images, other_images = (x.repeat_interleave(count, dim=0) for x in (labels, gather(labels)))
    has, had = _contain(images, others), _contain(other_images, own).T
    captions, other_captions = own == images[:, 0], others == other_images[:, 0]
    same = (own[:, None] == others) | (captions[:, None] & has) | (other_captions & had)
    return Overlap(same, has, had)


def _contain(sets: Tensor, labels: Tensor) -> Tensor:
    """Which sets [S, M], filled up with `NONE`, have which of the labels [T]: [S, T] bool."""
    return ((sets[:, None] == labels[:, None]) & (sets != NONE)[:, None]).any(dim=-1)
