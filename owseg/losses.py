"""Contrastive and mask losses, exact over all ranks: with D ranks they equal one process on the joined batch."""

import warnings
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# What torch would have in its place is not differentiable with gloo.
warnings.filterwarnings("ignore", "torch.distributed.nn.functional.all_gather is deprecated", FutureWarning)


def gather(x: Tensor) -> Tensor:
    """Rows of all ranks, in rank order: [B, ...] → [N, ...], N = B * ranks. Differentiable."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return x
    joined = torch.cat(dist_nn.all_gather(x.contiguous()))  # type: ignore[no-untyped-call]
    if joined.requires_grad:  # the backward exchange sends memory as it lies, so a transposed gradient would arrive scrambled
        joined.register_hook(lambda gradient: gradient.contiguous())  # type: ignore[no-untyped-call]
    return joined


def global_mean(x: Tensor) -> Tensor:
    """The mean of a per-rank scalar over all ranks. Differentiable."""
    return gather(x.reshape(1)).mean()


def global_mean_rows(rows: Tensor) -> Tensor:
    """The mean [1, C] of the rows [n, C] of all ranks, n on each. Differentiable."""
    return gather(rows.mean(dim=0, keepdim=True)).mean(dim=0, keepdim=True)


def local_labels(batch: int, device: torch.device) -> Tensor:
    """Positions [B] of this rank's rows among the gathered ones."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    return torch.arange(batch, device=device) + batch * rank


def temperature(log_scale: Tensor) -> Tensor:
    """CLIP's learned inverse temperature: exp, never above 100."""
    return log_scale.exp().clamp(max=100.0)


def info_nce(image: Tensor, text: Tensor, log_scale: Tensor, left_out: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Symmetric InfoNCE of matched rows against the global batch. image, text: [B, E], any norm.

    left_out: [B, N] bool each, which texts are no negatives of this rank's images, and which images none of its texts (false
    negatives); what a row matches always counts. In at least float32, under autocast too: bfloat16 rounds a logit near 100 to
    a multiple of 1/2.
    """
    with torch.autocast(image.device.type, enabled=False):
        image, text = (F.normalize(x.to(at_least_float32(x)), dim=-1) for x in (image, text))
        scale = temperature(log_scale)
        images, texts = gather(image), gather(text)
        return _two_way(scale * image @ texts.T, scale * text @ images.T, left_out)


def multi_label_nce(image: Tensor, text: Tensor, labels: Tensor, log_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE of images with prompts of single labels: a prompt matches every image of the global batch that has
    its label (GroupViT's multi-label loss, 2202.11094, without its false negatives).

    image, text: [B, E], any norm; labels: [B, M] int64, those of each image, the prompt's own first, filled up with -1. A row's
    image and prompt always match. Targets are uniform over what matches.
    """
    with torch.autocast(image.device.type, enabled=False):
        image, text = (F.normalize(x.to(at_least_float32(x)), dim=-1) for x in (image, text))
        images, texts, all_labels = gather(image), gather(text), gather(labels)
        itself = F.one_hot(local_labels(len(image), image.device), len(images)).bool()
        scale = temperature(log_scale)
        of_image = _mentions(labels, all_labels) | itself
        of_text = _mentions(all_labels, labels).T | itself
        return 0.5 * (_soft_nce(scale * image @ texts.T, of_image) + _soft_nce(scale * text @ images.T, of_text))


def _mentions(labels: Tensor, of_prompts: Tensor) -> Tensor:
    """Which images, by labels [B, M], have which prompts' label, the first of [N, M]: [B, N] bool."""
    prompted = of_prompts[:, :1]
    return ((labels[:, None] == prompted) & (prompted >= 0)).any(dim=-1)


def _soft_nce(logits: Tensor, matches: Tensor) -> Tensor:
    """Cross-entropy of logits [B, N] with targets that are uniform over the matches [B, N] of each row."""
    return F.cross_entropy(logits, matches / matches.sum(dim=1, keepdim=True).to(logits.dtype))


def pairwise_nce(similarity: Tensor, log_scale: Tensor, left_out: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Symmetric InfoNCE where the similarity of each image-text pair is its own: TCL's feature-level loss.

    similarity: [B, N], this rank's images against all texts. The column direction needs every image's score against this
    rank's texts, so the rows of all ranks are gathered: B*N numbers, exact. left_out: as of `info_nce`.
    """
    columns = gather(similarity)[:, local_labels(len(similarity), similarity.device)].T
    scale = temperature(log_scale)
    return _two_way(scale * similarity, scale * columns, left_out)


def official_pairwise_nce(similarity: Tensor, own: Tensor, text: Tensor, log_scale: Tensor) -> Tensor:
    """`pairwise_nce` as the official TCL computes it over ranks; the same on one rank.

    own: [B, B, E], this rank's images pooled under the masks of this rank's texts; text: [B, E], those texts. In the column
    direction the images of rank r are scored with this rank's texts but were pooled under rank r's, so negatives of other
    ranks are wrong (see docs/fidelity.md).
    """
    pooled, text = F.normalize(gather(own), dim=-1, eps=1e-6), F.normalize(text, dim=-1, eps=1e-6)
    scale = temperature(log_scale)
    return _two_way(scale * similarity, scale * torch.einsum("nbe,be->bn", pooled, text))


def _two_way(rows: Tensor, columns: Tensor, left_out: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """The mean of both directions' cross-entropies, of logits [B, N]."""
    labels = local_labels(len(rows), rows.device)
    if left_out is not None:
        rows, columns = (
            logits.masked_fill(some.scatter(1, labels[:, None], False), -torch.inf)
            for logits, some in zip((rows, columns), left_out, strict=True)
        )
    return 0.5 * (F.cross_entropy(rows, labels) + F.cross_entropy(columns, labels))


def at_least_float32(x: Tensor) -> torch.dtype:
    """The type in which to add up x: its own, or float32 where that is shorter."""
    return torch.promote_types(x.dtype, torch.float32)


class _TotalVariation(torch.autograd.Function):
    """Keeps its input alone; autograd would keep the signs of both directions, each as large as the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        of_a_map = tuple(range(1, x.ndim))
        rows, columns = (x.diff(dim=dim).abs_().mean(dim=of_a_map, dtype=at_least_float32(x)) for dim in (-2, -1))
        return columns + rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        gradient = torch.zeros_like(x)
        for dim in (-1, -2):
            signs = x.diff(dim=dim).sign_()
            signs *= (grad / signs[0].numel()).to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
            gradient.narrow(dim, 1, signs.shape[dim]).add_(signs)
            gradient.narrow(dim, 0, signs.shape[dim]).sub_(signs)
        return gradient


def total_variation(x: Tensor) -> Tensor:
    """Anisotropic L1 total variation [B] of maps [B, ..., H, W]; each direction is its own mean."""
    variation: Tensor = _TotalVariation.apply(x)
    return variation


def gumbel_sigmoid(logits: Tensor, uniform: Tensor, tau: float = 1.0) -> Tensor:
    """Hard 0/1 mask with straight-through gradient. uniform: noise in (0, 1), same shape as logits."""
    noise = torch.log(uniform) - torch.log1p(-uniform)
    soft = torch.sigmoid((logits + noise) / tau)
    hard = (soft > 0.5).to(soft.dtype)
    return hard - soft.detach() + soft
