"""The training loop: seeds, phases, resuming, ranks, and what is told when input is wrong."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from helpers import tiny
from owseg import InputError
from owseg.adam import SavedMoments
from owseg.augmentation import AugmentConfig, Decoded
from owseg.data import Batch, CaptionBatches, batches_from, epoch_order
from owseg.engine import TorchEngine
from owseg.fit import WEIGHTS, fit, learned_state, load_learned, named_parameters, phase_groups
from owseg.methods.tcl import GROUNDER, TclConfig
from owseg.optim import OptimConfig, lr_at, scaled_lr
from owseg.phases import Phase, ScheduledPhase
from owseg.shards import ShardReader


def caption_batches(
    folder: Path, *, rank: int = 0, world_size: int = 1, seed: int = 0, augment: AugmentConfig = tiny.AUGMENT
) -> CaptionBatches:
    shards = sorted(folder.glob("*.tar")) or tiny.write_shards(folder)
    encoder = tiny.encoder(folder)
    return CaptionBatches(
        ShardReader(shards),
        encoder.tokenize,
        augment,
        normalisation=tiny.HALF,
        batch_size=8,
        seed=seed,
        rank=rank,
        world_size=world_size,
    )


def run_fit(
    folder: Path, out: Path, *, stop_after: int | None = None, resume: Path | None = None, config: TclConfig | None = None
) -> nn.Module:
    """Train a tiny TCL over both phases, checkpointing every step; optionally die after a step, or resume."""
    batches = caption_batches(folder)
    torch.manual_seed(0)
    config = config or tiny.tcl_config()
    method = config.build(tiny.encoder(folder))

    def on_checkpoint(step: int, save: Callable[[Path], None]) -> None:
        target = out / str(step)
        target.mkdir(parents=True)
        save(target)
        if step == stop_after:
            raise KeyboardInterrupt

    def from_step(span: ScheduledPhase, step: int) -> Iterator[Batch]:
        return batches_from(batches, step, span.stop, workers=0)

    fit(
        method,
        config.phases,
        config.optim,
        lambda groups, optim: TorchEngine(method, groups, optim),
        from_step,
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


def test_a_change_of_phase_alone_changes_nothing(tmp_path: Path) -> None:
    """Two phases that train the same are one of as many steps: the optimiser's state goes on, and so does the schedule."""
    tiny.write_shards(tmp_path)
    config = tiny.tcl_config()
    first, second = Phase(steps=2, train=GROUNDER), Phase(steps=4, train=GROUNDER)
    whole = run_fit(tmp_path, tmp_path / "one", config=replace(config, phases=(replace(first, steps=6),)))

    parted = run_fit(tmp_path, tmp_path / "two", config=replace(config, phases=(first, second)))

    for name, expected in whole.state_dict().items():
        assert torch.equal(parted.state_dict()[name], expected), name


def test_moments_are_carried_by_the_phases_that_train_them(tmp_path: Path) -> None:
    """What both phases train keeps its step count; what the second unfreezes starts its own."""
    tiny.write_shards(tmp_path)
    run_fit(tmp_path, tmp_path / "out", config=tiny.tcl_config(2, 2))
    saved = SavedMoments(tmp_path / "out" / "4")
    assert {name.partition(".")[0]: moments.steps for name, moments in saved.items()} == {
        **dict.fromkeys(("mask_scale", "mask_shift", "tcl_v_scale", "tcl_f_scale", "decoder", "projection"), 4),
        "block": 2,
    }


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
    names = {name for name, _ in named_parameters(method, Phase(steps=1, train=GROUNDER))}
    assert names
    assert not any(name.startswith(("block.", "clip.")) for name in names)


def test_a_prefix_that_names_nothing_is_told(tmp_path: Path) -> None:
    method = tiny.tcl_config().build(tiny.encoder(tmp_path))
    with pytest.raises(InputError, match="decodr"):
        named_parameters(method, Phase(steps=1, train=("decodr.",)))


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


def test_an_erased_box_is_noise(tmp_path: Path) -> None:
    """Per pixel, as released; a box of the mean colour would be what TCL_v takes for masked-out."""
    transform = caption_batches(tmp_path, augment=replace(tiny.AUGMENT, erase=1.0)).transform
    torch.manual_seed(0)
    image = transform(Decoded(Image.new("RGB", (40, 40), "red"), (0, 0, 40, 40)))
    erased = (image != torch.tensor([1.0, -1.0, -1.0])[:, None, None]).any(dim=0)
    assert 0.01 < erased.float().mean() < 0.4
    assert len(image[:, erased].unique()) > 2 * erased.sum()


def test_bfloat16_moves_losses_by_its_rounding_alone(tmp_path: Path) -> None:
    """The plain engine: weights and optimiser state stay float32."""
    batch = caption_batches(tmp_path)[0]

    def step(bf16: bool) -> tuple[dict[str, Tensor], TorchEngine]:
        torch.manual_seed(0)
        method, config = tiny.tcl_config().build(tiny.encoder(tmp_path)), tiny.tcl_config()
        engine = TorchEngine(method, phase_groups(method, config.phases, config.optim)[0], config.optim, bf16=bf16)
        return engine.step(batch, 1e-3), engine

    (exact, _), (found, engine) = step(False), step(True)
    assert any(not torch.equal(found[name], loss) for name, loss in exact.items())
    for name, loss in exact.items():
        torch.testing.assert_close(found[name], loss, rtol=0.05, atol=2e-3)
    assert {moments.mean.dtype for _, moments in engine.moments()} == {torch.float32}


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
        CaptionBatches(reader, encoder.tokenize, tiny.AUGMENT, normalisation=tiny.HALF, batch_size=8, seed=0)


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


def test_position_is_written_beside_the_weights(tmp_path: Path) -> None:
    tiny.write_shards(tmp_path)
    run_fit(tmp_path, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "4" / "position.json").read_text()) == {"step": 4}
