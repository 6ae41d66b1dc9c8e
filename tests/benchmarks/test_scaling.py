"""The bytes that the scaling model predicts are those that losses and gradients exchange, for any number of ranks."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import scaling
import torch
import torch.distributed as dist

from helpers import tiny
from helpers.paths import PYTHONPATH
from owseg.data import Batch
from owseg.engine import TorchEngine
from owseg.fit import phase_groups
from owseg.method_config import TrainableConfig

PAIRS = 4
MODELS: dict[str, Callable[[], TrainableConfig]] = {
    "tcl": tiny.tcl_config,
    "ovsegmentor": tiny.ovsegmentor_config,
    "vilseg": lambda: tiny.vilseg_config(cluster_shifts=1),
}


@contextmanager
def pretended_ranks(ranks: int) -> Iterator[None]:
    """This process as rank 0 of many: collectives are carried out with nobody, so values are meaningless, sizes are not."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def batch_for(method: Any, config: TrainableConfig, *, partners: bool) -> Batch:
    """Images of noise whose captions name a thing."""
    captions = [f"a red wall number {number}" for number in range(PAIRS)]
    randoms = [random.Random(place) for place in range(PAIRS)]
    texts = method.prepare(captions, [["wall"]] * PAIRS, ["wall"] * PAIRS, randoms) if method.prepare else {}
    image = torch.randn(PAIRS, 3, 32, 32)
    views = {}
    if config.name == "vilseg":
        views = {"global": torch.randn(PAIRS, 1, 3, 32, 32), "local": torch.randn(PAIRS, 2, 3, 16, 16)}
    return Batch(image, method.tokenize(captions), captions, [], texts, image.flip(0) if partners else None, views)


@pytest.mark.parametrize(("ranks", "bf16"), [(2, False), (8, True)])
@pytest.mark.parametrize(("name", "phase"), [("tcl", 1), ("tcl", 2), ("ovsegmentor", 1), ("ovsegmentor", 2), ("vilseg", 1)])
def test_predicted_bytes_are_those_exchanged(name: str, phase: int, ranks: int, bf16: bool, tmp_path: Path) -> None:
    config = MODELS[name]()
    method = config.build(tiny.encoder(tmp_path) if config.uses_clip else None).train()
    groups = phase_groups(method, config.phases, config.optim)[phase - 1]
    method.requires_grad_(False)
    trained = [parameter.requires_grad_() for group in groups for parameter in group.parameters.values()]
    batch = batch_for(method, config, partners=config.phases[phase - 1].partners)
    with pretended_ranks(ranks), scaling.counted_traffic() as traffic:
        TorchEngine(method, groups, config.optim, bf16=bf16).step(batch, 1e-3)
    joint = tiny.MODEL["embed_dim"]
    assert traffic.gathered == scaling.gathered_bytes(
        scaling.gathers(config, phase, PAIRS, ranks, joint=joint, bf16=bf16), ranks
    )
    assert traffic.reduced == 4 * sum(parameter.numel() for parameter in trained)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_zero_exchanges_what_the_model_says(stage: int, tmp_path: Path) -> None:
    """Gradients are reduced to all ranks, which takes two rounds, and weights collected, which takes one."""
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    result = subprocess.run(
        [sys.executable, "-m", "helpers.zero_traffic", str(stage), str(tmp_path)],
        env={**os.environ, **alone, "DS_ACCELERATOR": "cpu", "PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    config = tiny.tcl_config()
    predicted = scaling.gathers(config, 1, PAIRS, 2, joint=tiny.MODEL["embed_dim"], bf16=False)
    assert found["gathered"] == scaling.gathered_bytes(predicted, 2)
    assert found["collected"] == 4 * found["trained"]
    assert found["reduced"] == 4 * found["trained"] + 8, "gradients, and two numbers about their norm"
    rounds = 2 * 4 * found["trained"] + found["collected"]
    assert 4 * scaling.exchanged_numbers(found["trained"], 0, stage) == rounds
