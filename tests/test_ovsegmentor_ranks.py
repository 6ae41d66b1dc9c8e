"""OVSegmentor over ranks, in real processes: two of them train as one does on the joined batch, on either engine.

All is in training mode and float64, so that rounding cannot hide a difference. Random draws are the same: drop path is 0, texts
and partners are those of the joined batch, and Gumbel noise is drawn for the joined batch, of which a rank takes its rows.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.distributed as dist
from chain import start_ranks
from torch import Tensor

from cluster.engine import DeepSpeedEngine
from owseg.data import Batch, CaptionBatches, ShardReader
from owseg.engine import Engine, TorchEngine
from owseg.fit import fit
from owseg.methods.ovsegmentor import OvSegmentor
from owseg.optim import OptimConfig, ParameterGroup
from owseg.phases import ScheduledPhase

RANKS = 2
RUNS = {"plain": (0, 0), "zero1": (1, 0), "zero3": (3, 0), "zero3 from 2": (3, 2), "zero3 from 3": (3, 3)}
"""ZeRO stage (0 = the plain engine) and the step from whose checkpoint a run goes on: the change of phase is after step 2."""
SCRIPT = """
import sys
from pathlib import Path
import torch, torch.distributed as dist
folder = Path(sys.argv[1])
sys.path.insert(0, sys.argv[2])
import deepspeed
from deepspeed.accelerator import get_accelerator
import test_ovsegmentor_ranks as ranks
dist.init_process_group("gloo")
torch.set_num_threads(1)
rank = dist.get_rank()
initialize = deepspeed.initialize
def shard_all(config, **rest):  # ZeRO 3 would leave parameters as small as these whole
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return initialize(config=config, **rest)
deepspeed.initialize = shard_all
# On a CPU that computes in float16, ZeRO 3 asks for the parameters' own type and refuses float64; elsewhere it takes any.
get_accelerator().is_fp16_supported = lambda: False
for run, (stage, start) in ranks.RUNS.items():
    torch.save(ranks.train(folder, run, stage, start), folder / f"{run}-{rank}.pt")
dist.destroy_process_group()
"""
Trained = dict[str, Any]
"""losses: by name, of every step; state: the method's tensors after the last; and what parameters were sharded."""


def place() -> tuple[int, int]:
    """This process' rank, and the number of ranks."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def share(rows: Tensor) -> Tensor:
    """This rank's rows of a joined batch."""
    rank, ranks = place()
    return rows.chunk(ranks)[rank]


class JoinedNoise:
    """Stands in for `Gumbel.sample`; seeded anew for each step."""

    def __init__(self) -> None:
        self.generator = torch.Generator()

    def __call__(self, shape: torch.Size) -> Tensor:
        uniform = torch.rand(shape[0] * place()[1], *shape[1:], generator=self.generator, dtype=torch.float64)
        return share(-torch.log(-torch.log(uniform)))


def batches_of(folder: Path, method: OvSegmentor, noise: JoinedNoise) -> Callable[[ScheduledPhase, int], Iterator[Batch]]:
    """This rank's rows of the batches that one process would take."""
    reader = ShardReader(sorted(folder.glob("*.tar")), entities=True)

    def batches(span: ScheduledPhase, step: int) -> Iterator[Batch]:
        joined = CaptionBatches(
            reader,
            method.tokenize,
            tiny.AUGMENT,
            normalisation=tiny.HALF,
            batch_size=span.schedule.optim.batch_size,
            seed=0,
            start=span.schedule.start,
            schedule=span.schedule.number,
            prepare=method.prepare,
            partners=span.phase.partners,
        )
        for number in range(step, span.stop):
            batch = joined[number]
            texts = {name: share(tokens) for name, tokens in batch.texts.items()}
            partner = None if batch.partner is None else share(batch.partner).double()
            noise.generator.manual_seed(number)
            yield Batch(share(batch.image).double(), share(batch.tokens), [], [], texts, partner)

    return batches


def train(folder: Path, run: str, stage: int = 0, start: int = 0) -> Trained:
    """Two steps in each phase, the second one with partners and an optimiser of its own."""
    rank, ranks = place()
    config = tiny.ovsegmentor_config(2, 2, label_weight=0.5)
    home = folder / f"{run} {rank} of {ranks}"
    home.mkdir()
    torch.manual_seed(0)
    method = config.build(tiny.encoder(home)).double()
    found: Trained = {"losses": [], "state": {}, "sharded": []}
    engines: list[Engine] = []
    noise = JoinedNoise()

    def make_engine(groups: list[ParameterGroup], optim: OptimConfig) -> Engine:
        if stage == 0:
            engines.append(TorchEngine(method, groups, optim))
        else:
            spread: dict[str, Any] = {"batch_per_worker": optim.batch_size // ranks, "zero_stage": stage, "bf16": False}
            engines.append(DeepSpeedEngine(method, groups, optim, device=torch.device("cpu"), **spread))
        return engines[-1]

    def checkpoint(step: int, save: Callable[[Path], None]) -> None:
        found["sharded"] = [name for name, parameter in method.named_parameters() if parameter.numel() == 0]
        if run == "zero3":
            (folder / str(step)).mkdir(exist_ok=True)
            save(folder / str(step))
            dist.barrier()
        with engines[-1].full_parameters():
            found["state"] = {name: tensor.clone() for name, tensor in method.state_dict().items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.distributions.Gumbel, "sample", lambda self, shape: noise(shape))
        fit(
            method,
            config.phases,
            config.optim,
            make_engine,
            batches_of(folder, method, noise),
            seed=0,
            resume=folder / str(start) if start else None,
            log_every=1,
            checkpoint_every=1,
            on_log=lambda step, losses, lr, diagnostics: found["losses"].append(losses),
            on_checkpoint=checkpoint,
        )
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]) -> dict[str, list[Trained]]:
    """What training comes to in "one" process on the plain engine, and on each of two ranks, by run."""
    folder = tmp_path_factory.mktemp("ranks")
    tiny.write_shards(folder)
    processes = start_ranks(SCRIPT, folder, RANKS, free_port())
    one = train(folder, "one")
    assert [process.wait(timeout=300) for process in processes] == [0] * RANKS
    return {"one": [one], **{run: [torch.load(folder / f"{run}-{rank}.pt") for rank in range(RANKS)] for run in RUNS}}


def assert_same(found: Trained, expected: Trained, tolerance: float) -> None:
    assert found["state"].keys() == expected["state"].keys()
    for name, tensor in expected["state"].items():
        torch.testing.assert_close(
            found["state"][name], tensor, rtol=tolerance, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}"
        )
    for step, losses in enumerate(expected["losses"]):
        assert found["losses"][step] == pytest.approx(losses, rel=2e-6), step  # logged in float32


def test_training_moves_all_that_is_compared(trained: dict[str, list[Trained]]) -> None:
    """Both phases' losses, every weight of both towers, statistics of batch norm, and a momentum copy that lags behind."""
    (one,) = trained["one"]
    assert [sorted(losses) for losses in one["losses"]] == [
        *[["contrast", "entity", "label"]] * 2,
        *[["contrast", "entity", "label", "mask"]] * 2,
    ]
    assert one["state"]["image_head.norm.num_batches_tracked"] > 0
    lag = one["state"]["encoder.tokens"] - one["state"]["momentum.tokens"]
    assert 0 < lag.abs().max() < 1e-2


def test_two_processes_train_as_one(trained: dict[str, list[Trained]]) -> None:
    for found in trained["plain"]:
        assert_same(found, trained["one"][0], 1e-9)


@pytest.mark.parametrize("run", ["zero1", "zero3"])
def test_deepspeed_trains_as_the_plain_engine(trained: dict[str, list[Trained]], run: str) -> None:
    """On each rank, to the rounding of ZeRO's float32 master weights; with ZeRO 3 from shards of all parameters."""
    for found in trained[run]:
        assert_same(found, trained["one"][0], 2e-6)
        assert bool(found["sharded"]) == (run == "zero3")


@pytest.mark.parametrize("start", [2, 3])
def test_a_resumed_run_ends_the_same(trained: dict[str, list[Trained]], start: int) -> None:
    """Where the second phase begins, and within it: the momentum copy goes on from the checkpoint."""
    for whole, found in zip(trained["zero3"], trained[f"zero3 from {start}"], strict=True):
        assert_same(found, {**whole, "losses": whole["losses"][start:]}, 0.0)
