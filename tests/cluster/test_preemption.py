"""A notice that a node will be taken back is a checkpoint at once, and one alone."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cluster.preemption import Notice
from helpers import tiny
from owseg.data import CaptionBatches, batches_from
from owseg.encoders import build_encoder
from owseg.engine import TorchEngine
from owseg.fit import fit
from owseg.shards import ShardReader


def test_each_node_is_a_checkpoint_once_and_only_some_steps_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    heard, asked = [None, ["a"], ["a"], ["a", "b"], ["a", "b"]], list[int]()

    def info() -> SimpleNamespace | None:
        nodes = heard[len(asked)]
        asked.append(len(asked))
        return SimpleNamespace(preempted_node_ids=nodes) if nodes else None

    monkeypatch.setattr("ray.train.get_preemption_info", info)
    notice = Notice(every=2)
    assert [step for step in range(1, 11) if notice(step)] == [4, 8]
    assert len(asked) == 5


def test_the_loop_writes_a_checkpoint_when_it_is_told_to(tmp_path: Path) -> None:
    config, encoder = tiny.clip_config(steps=5), tiny.encoder_config(tmp_path)
    torch.manual_seed(0)
    method, kept = config.build(build_encoder(encoder)), list[int]()
    drawn = CaptionBatches(
        ShardReader(tiny.write_shards(tmp_path / "shards")),
        tiny.encoder(tmp_path).tokenize,
        tiny.AUGMENT,
        normalisation=tiny.HALF,
        batch_size=8,
        seed=0,
        rank=0,
        world_size=1,
    )

    def keep(step: int, save: Callable[[Path], None]) -> None:
        kept.append(step)

    fit(
        method,
        config.phases,
        config.optim,
        lambda groups, optim: TorchEngine(method, groups, optim),
        lambda phase, step: batches_from(drawn, step, phase.stop, workers=0),
        seed=0,
        on_checkpoint=keep,
        checkpoint_now=lambda step: step == 2,
    )
    assert kept == [2, 5]
