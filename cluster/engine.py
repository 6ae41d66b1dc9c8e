"""DeepSpeed as a training engine: the steps of `owseg.engine.TorchEngine`, with optimiser state sharded (ZeRO)."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from owseg.data import Batch
from owseg.optim import OptimConfig, parameter_groups

TAG = "step"
"""One constant tag: every checkpoint folder holds one checkpoint, so folders of all ranks merge without renaming."""


class _Losses(nn.Module):
    """DeepSpeed runs a module's forward; ours is the method's losses."""

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = self.method.losses(batch)  # type: ignore[operator]
        return losses


class DeepSpeedEngine:
    """An `owseg.engine.Engine` on DeepSpeed ZeRO. torch.distributed must be up (Ray Train sees to that)."""

    def __init__(
        self,
        method: nn.Module,
        parameters: Sequence[tuple[str, nn.Parameter]],
        optim: OptimConfig,
        *,
        batch_per_worker: int,
        zero_stage: int,
        bf16: bool,
        device: torch.device,
    ) -> None:
        deepspeed = _import_deepspeed()
        self.device = device
        optimizer = torch.optim.AdamW(
            parameter_groups(parameters, optim.weight_decay),
            lr=optim.lr,
            betas=(optim.betas[0], optim.betas[1]),
            eps=optim.eps,
        )
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=_Losses(method.to(device)),
            optimizer=optimizer,
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
        self.engine.backward(torch.stack(list(losses.values())).sum())
        self.engine.step()
        return {name: loss.detach() for name, loss in losses.items()}

    def save(self, folder: Path) -> None:
        self.engine.save_checkpoint(str(folder), tag=TAG, exclude_frozen_parameters=True)

    def load(self, folder: Path) -> None:
        self.engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=False)


def _import_deepspeed() -> Any:
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    from deepspeed.ops import __compatible_ops__
    from deepspeed.utils import logger

    # On CPU DeepSpeed would compile a shared-memory collective on first use (minutes, and it needs a compiler); gloo serves.
    __compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.DeepSpeedEngine._broadcast_model = _broadcast_weights
    logger.setLevel("WARNING")
    return deepspeed


def _broadcast_weights(engine: Any) -> None:
    """Give every rank the weights of rank 0, as DeepSpeed does at start.

    DeepSpeed's own version (0.19.8) sends them viewed as bytes, which fails on 0-dimensional parameters such as gates and
    temperatures. Weights that ZeRO 3 has sharded already are left alone, as there.
    """
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    for parameter in engine.module.parameters():
        if getattr(parameter, "ds_status", ZeroParamStatus.AVAILABLE) is ZeroParamStatus.AVAILABLE:
            dist.broadcast(parameter.data, src=0)
