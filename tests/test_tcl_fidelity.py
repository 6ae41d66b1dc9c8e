"""TCL over ranks, in real processes: `exact` equals one process on the joined batch, `official` has the official quirks."""

import os
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from owseg.data import Batch
from owseg.engine import TorchEngine
from owseg.fit import fit, phase_groups
from owseg.methods.tcl import Tcl, TclConfig

RANKS, PER_RANK = 2, 4
SCALARS = ("mask_scale", "mask_shift", "tcl_v_scale", "tcl_f_scale")
SCRIPT = """
import sys
from pathlib import Path
import torch, torch.distributed as dist
folder = Path(sys.argv[1])
sys.path.insert(0, sys.argv[2])
import test_tcl_fidelity as fidelity
dist.init_process_group("gloo")
torch.set_num_threads(1)
rank = dist.get_rank()
torch.save(fidelity.on_a_rank(folder, rank), folder / f"rank{rank}.pt")
dist.destroy_process_group()
"""


def build(folder: Path, fidelity: str) -> Tcl:
    """A tiny TCL in its second phase, gates open so that every parameter has a gradient."""
    folder.mkdir(exist_ok=True)
    config: TclConfig = replace(tiny.tcl_config(), fidelity=fidelity)
    torch.manual_seed(0)
    method = config.build(tiny.encoder(folder))
    for name, parameter in method.named_parameters():
        if name.endswith("gate"):
            parameter.data.fill_(0.3)
    method.block.requires_grad_()
    return method


def joined_batch(folder: Path) -> tuple[Batch, Tensor]:
    """Eight images and captions, and the uniform noise of their own masks."""
    generator = torch.Generator().manual_seed(1)
    tokens = tiny.encoder(folder).tokenize([f"a {name} wall number {i}" for i, name in enumerate(["red", "blue"] * 4)])
    images = torch.randn(8, 3, 32, 32, generator=generator)
    return Batch(images, tokens, [], []), torch.rand(8, 16, 16, generator=generator).clamp(1e-6, 1 - 1e-6)


def share(batch: Batch, rank: int) -> Batch:
    mine = slice(rank * PER_RANK, (rank + 1) * PER_RANK)
    return Batch(batch.image[mine], batch.tokens[mine], [], [])


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

    def checkpoint(step: int, save: Callable[[Path], None]) -> None:
        (out / str(step)).mkdir(parents=True, exist_ok=True)
        save(out / str(step))
        dist.barrier()

    fit(
        method,
        config.phases,
        config.optim,
        lambda groups, optim: TorchEngine(method, groups, optim),
        lambda span, step: (mine for _ in range(step, span.stop)),
        seed=0,
        resume=resume,
        checkpoint_every=3,
        on_checkpoint=checkpoint,
    )
    return {name: tensor.clone() for name, tensor in method.state_dict().items()}


def on_a_rank(folder: Path, rank: int) -> dict[str, Any]:
    """All that the tests compare of one rank."""
    home = folder / f"home{rank}"
    methods = {fidelity: build(home, fidelity) for fidelity in ("exact", "official")}
    batch, uniform = joined_batch(home)
    mine, noise = share(batch, rank), uniform[rank * PER_RANK : (rank + 1) * PER_RANK]
    result: dict[str, Any] = {name: losses_and_gradients(deepcopy(method), mine, noise) for name, method in methods.items()}
    for clip_norm in (1e9, 0.1):
        result[f"step {clip_norm}"] = engine_step(deepcopy(methods["official"]), mine, noise, clip_norm)
    result["whole"] = train_official(home, rank, folder / "whole")
    result["resumed"] = train_official(home, rank, folder / "rest", resume=folder / "whole" / "3")
    return result


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]) -> list[dict[str, Any]]:
    folder, port = tmp_path_factory.mktemp("ranks"), free_port()
    here = str(Path(__file__).parent)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(folder), here],
            env={
                **os.environ,
                "RANK": str(rank),
                "WORLD_SIZE": str(RANKS),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
            },
        )
        for rank in range(RANKS)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0] * RANKS
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(RANKS)]


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=2e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def mean(results: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([result[name] for result in results]).mean(dim=0) for name in results[0]}


def official_ranks(folder: Path) -> list[dict[str, Tensor]]:
    """Losses and unreduced gradients of each rank, from the fact sheet's words alone, in one process.

    Each rank has a copy of the model; gathered tensors carry gradient back to the rank that they came from, so a rank's
    gradient is that of the sum of all ranks' losses with respect to its copy.
    """
    (batch, uniform), method = joined_batch(folder), build(folder, "official")
    copies = [deepcopy(method) for _ in range(RANKS)]
    with torch.no_grad():
        texts = F.normalize(method.clip.encode_text(batch.tokens), dim=1)
    features, masks, pooled, images = [], [], [], []
    for rank, copy in enumerate(copies):
        image = share(batch, rank).image
        dense = copy.features(image)
        similarity = torch.einsum("behw,ne->bnhw", F.normalize(dense, dim=1), texts)
        logits = copy.mask_scale * similarity + copy.mask_shift
        mask = torch.sigmoid(logits)
        weights = mask / (mask.sum(dim=(2, 3), keepdim=True) + 1e-6)
        own = logits[range(PER_RANK), range(rank * PER_RANK, (rank + 1) * PER_RANK)]
        noise = torch.logit(uniform[rank * PER_RANK : (rank + 1) * PER_RANK])
        soft = torch.sigmoid(own + noise)
        hard = (soft > 0.5).float() + soft - soft.detach()
        shown = image * F.interpolate(hard[:, None], scale_factor=2, mode="nearest")
        features.append(dense)
        masks.append(mask)
        pooled.append(torch.einsum("behw,bnhw->bne", dense, weights))
        images.append(F.normalize(copy.clip.encode_image(shown), dim=1))
    results = []
    for rank, copy in enumerate(copies):
        mine = range(rank * PER_RANK, (rank + 1) * PER_RANK)
        labels = torch.tensor(list(mine))
        scale_f, scale_v = copy.tcl_f_scale.exp(), copy.tcl_v_scale.exp()
        rows = torch.stack([torch.stack([torch.cosine_similarity(p, t, dim=0) for p, t in zip(image, texts, strict=True)])
                            for image in pooled[rank]])  # fmt: skip
        # The columns that this rank took from each rank r are those of r's texts; it scores them with its own texts.
        columns = torch.stack([
            torch.stack([torch.cosine_similarity(pooled[r][i, r * PER_RANK + j], texts[mine[j]], dim=0)
                         for r in range(RANKS) for i in range(PER_RANK)])
            for j in range(PER_RANK)
        ])  # fmt: skip
        matched = torch.zeros(PER_RANK, RANKS * PER_RANK, dtype=torch.bool)
        matched[range(PER_RANK), mine] = True
        vision = images[rank] @ texts.T, texts[labels] @ torch.cat(images).T
        results.append(
            {
                "tcl_v": 0.05 * sum(F.cross_entropy(scale_v * logits, labels) for logits in vision),
                "tcl_f": 0.05 * sum(F.cross_entropy(scale_f * logits, labels) for logits in (rows, columns)),
                "area": 0.4 * (masks[rank][matched].mean() - 0.4).abs(),
                "area_negative": 0.4 * masks[rank][~matched].mean().abs(),
                "tv_features": features[rank].diff(dim=3).abs().mean() + features[rank].diff(dim=2).abs().mean(),
                "tv_masks": masks[rank].diff(dim=3).abs().mean() + masks[rank].diff(dim=2).abs().mean(),
            }
        )
    torch.stack([loss for losses in results for loss in losses.values()]).sum().backward()
    return [
        {name: loss.detach() for name, loss in losses.items()} | gradients(copy)
        for losses, copy in zip(results, copies, strict=True)
    ]


def test_exact_on_two_ranks_equals_one_process_on_the_joined_batch(ranks: list[dict[str, Any]], tmp_path: Path) -> None:
    """All six losses and the gradients of their sum, averaged over ranks."""
    one = losses_and_gradients(build(tmp_path, "exact"), *joined_batch(tmp_path))
    assert sum(name.startswith("grad/") for name in one) > 20
    assert_close(mean([rank["exact"] for rank in ranks]), one)


def test_official_on_two_ranks_is_what_the_official_code_computes(ranks: list[dict[str, Any]], tmp_path: Path) -> None:
    for found, expected in zip(ranks, official_ranks(tmp_path), strict=True):
        assert_close(found["official"], expected)


def test_the_modes_differ_over_ranks(ranks: list[dict[str, Any]]) -> None:
    """Wrong negatives change TCL_f, and area means are each rank's own; the rest is the same."""
    for rank in ranks:
        same = {
            name for name in rank["exact"] if not name.startswith("grad/") and rank["exact"][name] == rank["official"][name]
        }
        assert same == {"tcl_v", "tv_features", "tv_masks"}


def test_the_modes_agree_on_one_rank(tmp_path: Path) -> None:
    batch, uniform = joined_batch(tmp_path)
    exact, official = (losses_and_gradients(build(tmp_path, mode), batch, uniform) for mode in ("exact", "official"))
    for name, expected in exact.items():
        torch.testing.assert_close(official[name], expected, rtol=1e-5, atol=1e-7)


def test_the_unfrozen_blocks_gradients_are_averaged_though_the_official_code_leaves_them_on_their_rank(
    ranks: list[dict[str, Any]],
) -> None:
    """A named difference (docs/fidelity.md): ranks stay one, where the official ones drift apart in the block."""
    local = [rank["official"] for rank in ranks]
    averaged = {name: gradient for name, gradient in mean(local).items() if "/" in name}
    official = [
        {name: gradient[name] if name.startswith("grad/block.") else value for name, value in averaged.items()}
        for gradient in local
    ]
    differing = {name.split(".")[0] for name in averaged if not torch.equal(official[0][name], official[1][name])}
    assert differing == {"grad/block"}, "the simulation of the official code shows what is not reproduced"
    for clip_norm in (1e9, 0.1):
        norm = torch.stack([value.norm() for value in averaged.values()]).norm()
        factor = min(1.0, clip_norm / norm.item())
        for rank in ranks:
            assert_close(rank[f"step {clip_norm}"]["gradients"], {name: factor * value for name, value in averaged.items()})
        first, second = (rank[f"step {clip_norm}"]["stepped"] for rank in ranks)
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_ranks_resume_exactly(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        for name, tensor in rank["whole"].items():
            assert torch.equal(rank["resumed"][name], tensor), name


@pytest.mark.parametrize("fidelity", ["exact", "official"])
def test_which_tensors_are_decayed(tmp_path: Path, fidelity: str) -> None:
    """Matrices and kernels; never biases and norms; scalars only in the official code."""
    method = build(tmp_path, fidelity)
    names = {parameter: name for name, parameter in method.named_parameters()}
    groups = phase_groups(method, method.config.phases, method.config.optim)[1]
    decay = {names[parameter]: group.weight_decay for group in groups for parameter in group.parameters}
    for name, value in decay.items():
        kernel = name.endswith((".conv.weight", "proj", "proj.weight", "in_proj_weight", "c_fc.weight"))
        scalar = name.endswith("gate") or name in SCALARS
        assert value == (0.05 if kernel or (scalar and fidelity == "official") else 0.0), name
    assert sum(name.endswith("gate") or name in SCALARS for name in decay) == 8
    assert {name for name in decay if name.startswith("block.")} == {
        f"block.{name}" for name, _ in method.block.named_parameters()
    }
