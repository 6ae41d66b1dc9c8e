"""DeepSpeed as a training engine: the steps of `owseg.engine.TorchEngine`, with optimiser state sharded (ZeRO)."""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from owseg.adam import AdamState, Moments, torch_state
from owseg.data import Batch
from owseg.optim import OptimConfig, ParameterGroup, adamw
from owseg.steady import total_of
from owseg.trainable import TrainableMethod, losses_of

_MEAN, _SQUARE = "exp_avg", "exp_avg_sq"


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
    grad_norm = 0.0

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
        self.device, self.groups = device, [group.parameters for group in groups]
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
        self.grad_norm = float(self.engine.get_global_grad_norm() or 0.0)
        self.skipped = bool(self.optimizer.overflow)  # its norm is not finite: a sum over ranks, so that all agree
        return {name: loss.detach() for name, loss in losses.items()}

    def moments(self) -> Iterator[tuple[str, Moments]]:
        from deepspeed.utils import safe_get_full_optimizer_state as whole

        for name, parameter, flat in self._partitions():
            if state := self.optimizer.optimizer.state.get(flat):
                yield name, Moments(int(state["step"]), whole(parameter, _MEAN), whole(parameter, _SQUARE))

    def set_moments(self, state: AdamState) -> None:
        states = self.optimizer.optimizer.state
        partitions = list(self._partitions())
        for _, _, flat in partitions:
            states[flat] = torch_state(Moments(0, torch.zeros_like(flat), torch.zeros_like(flat)), flat.device)
        if not hasattr(self.optimizer, "fp32_partitioned_groups_flat"):
            self.optimizer._lazy_init_hp_params_optimizer_state()  # tells each parameter its place in them
        for name, parameter, flat in partitions:
            if name in state:
                moments = state[name]
                states[flat]["step"].fill_(moments.steps)  # of all of them: a group's parameters always learn together
                _take_over(parameter, moments)

    def _partitions(self) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
        """Each parameter with its name and the flat tensor, a rank's part of many parameters, that stands for it in AdamW."""
        for number, group in enumerate(self.groups):
            for name, parameter in group.items():
                if hasattr(parameter, "ds_id"):  # ZeRO 3
                    place = self.optimizer.grad_position[self.optimizer.get_param_id(parameter)][0]
                    yield name, parameter, self.optimizer.fp32_partitioned_groups_flat[place]
                else:
                    yield name, parameter, self.optimizer.single_partition_of_fp32_groups[number]

    def full_parameters(self) -> AbstractContextManager[None]:
        import deepspeed

        gathered: AbstractContextManager[None] = deepspeed.zero.GatheredParameters(list(self.engine.module.parameters()))
        return gathered

    def release(self) -> None:
        self.engine.destroy()  # its hooks sit on parameters that the next engine takes
        self.engine.optimizer = None  # or the collector has it destroyed again, whenever, with what the next engine set up


def _take_over(parameter: nn.Parameter, moments: Moments) -> None:
    """Put this rank's part of a parameter's state in its place."""
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    for key, value in ((_MEAN, moments.mean), (_SQUARE, moments.square)):
        if hasattr(parameter, "ds_tensor"):  # the last rank's part is filled up, which DeepSpeed's own function does not do
            size, rank = parameter.ds_tensor.numel(), dist.get_rank()
            padded = F.pad(value.flatten(), (0, size * dist.get_world_size() - value.numel()))
            safe_set_local_optimizer_state(parameter, padded[rank * size : (rank + 1) * size], key)
        else:
            safe_set_full_optimizer_state(parameter, value, key)


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
