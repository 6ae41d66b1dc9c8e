"""A batch that is encoded a few samples at a time has the losses and gradients of the whole batch, for less memory."""

from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor

from helpers import tiny
from helpers.rank_losses import METHODS
from helpers.step import assert_same_step, job_in, last_step
from owseg import InputError
from owseg.data import Batch
from owseg.flops import counted_flops
from owseg.trainable import TrainableMethod
from owseg.training import LoopConfig, build

CASES = {name: make(4) for name, make in METHODS.items()} | {
    "tcl of all losses": replace(tiny.tcl_config(2, 2), whole_image_weight=0.5, text_chunk=3),
    "tcl without masks": replace(tiny.tcl_config(2, 2), tcl_f_weight=0.0, area_weight=0.0, tv_weight=0.0),
    "official tcl": replace(tiny.tcl_config(2, 2), fidelity="official"),
    "official ovsegmentor": tiny.ovsegmentor_config(2, 2, fidelity="official", drop_path=0.1),
    "vilseg of clusters that learn": tiny.vilseg_config(4, cluster_gradient=True, cluster_shifts=1, cluster_form="collapsed"),
    "vilseg of images by themselves": tiny.vilseg_config(4, cluster_pool="image", vision_weight=0.0),
}


@pytest.mark.parametrize("case", CASES)
def test_micro_batches_take_the_step_of_the_whole_batch(case: str, tmp_path: Path) -> None:
    whole, parts = (last_step(CASES[case], tmp_path, LoopConfig(micro_batch=size)) for size in (0, 3))
    assert_same_step(parts, whole)
    frozen = case.startswith("talk2dino")  # whose tower keeps nothing for backward
    assert parts.kept < whole.kept / (1 if frozen else 2)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_what_is_encoded_again_does_not_count_for_mfu(checkpointed: bool, tmp_path: Path) -> None:
    """Nor twice, where a block that is run again lies in a micro-batch that is."""
    config = replace(tiny.tcl_config(2, 2), checkpoint_blocks=checkpointed, text_chunk=4 if checkpointed else 0)
    counts = []
    for size in (0, 2):
        with counted_flops() as count:
            last_step(config, tmp_path, LoopConfig(micro_batch=size))
        counts.append(count)
    whole, parts = counts
    assert parts.executed > whole.executed
    assert parts.model == pytest.approx(whole.model, rel=0.02)  # what early stops leave out


def test_a_method_that_cannot_be_cut_in_two_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain(TrainableMethod):
        def losses(self, batch: Batch) -> dict[str, Tensor]:
            return {"none": batch.image.sum()}

    config = tiny.clip_config()
    monkeypatch.setattr(type(config), "build", lambda self, encoder: Plain())
    with pytest.raises(InputError, match=r"train\.micro_batch: clip has no `encode` and `combine`"):
        build(job_in(tmp_path, config, LoopConfig(micro_batch=4)))
    assert isinstance(build(job_in(tmp_path, config, LoopConfig())), Plain)


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(InputError, match="micro_batch must be at least 0, not -1"):
        LoopConfig(micro_batch=-1)
