"""Projection heads with batch norm, whose statistics can span all ranks (OVSegmentor)."""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from owseg.losses import at_least_float32, gather


class BatchStatistics(NamedTuple):
    """Of a number of rows of C values."""

    number: Tensor
    """[1]: how many rows."""
    mean: Tensor
    """[C]"""
    variance: Tensor
    """[C]: the mean squared deviation, biased."""


def batch_statistics(rows: Tensor) -> BatchStatistics:
    """The moments of rows [N, C], in float32 at least. Differentiable."""
    rows = rows.to(at_least_float32(rows))
    mean = rows.mean(dim=0)
    variance = (rows - mean).square().mean(dim=0)  # torch.var_mean takes eight times as long on a CPU
    return BatchStatistics(mean.new_full((1,), len(rows)), mean, variance)


def global_statistics(own: BatchStatistics) -> BatchStatistics:
    """The moments of all ranks' rows together, from each rank's own. Differentiable; a rank may hold more than another."""
    features = len(own.mean)
    number, mean, variance = torch.split(gather(torch.cat(own)[None]), [1, features, features], dim=1)
    total = number.sum(dim=0)
    joint = (number * mean).sum(dim=0) / total
    return BatchStatistics(total, joint, (number * (variance + (mean - joint).square())).sum(dim=0) / total)


class BatchNorm(nn.BatchNorm1d):
    """torch's BatchNorm1d over all leading dimensions of [..., C].

    synced: a training step's statistics are those of all ranks' rows, with exact gradients: losses that are averaged over
    ranks have those of one process on the joined batch. Unlike torch's SyncBatchNorm it runs on any device and backend.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, features: int, *, synced: bool) -> None:
        super().__init__(features)
        self.synced = synced

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if self.training and self._spans_ranks():
            found = self._statistics(rows)
            self._track(found)
            scale = self.weight * torch.rsqrt(found.variance + self.eps)
            normed = ((rows - found.mean) * scale + self.bias).to(x.dtype)
        else:
            normed = super().forward(rows)
        return normed.reshape(x.shape)

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Update the running statistics as a training forward of x [..., C] would, and nothing else."""
        self._track(self._statistics(x.reshape(-1, x.shape[-1])))

    def _spans_ranks(self) -> bool:
        return self.synced and dist.is_initialized() and dist.get_world_size() > 1

    def _statistics(self, rows: Tensor) -> BatchStatistics:
        own = batch_statistics(rows)
        return global_statistics(own) if self._spans_ranks() else own

    @torch.no_grad()
    def _track(self, found: BatchStatistics) -> None:
        assert self.momentum is not None  # torch allows a running average over all batches; this is a moving one
        unbiased = found.variance * (found.number / (found.number - 1))
        # Through .data, as torch's own batch norm: a forward before this one keeps them for its backward, which reads neither.
        self.running_mean.data.lerp_(found.mean.to(self.running_mean), self.momentum)
        self.running_var.data.lerp_(unbiased.to(self.running_var), self.momentum)
        self.num_batches_tracked += 1


class ProjectionHead(nn.Module):
    """Linear, batch norm, ReLU, Linear on [..., C]: from an encoder's features to the joint space."""

    def __init__(self, width: int, hidden: int, out: int, *, synced: bool) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, hidden)
        self.norm = BatchNorm(hidden, synced=synced)
        self.out = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] → [..., out]"""
        projected: Tensor = self.out(self.norm(self.hidden(x)).relu())
        return projected

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Let x [..., width] count in the running statistics as a training forward of it would; in eval mode nothing happens.

        The official code projects tokens that no loss reads, and this is all that comes of it.
        """
        if self.training:
            self.norm.observe(self.hidden(x))
