"""benchmarks/parity.py: TCL against recorded numbers, the official code's where they lie beside the repository."""

from pathlib import Path

import numpy as np
import open_clip
import parity_tcl
import pytest
import torch
import torch.nn.functional as F

from helpers import tiny
from helpers.golden import run_parity, the_failed_quantity
from helpers.paths import GOLDEN, needs
from owseg.encoders import Encoder
from owseg.methods.tcl import Tcl, TclConfig
from owseg.published import official_names
from references import tcl_inference as inference
from references import tcl_training as reference

IMAGES, CONTEXT, VOCABULARY = 4, 12, 300


def small_tcl() -> Tcl:
    """Another architecture than the golden files': patch 8, three blocks, one head, twice the MLP; gates open."""
    torch.manual_seed(0)
    tower = {"width": 64, "layers": 3, "mlp_ratio": 2.0}
    clip = open_clip.CLIP(
        embed_dim=32,
        vision_cfg={**tower, "image_size": 48, "patch_size": 8, "head_width": 64},
        text_cfg={**tower, "layers": 1, "heads": 1, "context_length": CONTEXT, "vocab_size": VOCABULARY},
        quick_gelu=True,
    )
    method = TclConfig().build(Encoder(clip, open_clip.tokenize)).eval()
    return tiny.open_gates(method)


def record(method: Tcl) -> dict[str, np.ndarray]:
    """A case in the golden files' format, from the straightforward references; its noise lies as its shape says."""
    generator = torch.Generator().manual_seed(2)
    image = torch.randn(IMAGES, 3, 48, 48, generator=generator)
    tokens = torch.randint(1, VOCABULARY - 1, (IMAGES, CONTEXT), generator=generator)
    tokens[:, 5] = VOCABULARY - 1
    uniform = torch.rand(IMAGES, IMAGES, 24, 24, generator=generator)
    own = torch.arange(IMAGES)
    losses = reference.losses(method, image, tokens, torch.empty(0, 32), uniform[own, own])
    names = {name: official for name, official in official_names(method).items() if not name.startswith("clip.")}
    parameters = dict(method.named_parameters())
    gradients = torch.autograd.grad(torch.stack(list(losses.values())).sum(), [parameters[name] for name in names])
    photo, classes = torch.randn(1, 3, 61, 83, generator=generator), torch.randn(7, 32, generator=generator)
    with torch.no_grad():
        masks = {
            "infer/mask_plain": inference.segment(method, photo, classes, refine=False, kp=0.0),
            "infer/mask_kp": inference.segment(method, photo, classes, refine=False),
            "infer/mask_pamr_kp": inference.segment(method, photo, classes, refine=True),
        }
        embeddings = method.clip.encode_text(tokens)
    tensors = {
        "image": image,
        "text_tokens": tokens,
        "text_embeddings": embeddings,
        "gumbel_uniform": uniform,
        **{parity_tcl.TCL_LOSSES[name]: loss.detach() for name, loss in losses.items()},
        **{f"grad/{official}": gradient for official, gradient in zip(names.values(), gradients, strict=True)},
        "infer/image": photo,
        "infer/text_embeddings": F.normalize(classes, dim=-1),
    }
    arrays = {key: value.numpy() for key, value in tensors.items()}
    return arrays | {key: (value * 65535).round().numpy().astype(np.uint16) for key, value in masks.items()}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Weights and a case."""
    folder, method = tmp_path_factory.mktemp("case"), small_tcl()
    state = method.state_dict()
    np.savez(folder / "weights.npz", **{official: state[name].numpy() for name, official in official_names(method).items()})
    np.savez(folder / "case.npz", **record(method))
    return folder / "weights.npz", folder / "case.npz"


@needs(GOLDEN)
@pytest.mark.parametrize("case", ["tcl_case1.npz", "tcl_case2.npz"])
def test_ours_is_the_official_tcl(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Text tower, all losses and gradients, masks with and without PAMR."""
    code = run_parity("tcl", GOLDEN / "tcl_weights.npz", GOLDEN / case)
    told = capsys.readouterr().out
    assert code == 0, told
    assert "23 of 23 quantities agree" in told
    assert "memory [B, h, w, B]" in told
    assert "absent" not in told


def test_another_architecture_agrees_with_the_references(
    recorded: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    code = run_parity("tcl", *recorded)
    told = capsys.readouterr().out
    assert code == 0, told
    assert "its shape [B, B, h, w]" in told
    assert told.count("grad/masker.image_encoder.backbone.transformer.resblocks.2.") == 12


@pytest.mark.parametrize(
    "key",
    ["text_embeddings", "loss/area_loss", "loss/tclf_loss", "grad/masker.sim2mask.w", "infer/mask_kp", "infer/mask_pamr_kp"],
)
def test_a_difference_is_found_and_named(
    recorded: tuple[Path, Path], tmp_path: Path, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A number off by little more than the tolerance fails that quantity, and no other."""
    weights, case = recorded
    arrays = dict(np.load(case))
    if arrays[key].dtype == np.uint16:
        arrays[key][0, 3, 30, 40] += 10
    else:
        arrays[key] = arrays[key] * (1 + 3e-4)
    np.savez(tmp_path / "off.npz", **arrays)

    assert run_parity("tcl", weights, tmp_path / "off.npz") == 1
    assert the_failed_quantity(capsys.readouterr().out).startswith(key)


def test_absent_and_unknown_quantities_are_told(
    recorded: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, case = recorded
    arrays = {key: value for key, value in np.load(case).items() if not key.startswith(("infer/", "grad/"))}
    np.savez(tmp_path / "part.npz", **arrays, surprise=np.zeros(3))

    assert run_parity("tcl", weights, tmp_path / "part.npz") == 0
    told = capsys.readouterr().out
    assert "absent: infer/mask_plain" in told
    assert "not known, not compared: surprise" in told
    assert "7 of 7 quantities agree" in told
    assert "inputs are absent" not in told

    del arrays["gumbel_uniform"]
    np.savez(tmp_path / "less.npz", **arrays)
    assert run_parity("tcl", weights, tmp_path / "less.npz") == 0
    told = capsys.readouterr().out
    assert "not compared, for its inputs are absent: loss/tcli_loss" in told
    assert "1 of 1 quantities agree" in told


def damaged(folder: Path, recorded: tuple[Path, Path], what: str) -> tuple[Path, Path]:
    weights, case = recorded
    broken = folder / "broken.npz"
    arrays = dict(np.load(case))
    if what == "missing":
        return weights, folder / "none.npz"
    if what == "no npz":
        broken.write_text("not an archive")
    elif what == "truncated":
        broken.write_bytes(case.read_bytes()[:5000])
    elif what == "weights of something else":
        return case, case
    elif what == "case without inputs":
        return weights, weights
    elif what == "weights of other shapes":
        state = dict(np.load(weights))
        state["masker.image_encoder.decoder.image_proj.proj"] = np.zeros((64, 16), np.float32)
        np.savez(broken, **state)
        return broken, case
    elif what == "another image size":
        np.savez(broken, **arrays | {"infer/image": np.zeros((1, 3, 40, 40), np.float32)})
    elif what == "another noise":
        np.savez(broken, **arrays | {"gumbel_uniform": np.full((4, 4, 20, 20), 0.5, np.float32)})
    elif what == "unknown words":
        np.savez(broken, **arrays | {"text_tokens": arrays["text_tokens"] + 1000})
    elif what == "text":
        np.savez(broken, **arrays | {"image": np.array(["a", "b"])})
    elif what == "gradient of something else":
        np.savez(broken, **arrays, **{"grad/img_encoder.weight": np.zeros(3)})
    return weights, broken


@pytest.mark.parametrize(
    "what",
    [
        "missing",
        "no npz",
        "truncated",
        "weights of something else",
        "case without inputs",
        "weights of other shapes",
        "another image size",
        "another noise",
        "unknown words",
        "text",
        "gradient of something else",
    ],
)
def test_bad_input_is_told_in_one_line(
    recorded: tuple[Path, Path], tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = damaged(tmp_path, recorded, what)
    assert run_parity("tcl", *files) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert any(file.name in line for file in files)
