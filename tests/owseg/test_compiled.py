"""torch.compile as an option: the same losses and gradients, also where blocks are run again in micro-batches."""

from functools import partial
from pathlib import Path

import pytest
import torch

from helpers import tiny
from helpers.rank_losses import METHODS
from helpers.step import assert_same_step, last_step
from owseg import training
from owseg.compiled import compile_blocks
from owseg.training import LoopConfig

pytestmark = pytest.mark.filterwarnings("default:The .grad attribute:UserWarning")  # of the tracer, which looks at everything


@pytest.fixture(autouse=True)
def _forget() -> None:
    torch.compiler.reset()


@pytest.mark.parametrize("micro_batch", [0, 3])
def test_compiled_blocks_take_the_same_step(micro_batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as for any backend, but without a compiler."""
    monkeypatch.setattr(training, "compile_blocks", partial(compile_blocks, backend="aot_eager"))
    plain, compiled = (
        last_step(METHODS["clip"](4), tmp_path, LoopConfig(micro_batch=micro_batch, compile=on)) for on in (False, True)
    )
    assert_same_step(compiled, plain)


def test_blocks_of_all_towers_are_found(tmp_path: Path) -> None:
    encoder = tiny.encoder(tmp_path)
    for method, blocks in (("clip", 3), ("tcl", 4), ("ovsegmentor", 5)):
        assert compile_blocks(METHODS[method](4).build(encoder)) == blocks, method


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_with_torch_s_own_compiler(method: str, tmp_path: Path) -> None:
    plain, compiled = (last_step(METHODS[method](4), tmp_path, LoopConfig(compile=on)) for on in (False, True))
    assert_same_step(compiled, plain)
