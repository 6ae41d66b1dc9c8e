"""Contrastive and mask losses, exact over all ranks: with D ranks they equal one process on the joined batch."""

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
import torch.nn.functional as F
from torch import Tensor


def gather(x: Tensor) -> Tensor:
    """Rows of all ranks, in rank order: [B, ...] → [N, ...], N = B * ranks. Differentiable."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return x
    return torch.cat(dist_nn.all_gather(x.contiguous()))  # type: ignore[no-untyped-call]


def global_mean(x: Tensor) -> Tensor:
    """The mean of a per-rank scalar over all ranks. Differentiable."""
    return gather(x.reshape(1)).mean()


def local_labels(batch: int, device: torch.device) -> Tensor:
    """Positions [B] of this rank's rows among the gathered ones."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    return torch.arange(batch, device=device) + batch * rank


def temperature(log_scale: Tensor) -> Tensor:
    """CLIP's learned inverse temperature: exp, never above 100."""
    return log_scale.exp().clamp(max=100.0)


def info_nce(image: Tensor, text: Tensor, log_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE of matched rows against the global batch. image, text: [B, E], any norm."""
    image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
    labels = local_labels(len(image), image.device)
    scale = temperature(log_scale)
    images, texts = gather(image), gather(text)
    return 0.5 * (F.cross_entropy(scale * image @ texts.T, labels) + F.cross_entropy(scale * text @ images.T, labels))


def pairwise_nce(similarity: Tensor, log_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE where the similarity of each image-text pair is its own: TCL's feature-level loss.

    similarity: [B, N], this rank's images against all texts. The column direction needs every image's score against this
    rank's texts, so the rows of all ranks are gathered: B*N numbers, exact (official TCL scores other ranks' images with
    the wrong texts' masks; see docs/fidelity.md).
    """
    batch = len(similarity)
    labels = local_labels(batch, similarity.device)
    scale = temperature(log_scale)
    columns = gather(similarity)[:, labels].T
    return 0.5 * (F.cross_entropy(scale * similarity, labels) + F.cross_entropy(scale * columns, labels))


def total_variation(x: Tensor) -> Tensor:
    """Anisotropic L1 total variation of [..., H, W]; each direction is its own mean."""
    across = (x[..., :, 1:] - x[..., :, :-1]).abs().mean()
    down = (x[..., 1:, :] - x[..., :-1, :]).abs().mean()
    return across + down


def gumbel_sigmoid(logits: Tensor, uniform: Tensor, tau: float = 1.0) -> Tensor:
    """Hard 0/1 mask with straight-through gradient. uniform: noise in (0, 1), same shape as logits."""
    noise = torch.log(uniform) - torch.log1p(-uniform)
    soft = torch.sigmoid((logits + noise) / tau)
    hard = (soft > 0.5).to(soft.dtype)
    return hard - soft.detach() + soft
