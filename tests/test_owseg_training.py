"""The training loop: seeds, phases, resuming, ranks, and what is told when input is wrong."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from torch import nn

from owseg import InputError
from owseg.data import Batch, CaptionBatches, ShardReader, batches_from, epoch_order
from owseg.engine import Phase, TorchEngine
from owseg.fit import WEIGHTS, fit, learned_state, load_learned, set_trainable
from owseg.methods.tcl import GROUNDER
from owseg.optim import OptimConfig, lr_at, parameter_groups, scaled_lr


def caption_batches(folder: Path, *, rank: int = 0, world_size: int = 1, seed: int = 0) -> CaptionBatches:
    shards = sorted(folder.glob("*.tar")) or tiny.write_shards(folder)
    encoder = tiny.encoder(folder)
    return CaptionBatches(
        ShardReader(shards),
        encoder.tokenize,
        tiny.AUGMENT,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        batch_size=8,
        seed=seed,
        rank=rank,
        world_size=world_size,
    )


def run_fit(folder: Path, out: Path, *, stop_after: int | None = None, resume: Path | None = None) -> nn.Module:
    """Train a tiny TCL over both phases, checkpointing every step; optionally die after a step, or resume."""
    batches = caption_batches(folder)
    torch.manual_seed(0)
    config = tiny.tcl_config()
    method = config.build(tiny.encoder(folder))

    def on_checkpoint(step: int, save: Callable[[Path], None]) -> None:
        target = out / str(step)
        target.mkdir(parents=True)
        save(target)
        if step == stop_after:
            raise KeyboardInterrupt

    def between(start: int, stop: int) -> Iterator[Batch]:
        return batches_from(batches, start, stop, workers=0)

    fit(
        method,
        config.phases,
        config.optim,
        lambda parameters: TorchEngine(method, parameters, config.optim),
        between,
        seed=0,
        resume=resume,
        checkpoint_every=1,
        on_checkpoint=on_checkpoint,
    )
    return method


@pytest.mark.parametrize("stop_after", [2, 3, 5])
def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path, stop_after: int) -> None:
    """Also across the change of phase (after step 3), and at any step of either phase."""
    tiny.write_shards(tmp_path)
    whole = run_fit(tmp_path, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_fit(tmp_path, tmp_path / "part", stop_after=stop_after)

    resumed = run_fit(tmp_path, tmp_path / "rest", resume=tmp_path / "part" / str(stop_after))

    phases = tiny.tcl_config().phases
    for (name, expected), found in zip(
        learned_state(whole, phases).items(), learned_state(resumed, phases).values(), strict=True
    ):
        assert torch.equal(expected, found), name


def test_training_changes_only_what_the_phase_names(tmp_path: Path) -> None:
    tiny.write_shards(tmp_path)
    method = run_fit(tmp_path, tmp_path / "out")
    start = tiny.tcl_config().build(tiny.encoder(tmp_path))
    changed = {
        name
        for name, tensor in method.state_dict().items()
        if not torch.equal(tensor, start.state_dict()[name]) and not name.startswith("decoder")  # fresh, random init
    }
    assert any(name.startswith("block.") for name in changed)
    assert any(name.startswith("projection.") for name in changed)
    assert not any(name.startswith("clip.") for name in changed)


def test_a_first_phase_leaves_the_block_alone(tmp_path: Path) -> None:
    method = tiny.tcl_config().build(tiny.encoder(tmp_path))
    names = {name for name, _ in set_trainable(method, Phase(steps=1, train=GROUNDER))}
    assert names
    assert not any(name.startswith(("block.", "clip.")) for name in names)


def test_a_prefix_that_names_nothing_is_told(tmp_path: Path) -> None:
    method = tiny.tcl_config().build(tiny.encoder(tmp_path))
    with pytest.raises(InputError, match="decodr"):
        set_trainable(method, Phase(steps=1, train=("decodr.",)))


def test_a_batch_depends_on_seed_and_step_alone(tmp_path: Path) -> None:
    first, again = caption_batches(tmp_path)[3], caption_batches(tmp_path)[3]
    assert torch.equal(first.image, again.image)
    assert first.keys == again.keys
    assert caption_batches(tmp_path, seed=1)[3].keys != first.keys


def test_loader_processes_do_not_change_batches(tmp_path: Path) -> None:
    batches = caption_batches(tmp_path)
    for alone, helped in zip(batches_from(batches, 0, 6, workers=0), batches_from(batches, 0, 6, workers=2), strict=True):
        assert torch.equal(alone.image, helped.image)
        assert alone.captions == helped.captions


def test_ranks_share_an_epoch_without_overlap(tmp_path: Path) -> None:
    whole = caption_batches(tmp_path)
    parts = [caption_batches(tmp_path, rank=rank, world_size=2) for rank in range(2)]
    seen: list[str] = []
    for step in range(5):
        together = [key for part in parts for key in part[step].keys]
        assert together == whole[step].keys
        seen += together
    assert len(seen) == len(set(seen)) == 40


def test_every_epoch_has_its_own_order() -> None:
    assert sorted(epoch_order(50, 0, 0)) == list(range(50))
    assert not np.array_equal(epoch_order(50, 0, 0), epoch_order(50, 0, 1))


def test_a_truncated_tar_is_named(tmp_path: Path) -> None:
    path = tiny.write_shards(tmp_path)[0]
    path.write_bytes(b"not a tar at all" * 100)
    with pytest.raises(InputError, match=r"00000\.tar"):
        ShardReader([path])


def test_a_corpus_smaller_than_a_batch_is_told(tmp_path: Path) -> None:
    encoder = tiny.encoder(tmp_path)
    reader = ShardReader(tiny.write_shards(tmp_path, samples=4))
    with pytest.raises(InputError, match="batch_size"):
        CaptionBatches(reader, encoder.tokenize, tiny.AUGMENT, mean=(0.5,) * 3, std=(0.5,) * 3, batch_size=8, seed=0)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    tiny.write_shards(tmp_path)
    run_fit(tmp_path, tmp_path / "out")
    method = tiny.clip_config().build(tiny.encoder(tmp_path))
    with pytest.raises(InputError, match="another architecture"):
        load_learned(method, tiny.clip_config().phases, tmp_path / "out" / "6" / WEIGHTS)


def test_half_a_checkpoint_is_refused(tmp_path: Path) -> None:
    tiny.write_shards(tmp_path)
    run_fit(tmp_path, tmp_path / "out")
    weights = tmp_path / "out" / "6" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match=WEIGHTS):
        load_learned(tiny.tcl_config().build(tiny.encoder(tmp_path)), tiny.tcl_config().phases, weights)


def test_the_schedule_is_the_papers() -> None:
    """Warm-up to 7.5e-5 at a global batch of 1,024, cosine to 1e-5 (facts of the released configuration)."""
    config = OptimConfig()
    assert scaled_lr(config, config.lr) == pytest.approx(7.5e-5)
    assert lr_at(config, 0, 50000) == pytest.approx(7.5e-9)
    assert lr_at(config, 15000, 50000) == pytest.approx(7.5e-5)
    assert lr_at(config, 32500, 50000) == pytest.approx((7.5e-5 + 1e-5) / 2)
    assert lr_at(config, 50000, 50000) == pytest.approx(1e-5)


def test_biases_norms_and_scalars_are_not_decayed(tmp_path: Path) -> None:
    method = tiny.tcl_config().build(tiny.encoder(tmp_path))
    parameters = set_trainable(method, Phase(steps=1, train=GROUNDER))
    decayed, spared = parameter_groups(parameters, 0.05)
    assert decayed["weight_decay"] == 0.05
    assert spared["weight_decay"] == 0.0
    assert {parameter.ndim for parameter in spared["params"]} == {0, 1}
    assert len(decayed["params"]) + len(spared["params"]) == len(parameters)


RANK = """
import json, sys
from pathlib import Path
import torch, torch.distributed as dist
sys.path.insert(0, sys.argv[3])
import tiny
from owseg.data import Batch
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
method = tiny.tcl_config().build(tiny.encoder(folder))
for name, parameter in method.named_parameters():
    if name.endswith("gate"):
        parameter.data.fill_(0.3)
batch = torch.load(folder / "batch.pt", weights_only=True)
mine = slice(rank * 8 // world, (rank + 1) * 8 // world)
uniform = batch["uniform"][mine]
torch.rand_like = lambda _: uniform.clone()
losses = method.losses(Batch(batch["image"][mine], batch["tokens"][mine], [], []))
torch.stack(list(losses.values())).sum().backward()
result = {name: loss.detach() for name, loss in losses.items()}
result |= {"grad/" + name: p.grad for name, p in method.named_parameters() if p.grad is not None}
for tensor in result.values():
    dist.all_reduce(tensor)
    tensor /= world
if rank == 0:
    torch.save(result, out)
dist.destroy_process_group()
"""


def run_ranks(folder: Path, world_size: int, port: int) -> dict[str, torch.Tensor]:
    out = folder / f"result-{world_size}.pt"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(folder), str(out), str(Path(__file__).parent)],
            env={
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
            },
        )
        for rank in range(world_size)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0] * world_size
    result: dict[str, torch.Tensor] = torch.load(out, weights_only=True)
    return result


def test_two_ranks_equal_one_process_on_the_joined_batch(tmp_path: Path, free_port: Callable[[], int]) -> None:
    """All six losses of TCL and the gradients of their sum, with non-zero gates (real gloo processes)."""
    generator = torch.Generator().manual_seed(1)
    tokens = tiny.encoder(tmp_path).tokenize([f"a {name} wall number {i}" for i, name in enumerate(["red", "blue"] * 4)])
    batch = {
        "image": torch.randn(8, 3, 32, 32, generator=generator),
        "tokens": tokens,
        "uniform": torch.rand(8, 16, 16, generator=generator).clamp(1e-6, 1 - 1e-6),
    }
    torch.save(batch, tmp_path / "batch.pt")

    one, two = run_ranks(tmp_path, 1, free_port()), run_ranks(tmp_path, 2, free_port())

    assert one.keys() == two.keys()
    assert sum(name.startswith("grad/") for name in one) > 10
    for name, expected in one.items():
        torch.testing.assert_close(two[name], expected, rtol=2e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_position_is_written_beside_the_weights(tmp_path: Path) -> None:
    tiny.write_shards(tmp_path)
    run_fit(tmp_path, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "4" / "position.json").read_text()) == {"step": 4}
