"""DeepSpeed as a training engine: the steps of `owseg.engine.TorchEngine`, with optimiser state sharded (ZeRO)."""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from owseg.data import Batch
from owseg.optim import AdamState, OptimConfig, ParameterGroup, adam_state, adamw, with_adam_state
from owseg.steady import total_of
from owseg.trainable import TrainableMethod, losses_of

TAG = "step"
"""One constant tag: every checkpoint folder holds one checkpoint, so folders of all ranks merge without renaming."""
_BASE_STATE = ("base_optimizer_state", "optimizer_state_dict")
"""Where ZeRO 1 and 2, and ZeRO 3, keep the wrapped optimiser's state dict."""


class _Losses(nn.Module):
    """DeepSpeed runs a module's forward; this one is the method's losses."""

    def __init__(self, method: TrainableMethod) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return losses_of(self.method, batch)


class DeepSpeedEngine:
    """An `owseg.engine.Engine` on DeepSpeed ZeRO. torch.distributed must be up (Ray Train sees to that)."""

    skipped = False

    def __init__(
        self,
        method: TrainableMethod,
        groups: Sequence[ParameterGroup],
        optim: OptimConfig,
        *,
        batch_per_worker: int,
        zero_stage: int,
        bf16: bool,
        device: torch.device,
    ) -> None:
        deepspeed = _import_deepspeed()
        self.device = device
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=_Losses(method.to(device)),
            optimizer=adamw(groups, optim),
            dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": batch_per_worker,
                "gradient_clipping": optim.clip_norm,
                "zero_optimization": {"stage": zero_stage},
                "torch_autocast": {"enabled": bf16, "dtype": "bfloat16"},
            },
        )

    def step(self, batch: Batch, lr: float) -> dict[str, Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        losses: dict[str, Tensor] = self.engine(batch.to(self.device))
        self.engine.backward(total_of(losses))
        self.engine.step()
        self.skipped = bool(self.optimizer.overflow)  # its norm is not finite: a sum over ranks, so that all agree
        return {name: loss.detach() for name, loss in losses.items()}

    def save(self, folder: Path) -> None:
        self.engine.save_checkpoint(str(folder), tag=TAG, exclude_frozen_parameters=True)

    def load(self, folder: Path) -> None:
        self.engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=False)

    def full_parameters(self) -> AbstractContextManager[None]:
        import deepspeed

        gathered: AbstractContextManager[None] = deepspeed.zero.GatheredParameters(list(self.engine.module.parameters()))
        return gathered

    def release_optimizer_state(self) -> AdamState:
        state = self.optimizer.state_dict()
        carried = adam_state(next(state[key] for key in _BASE_STATE if key in state))
        self.engine.destroy()  # its hooks sit on parameters that the next engine takes
        return carried

    def load_optimizer_state(self, carried: AdamState) -> None:
        # ZeRO lays a group out by its parameters' order alone, so equal groups have equal partitions on each rank.
        state = self.optimizer.state_dict()
        key = next(key for key in _BASE_STATE if key in state)
        self.optimizer.load_state_dict({dist.get_rank(): {**state, key: with_adam_state(state[key], carried)}})


def _import_deepspeed() -> Any:
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    from deepspeed.ops import __compatible_ops__
    from deepspeed.utils import logger

    # On CPU DeepSpeed would compile a shared-memory collective on first use (minutes, and it needs a compiler); gloo serves.
    __compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.DeepSpeedEngine._broadcast_model = _broadcast_weights
    deepspeed.zero.Init._zero_init_param = _shard
    logger.setLevel("WARNING")
    return deepspeed


# At start DeepSpeed gives every rank the weights of rank 0. Its own two functions (0.19.8) send them viewed as bytes, which
# fails on 0-dimensional parameters such as gates and temperatures; these send them as they are.


def _broadcast_weights(engine: Any) -> None:
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    for parameter in engine.module.parameters():
        if getattr(parameter, "ds_status", ZeroParamStatus.AVAILABLE) is ZeroParamStatus.AVAILABLE:  # not sharded already
            dist.broadcast(parameter.data, src=0)


def _shard(init: Any, parameter: Any) -> None:
    init._convert_to_deepspeed_param(parameter)
    dist.broadcast(parameter.data, src=0)
    parameter.partition()
