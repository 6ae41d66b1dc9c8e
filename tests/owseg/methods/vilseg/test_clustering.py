"""ViL-Seg's clustering loss against a direct definition, at its known values, and its gradient by finite differences."""

import itertools
import math
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.golden import run_parity
from helpers.paths import DATA, GOLDEN
from owseg.methods.vilseg.clustering import (
    agreement,
    clusters_per_image,
    inverse,
    joint_counts,
    perplexity,
    random_affine,
    warp,
)

RECORDED = DATA / "golden"
C = 6


def assignments(seed: int, batch: int = 3, clusters: int = C, side: tuple[int, int] = (4, 5)) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, clusters, *side, generator=generator, dtype=torch.float64).mul(2).softmax(dim=1)


def direct(p: Tensor, q: Tensor, mask: Tensor, weight: float, shifts: int, form: str) -> float:
    """The definition, pixel by pixel."""
    p, q = p * mask[:, None], q * mask[:, None]
    batch, clusters, height, width = p.shape
    joints = []
    for dy, dx in itertools.product(range(-shifts, shifts + 1), repeat=2):
        joint = torch.zeros(clusters, clusters, dtype=p.dtype)
        for b, y, x in itertools.product(range(batch), range(height), range(width)):
            if 0 <= y + dy < height and 0 <= x + dx < width:
                joint += torch.outer(p[b, :, y + dy, x + dx], q[b, :, y, x])
        joints.append(joint)
    if form == "collapsed":
        joints = [sum(joints, torch.zeros_like(joints[0]))]
    losses = []
    for joint in joints:
        joint = joint / joint.sum()
        joint = (joint + joint.T) / 2
        a, b = joint.sum(dim=1), joint.sum(dim=0)
        terms = [
            joint[i, j] * (math.log(joint[i, j]) - weight * math.log(a[i]) - weight * math.log(b[j]))
            for i, j in itertools.product(range(clusters), repeat=2)
            if joint[i, j] > 0
        ]
        losses.append(-sum(float(term) for term in terms))
    return sum(losses) / len(losses)


@pytest.mark.parametrize(("shifts", "form"), [(0, "collapsed"), (1, "collapsed"), (0, "uncollapsed"), (2, "uncollapsed")])
@pytest.mark.parametrize("weight", [1.0, 1.5])
def test_the_loss_is_its_definition(shifts: int, form: str, weight: float) -> None:
    p, q = assignments(0), assignments(1)
    mask = (torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(2)) > 0.3).double()
    found = agreement(p, q, mask, weight=weight, shifts=shifts, form=form)  # type: ignore[arg-type]
    assert found.loss.item() == pytest.approx(direct(p, q, mask, weight, shifts, form), rel=1e-12)
    assert found.loss_unweighted.item() == pytest.approx(direct(p, q, mask, 1.0, shifts, form), rel=1e-12)


def test_known_values() -> None:
    everything = torch.ones(64, 14, 14)
    same = F.one_hot(torch.randint(0, 25, (64, 14, 14), generator=torch.Generator().manual_seed(0)), 25)
    perfect = same.permute(0, 3, 1, 2).double()
    collapsed = torch.zeros_like(perfect)
    collapsed[:, 3] = 1
    uniform = torch.full_like(perfect, 1 / 25)
    other = perfect[torch.randperm(64, generator=torch.Generator().manual_seed(1))]
    assert agreement(perfect, perfect, everything).loss.item() == pytest.approx(-math.log(25), abs=0.005)
    assert agreement(collapsed, collapsed, everything).loss.item() == pytest.approx(0, abs=1e-9)
    assert agreement(uniform, uniform, everything).loss.item() == pytest.approx(0, abs=1e-9)
    assert -0.06 < agreement(perfect, other, everything).loss.item() < 0, "independent views tell next to nothing"


def test_pooling_over_the_batch_lets_an_image_use_few_clusters() -> None:
    """Three clusters an image, twenty-five in all: near -ln 25 over the batch, no better than -ln 3 image by image."""
    generator = torch.Generator().manual_seed(0)
    own = torch.stack([torch.randperm(25, generator=generator)[:3] for _ in range(64)])
    labels = own.gather(1, torch.randint(0, 3, (64, 196), generator=generator)).reshape(64, 14, 14)
    p = F.one_hot(labels, 25).permute(0, 3, 1, 2).double()
    everything = torch.ones(64, 14, 14)
    assert agreement(p, p, everything, pool="batch").loss.item() < -3.1
    assert agreement(p, p, everything, pool="image").loss.item() == pytest.approx(-math.log(3), abs=0.02)


@pytest.mark.parametrize(("shifts", "form"), [(0, "uncollapsed"), (1, "uncollapsed"), (1, "collapsed")])
def test_gradient_by_finite_differences(shifts: int, form: str) -> None:
    p, q = assignments(3, batch=2, side=(3, 3)), assignments(4, batch=2, side=(3, 3))
    mask = torch.ones(2, 3, 3).double()
    counts = joint_counts(p, q, mask, shifts).sum(dim=0)
    total = counts.sum().item()

    def loss(logits: Tensor) -> Tensor:
        if form == "uncollapsed":
            return agreement(logits, q, mask, shifts=shifts, form="uncollapsed").loss
        # Collapsed: the normaliser is a constant, so the function that has this gradient divides by a number.
        joint = joint_counts(logits, q, mask, shifts).sum(dim=(0, 1)) / total
        joint = (joint + joint.T) / 2
        return -(joint * (joint.log() - joint.sum(1, keepdim=True).log() - joint.sum(0, keepdim=True).log())).sum()

    leaf = p.clone().requires_grad_()
    agreement(leaf, q, mask, shifts=shifts, form=form).loss.backward()  # type: ignore[arg-type,no-untyped-call]
    assert leaf.grad is not None
    for index in [(0, 0, 0, 0), (1, 2, 1, 1), (0, 5, 2, 0), (1, 4, 2, 2)]:
        step = torch.zeros_like(p)
        step[index] = 1e-6
        difference = (loss(p + step) - loss(p - step)).item() / 2e-6
        assert leaf.grad[index].item() == pytest.approx(difference, rel=1e-5, abs=1e-9)


def test_half_precision_is_computed_in_float32() -> None:
    p, q = assignments(0), assignments(1)
    mask = torch.ones(3, 4, 5)
    exact = agreement(p, q, mask).loss
    found = agreement(p.bfloat16(), q.bfloat16(), mask.bfloat16()).loss
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=0.02)


def test_a_mask_of_nothing_is_no_nan() -> None:
    found = agreement(assignments(0), assignments(1), torch.zeros(3, 4, 5))
    assert found.loss.item() == pytest.approx(0, abs=1e-9)


def test_what_a_twin_says_comes_back_to_its_place() -> None:
    """Warped there and back, a smooth map is itself again wherever the twin saw it."""
    theta = random_affine(8, degrees=20, scale=0.25, flip=0.5, device=torch.device("cpu"), dtype=torch.float64)
    assert (torch.linalg.det(theta[:, :, :2]) < 0).any(), "some are mirrored"
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 64), indexing="ij")
    maps = torch.stack([rows + 2 * columns, rows * columns]).double().expand(8, -1, -1, -1)
    back = warp(warp(maps, theta), inverse(theta))
    inside = warp(warp(torch.ones_like(maps[:, :1]), theta), inverse(theta)) > 0.999
    assert inside.double().mean() > 0.5
    assert torch.where(inside, back - maps, 0).abs().max() < 0.03


def test_alarms() -> None:
    assert perplexity(torch.full((25,), 1 / 25)).item() == pytest.approx(25)
    assert perplexity(torch.tensor([1.0, 0, 0, 0])).item() == pytest.approx(1)
    one = torch.zeros(2, 4, 3, 3)
    one[0, 1] = one[1, 2, 0] = one[1, 3, 1:] = 1
    assert clusters_per_image(one).mean().item() == pytest.approx(1.5)


def test_the_marginal_counts_what_the_mask_leaves() -> None:
    p = torch.zeros(1, 3, 2, 2)
    p[0, 0, 0], p[0, 1, 1] = 1, 1
    mask = torch.tensor([[[1.0, 1.0], [1.0, 0.0]]])
    marginal = agreement(p, p, mask).marginal
    assert marginal.tolist() == pytest.approx([2 / 3, 1 / 3, 0])


# ------------------------------------------------------------------------------------------------------- recorded numbers


CASES = [(kind, path) for kind in ("iic", "dino") for path in sorted({*RECORDED.glob(f"{kind}_*"), *GOLDEN.glob(f"{kind}_*")})]


@pytest.mark.parametrize(("kind", "case"), CASES, ids=lambda value: value.stem if isinstance(value, Path) else value)
def test_official_numbers(capsys: pytest.CaptureFixture[str], kind: str, case: Path) -> None:
    assert run_parity(kind, case) == 0
    told = capsys.readouterr().out
    with np.load(case) as arrays:
        results = [key for key in arrays.files if key.split("/")[-1].startswith(("loss", "grad", "center_after", "output"))]
        results = [key for key in results if "/weight/" not in key]
    assert results
    assert all(f"\n{key} " in told for key in results), "every recorded result is compared"


@pytest.mark.parametrize(("kind", "key"), [("iic", "ac1/uncollapsed/T1/grad_q_raw"), ("dino", "center_after")])
def test_a_wrong_number_is_seen(capsys: pytest.CaptureFixture[str], tmp_path: Path, kind: str, key: str) -> None:
    source = RECORDED / f"{kind}_case2.npz"
    with np.load(source) as arrays:
        case = dict(arrays)
    case[key] = case[key] * 1.01
    np.savez(tmp_path / "case.npz", **case)
    assert run_parity(kind, tmp_path / "case.npz") == 1
    assert "FAIL" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "changes", "told"),
    [
        ("dino", {"student": None}, "not a DINO case (student is missing)"),
        ("dino", {"teacher": None}, "not a DINO case (teacher is missing)"),
        ("dino", {"head/x": None}, "not a DINO case (head/x is missing)"),
        ("dino", {"epoch": np.array(-1)}, "epoch -1 of"),
        ("dino", {"nepochs": np.array(1e8)}, "of 100000000 is none"),
        ("iic", {"half_T_sides": np.array([100])}, "half_T_sides: 100 is no shift of maps of"),
        ("iic", {"half_T_sides": np.array([np.inf])}, "not an IIC case (cannot convert float infinity"),
    ],
)
def test_a_case_that_cannot_be_compared_is_told(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    kind: str,
    changes: dict[str, np.ndarray | None],
    told: str,
) -> None:
    with np.load(RECORDED / f"{kind}_case2.npz") as arrays:
        case = {key: value for key, value in {**arrays, **changes}.items() if value is not None}
    np.savez(tmp_path / "case.npz", **case)
    assert run_parity(kind, tmp_path / "case.npz") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_what_is_not_known_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with np.load(RECORDED / "dino_case2.npz") as arrays:
        np.savez(tmp_path / "case.npz", **{**arrays, "head/grad/nosuch": np.zeros(1)})
    assert run_parity("dino", tmp_path / "case.npz") == 0
    assert "not known, not compared: head/grad/nosuch" in capsys.readouterr().out


def test_a_member_that_is_no_array_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with ZipFile(tmp_path / "case.npz", "w") as file:
        file.writestr("p.npy", "plain text")
    assert run_parity("iic", tmp_path / "case.npz") == 2
    assert "cannot be read as .npz (p is no array)" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["iic", "dino"])
def test_other_files_are_told_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path, kind: str) -> None:
    np.savez(tmp_path / "case.npz", p=np.zeros((1, 2, 3, 3)), student=np.zeros((3, 4)), teacher=np.zeros((2, 4)))
    assert run_parity(kind, tmp_path / "case.npz") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"error: {tmp_path / 'case.npz'}: not ")
