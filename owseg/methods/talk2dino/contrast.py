"""The contrastive losses: of captions with images (the paper's), and of entities with images, a pair for each (our own)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from owseg.entity_labels import NONE
from owseg.losses import at_least_float32, gather, info_nce

LOG_SCALE = math.log(1 / 0.07)
"""Of the contrastive loss; it never learns (official: the optimiser does not hold it)."""


def caption_contrast(image: Tensor, text: Tensor, *, official: bool) -> Tensor:
    """Symmetric InfoNCE of matched rows [B, C] against the global batch, at a fixed temperature.

    The official form divides by the global batch's size squared. With Adam that is not a smaller learning rate but a larger
    epsilon: dividing the loss by k with epsilon e is the undivided loss with epsilon k * e, 1.6e-4 for a batch of 128.
    """
    loss = info_nce(image, text, torch.tensor(LOG_SCALE, device=text.device))
    return loss / len(gather(image)) ** 2 if official else loss


def entity_contrast(image: Tensor, text: Tensor, labels: Tensor) -> Tensor:
    """Symmetric InfoNCE of entities with images, each under the head that the entity chose, over the global batch.

    image, text: [B, M, C], of each image's M entities; labels: [B, M] int64 that stand for them, `NONE` where there are fewer.
    An entity matches every image that has it, under the head that it chose there. Where an image has it but stands under the
    head of another of its entities, the two are neither a match nor a mismatch, and are left out.
    """
    with torch.autocast(image.device.type, enabled=False):
        image, text = (F.normalize(x.to(at_least_float32(x)), dim=-1).flatten(0, 1) for x in (image, text))
        own = labels.flatten()
        images, texts, all_labels = gather(image), gather(text), gather(labels)
        everyone = all_labels.flatten()
        there = everyone != NONE
        match = own[:, None] == everyone
        # Whether the image of a row has the entity of a column, and the other way round, under whatever head.
        has = (labels[:, :, None] == everyone).any(dim=1).repeat_interleave(labels.shape[1], dim=0)
        had = (own[:, None, None] == all_labels).any(dim=-1).repeat_interleave(labels.shape[1], dim=1)
        scale = math.exp(LOG_SCALE)
        rows = own != NONE
        of_text = _soft_nce(scale * text @ images.T, match & there, there & (match | ~had))
        of_image = _soft_nce(scale * image @ texts.T, match & there, there & (match | ~has))
        total = gather(rows.to(image).sum().reshape(1)).sum()
        ranks = len(images) / len(image)
        return ranks * 0.5 * (of_text[rows] + of_image[rows]).sum() / total.clamp(min=1)


def _soft_nce(logits: Tensor, matches: Tensor, counted: Tensor) -> Tensor:
    """Cross-entropy [R] of logits [R, N] with targets uniform over the matches, among the columns that are counted."""
    shares = logits.masked_fill(~counted, -torch.inf).log_softmax(dim=-1)
    found = torch.where(matches, shares, 0.0).sum(dim=-1) / matches.sum(dim=-1).clamp(min=1)
    return -found
