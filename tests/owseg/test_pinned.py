"""Page-locked batches where a GPU reads them."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data._utils.pin_memory import pin_memory

from helpers import tiny
from owseg import training
from owseg.data import Batch
from owseg.left_out import BadSample, BadSamples
from owseg.training import TrainJob, loader


@pytest.mark.parametrize("is_cuda", [True, False])
def test_batches_are_pinned_where_the_method_is_on_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_cuda: bool
) -> None:
    config = tiny.clip_config()
    job = TrainJob(
        method=config,
        encoder=tiny.encoder_config(tmp_path),
        shards=tuple(tiny.write_shards(tmp_path / "shards")),
        out=tmp_path,
    )
    method = config.build(tiny.encoder(tmp_path))
    asked: list[bool] = []

    def batches_from(drawn: Any, start: int, stop: int, *, workers: int, pin: bool) -> Iterator[Batch]:
        asked.append(pin)
        return iter(())

    monkeypatch.setattr(training, "batches_from", batches_from)
    batches = loader(job, method, 0, 1, BadSamples(tmp_path / "bad", 0.0, write=False))(job.scheduled_phases[0], 0)
    monkeypatch.setattr(method, "parameters", lambda: iter([SimpleNamespace(is_cuda=is_cuda)]))  # as the engine moves it
    assert list(batches) == []
    assert asked == [is_cuda]


def test_torch_pins_all_tensors_of_a_batch_and_leaves_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "pin_memory", lambda self, device=None: self + 1)
    zero = torch.zeros(())
    batch = Batch(zero, zero, ["a"], ["0"], {"answer": zero}, zero, {"local": zero}, 3, (BadSample("tar", "key", "why"),))
    found: Batch = pin_memory(batch)
    assert isinstance(found, Batch)
    pinned = [found.image, found.tokens, found.texts["answer"], found.partner, found.views["local"]]
    assert pinned == [1] * 5
    assert (found.captions, found.keys, found.first) == (["a"], ["0"], 3)
    assert [*found.bad] == [*batch.bad]
    assert pin_memory(batch._replace(partner=None)).partner is None
