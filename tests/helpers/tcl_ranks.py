"""What a rank does with a tiny TCL in its second phase: losses, steps and trainings on its rows of a joined batch."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from helpers import tiny
from helpers.ranks import save_into
from owseg.data import Batch
from owseg.engine import TorchEngine
from owseg.entity_labels import padded
from owseg.fit import fit, phase_groups
from owseg.methods.tcl import Tcl, TclConfig

RANKS, PER_RANK = 2, 4


ENTITIES = (("red", "wall"), ("blue", "wall"), ("red",), ("blue", "sky"), (), ("sea", "sky"), ("wall",), ("red", "sea"))
"""Of the joined batch's captions, where texts are entities; captions stand in for what lacks."""


def build(folder: Path, fidelity: str, **settings: Any) -> Tcl:
    """A tiny TCL in its second phase, gates open so that every parameter has a gradient."""
    folder.mkdir(exist_ok=True)
    config: TclConfig = replace(tiny.tcl_config(), fidelity=fidelity, **settings)
    torch.manual_seed(0)
    method = config.build(tiny.encoder(folder))
    return tiny.open_gates(method)


def joined_batch(folder: Path) -> tuple[Batch, Tensor]:
    """Eight images and captions, and the uniform noise of their own masks."""
    generator = torch.Generator().manual_seed(1)
    tokens = tiny.encoder(folder).tokenize([f"a {name} wall number {i}" for i, name in enumerate(["red", "blue"] * 4)])
    images = torch.randn(8, 3, 32, 32, generator=generator)
    return Batch(images, tokens, [], []), torch.rand(8, 16, 16, generator=generator).clamp(1e-6, 1 - 1e-6)


def entity_texts(folder: Path) -> tuple[Batch, Tensor]:
    """The joined batch with the texts of `ENTITIES`, and the uniform noise of both masks of each image."""
    batch, _ = joined_batch(folder)
    tokenize = tiny.encoder(folder).tokenize
    whole = [f"caption {i}" for i in range(len(ENTITIES))]
    named = [[*some, *[caption] * (2 - len(some))] for some, caption in zip(ENTITIES, whole, strict=True)]
    names = {name: number for number, name in enumerate([*whole, "red", "blue", "wall", "sky", "sea"])}
    texts = {
        "text": tokenize([text for some in named for text in some]).view(8, 2, -1),
        "label": torch.tensor([[names[name] for name in some] for some in named]),
        "labels": torch.tensor(
            [
                padded([names[caption], *(names[name] for name in some)], 3)
                for some, caption in zip(ENTITIES, whole, strict=True)
            ]
        ),
    }
    generator = torch.Generator().manual_seed(2)
    return batch._replace(texts=texts), torch.rand(8, 2, 16, 16, generator=generator).clamp(1e-6, 1 - 1e-6)


def share(batch: Batch, rank: int) -> Batch:
    mine = slice(rank * PER_RANK, (rank + 1) * PER_RANK)
    return batch.part(mine.start, mine.stop)


def losses_and_gradients(method: Tcl, batch: Batch, uniform: Tensor) -> dict[str, Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand_like", lambda _: uniform.clone())
        losses = method.losses(batch)
    torch.stack(list(losses.values())).sum().backward()
    return {name: loss.detach() for name, loss in losses.items()} | gradients(method)


def gradients(method: Tcl) -> dict[str, Tensor]:
    return {f"grad/{name}": p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}


def engine_step(method: Tcl, batch: Batch, uniform: Tensor, clip_norm: float) -> dict[str, Any]:
    """What one step of the second phase leaves on a rank: clipped gradients and weights."""
    optim = replace(tiny.OPTIM, clip_norm=clip_norm)
    engine = TorchEngine(method, phase_groups(method, method.config.phases, optim)[1], optim)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand_like", lambda _: uniform.clone())
        engine.step(batch, 1e-3)
    return {"gradients": gradients(method), "stepped": method.state_dict()}


def train_official(home: Path, rank: int, out: Path, resume: Path | None = None) -> dict[str, Tensor]:
    """Two steps in each phase with a checkpoint after the third; the weights that a rank ends with."""
    method, config, mine = build(home, "official"), tiny.tcl_config(2, 2), share(joined_batch(home)[0], rank)

    fit(
        method,
        config.phases,
        config.optim,
        lambda groups, optim: TorchEngine(method, groups, optim),
        lambda span, step: (mine for _ in range(step, span.stop)),
        seed=0,
        resume=resume,
        checkpoint_every=3,
        on_checkpoint=save_into(out),
    )
    return {name: tensor.clone() for name, tensor in method.state_dict().items()}


def compare_on_a_rank(folder: Path) -> None:
    """All that the tests compare of one rank, into a file of the folder."""
    rank = dist.get_rank()
    home = folder / f"home{rank}"
    methods = {fidelity: build(home, fidelity) for fidelity in ("exact", "official")}
    batch, uniform = joined_batch(home)
    rows = slice(rank * PER_RANK, (rank + 1) * PER_RANK)
    mine, noise = share(batch, rank), uniform[rows]
    result: dict[str, Any] = {name: losses_and_gradients(deepcopy(method), mine, noise) for name, method in methods.items()}
    batch, uniform = entity_texts(home)
    result["entities"] = losses_and_gradients(build(home, "exact", texts="entities"), share(batch, rank), uniform[rows])
    for clip_norm in (1e9, 0.1):
        result[f"step {clip_norm}"] = engine_step(deepcopy(methods["official"]), mine, noise, clip_norm)
    result["whole"] = train_official(home, rank, folder / "whole")
    result["resumed"] = train_official(home, rank, folder / "rest", resume=folder / "whole" / "3")
    torch.save(result, folder / f"rank{rank}.pt")
