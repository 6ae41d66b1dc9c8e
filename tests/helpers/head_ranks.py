"""A rank's training step of heads that are synced over ranks."""

from pathlib import Path

import torch
import torch.distributed as dist


def step_of_each_case(folder: Path) -> None:
    """A training step on each rank, after a batch that was only observed; gradients are averaged, as engines do.

    The mean over ranks of the loss is the sum over the joined batch, and x.grad is of the ranks' sum.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    results = {}
    for name, (module, parts, weights) in torch.load(folder / "cases.pt", weights_only=False).items():
        x = parts[rank].requires_grad_()
        module.observe(3 * x)
        out = module(x)
        (world * (out * weights[rank]).sum()).backward()
        for parameter in module.parameters():
            dist.all_reduce(parameter.grad)
            parameter.grad /= world
        results[name] = (out.detach(), x.grad / world, [p.grad for p in module.parameters()], list(module.buffers()))
    torch.save(results, folder / f"rank{rank}.pt")
