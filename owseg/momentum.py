"""Momentum copies of modules: teachers and momentum encoders that follow what learns."""

from copy import deepcopy
from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def frozen_copy(module: Module) -> Module:
    """A copy whose tensors are all buffers: engines shard, average and decay parameters, and leave buffers alone."""
    copy = deepcopy(module)
    for part in copy.modules():
        for name, parameter in [*part.named_parameters(recurse=False)]:
            delattr(part, name)
            part.register_buffer(name, parameter.detach())
    return copy


@torch.no_grad()
def follow(copy: nn.Module, module: nn.Module, momentum: float) -> None:
    """Move a `frozen_copy` towards its module: copy = momentum * copy + (1 - momentum) * module, parameters alone."""
    of_copy = dict(copy.named_buffers())
    pairs = [(of_copy[name], parameter) for name, parameter in module.named_parameters()]
    torch._foreach_lerp_([there for there, _ in pairs], [here for _, here in pairs], 1 - momentum)
