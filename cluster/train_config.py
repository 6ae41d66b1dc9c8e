"""How a training is spread over processes, and all that one on Ray Train needs to know."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from cluster import InputError
from owseg.evaluation.protocols import EvaluateConfig
from owseg.fields import check_range
from owseg.phases import batch_sizes
from owseg.training import LoopConfig, TrainJob

PAIRS_PER_WORKER = 16
"""Of a step, below which more processes cost more than they bring."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LoopConfig):
    """How training is spread over processes; how each of them loops is `LoopConfig`'s."""

    shards: str = ""
    """Folder of WebDataset tars to train on, or a pattern (tars/*.tar), in place of filter and download; empty = theirs."""
    features: Literal["float16", "float32", "none"] = "float16"
    """What methods with frozen towers and crop=centre train on: features of the shards, made once and stored as float16 or
    float32; none = pixels, which go through the towers at each step."""
    workers: int | str = 1
    """Training processes, with GPUs one each: a number, or 2..8 for as many of them as there is room for, fewer where nodes are
    lost and more behind a checkpoint where some come; 0 = by this machine's cores, at least 16 pairs of a batch for each."""
    use_gpu: bool = False
    """Give each training process a GPU."""
    engine: Literal["deepspeed", "torch"] = "deepspeed"
    """What carries out steps: deepspeed (ZeRO) or torch (plain AdamW, the reference)."""
    zero_stage: int = 1
    """DeepSpeed ZeRO stage, 1 to 3: what is sharded over the workers (1 optimiser state, 2 gradients too, 3 weights too)."""
    threads: int = 1
    """CPU threads of each training process; 0 = this machine's cores shared out among the processes."""
    keep_best: bool = False
    """Score each checkpoint on the tuning split (evaluate.tuning), beside training, and keep the best instead of the last."""
    score_checkpoints: bool = False
    """Score them all the same where the last is kept: curves of mIoU, and pictures of the same images at each checkpoint."""
    max_failures: int = 2
    """Times that a failed worker group is restarted from its last checkpoint before the run gives up."""
    wait_seconds: float = 50.0
    """Seconds that a Ray cluster (session.address) may lack room for the workers while no node is on its way to it."""
    recovery_seconds: float = 900.0
    """Seconds that it may take, once workers or nodes are lost, to have room for the workers again, before the run stops."""
    collective_seconds: float = 1800.0
    """Seconds that ranks wait for one that does not come, before they are restarted from the last checkpoint."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threads < 0:
            raise InputError(f"threads must be at least 0, not {self.threads}")
        least, most = _range(self.workers)
        object.__setattr__(self, "workers", f"{least}..{most}" if least < most else most)
        if self.use_gpu and not self.workers:
            raise InputError("workers must be given with use_gpu: 0 goes by the machine's cores")
        for name in ("wait_seconds", "recovery_seconds"):
            check_range(self, name, least=0)
        check_range(self, "collective_seconds", least=1)
        if self.zero_stage not in (1, 2, 3):
            raise InputError(f"zero_stage must be 1, 2 or 3, not {self.zero_stage}")

    @property
    def least_workers(self) -> int:
        """The fewest training processes that may be; 0 = by this machine's cores."""
        return _range(self.workers)[0]

    @property
    def most_workers(self) -> int:
        """The most training processes that may be; 0 = by this machine's cores."""
        return _range(self.workers)[1]

    def counts(self, batches: Sequence[int]) -> list[int]:
        """The numbers of processes within `workers` over which all of a method's batch sizes divide."""
        most = min(self.most_workers, *batches)
        return [n for n in range(self.least_workers, most + 1) if n and all(size % n == 0 for size in batches)]

    @property
    def each(self) -> dict[str, float]:
        """What Ray reserves for each training process."""
        return {"CPU": self.threads + self.loader_workers, "GPU": 1.0} if self.use_gpu else {"CPU": 0.5}

    def spread(self, batches: Sequence[int], cores: int) -> "TrainConfig":
        """The same with `workers` and `threads` in numbers, for a method's batch sizes on a machine with so many cores."""
        fitting = (n for n in range(cores, 1, -1) if all(size % n == 0 and size >= n * PAIRS_PER_WORKER for size in batches))
        workers = self.workers or next(fitting, 1)
        most = _range(workers)[1]
        return replace(self, workers=workers, threads=self.threads or max(1, cores // most))


def _range(workers: int | str) -> tuple[int, int]:
    """The fewest and the most processes. Raises InputError for what is neither a number nor a range of them."""
    found = re.fullmatch(r"(\d{1,9})(?:\.\.(\d{1,9}))?", str(workers).strip())
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (-1, -1)
    if not found or most < least or (least == 0 and most > 0):
        raise InputError(f"workers must be a number, or two with .. between them such as 2..8, not {workers!r}")
    return least, most


@dataclass(frozen=True, kw_only=True)
class RayTrainJob(TrainJob):
    """A training on Ray Train. Paths are absolute: Ray gives workers another working directory."""

    train: TrainConfig = TrainConfig()
    tuning: EvaluateConfig | None = None
    """Labelled images on which each checkpoint is scored; None = none is."""

    @property
    def counts(self) -> list[int]:
        """The numbers of processes that it may run on."""
        sizes = batch_sizes(self.method.phases, self.method.optim)
        return self.train.counts(sizes) or [self.train.most_workers]  # ranks refuse a batch that does not divide
