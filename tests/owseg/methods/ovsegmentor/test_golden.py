"""benchmarks/parity.py: OVSegmentor against recorded numbers, the official code's where they lie beside the repository."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.golden import run_parity, the_failed_quantity
from helpers.paths import GOLDEN, needs
from references import ovsegmentor as plain

WIDTH, JOINT, GRID = 32, 12, 6
MODES = {"no_background": None, "background_0.95": 0.95, "background_0.2": 0.2}
Q, MOMENTUM_K = "img_encoder.layers.0.downsample.assign.q_proj", "img_encoder_momentum.layers.0.downsample.assign.k_proj"


def small_weights() -> dict[str, Tensor]:
    """Another architecture than the golden files': a grid of 6 x 6, uneven halves, 5 groups of 20 tokens."""
    torch.manual_seed(0)
    return plain.random_weights(width=WIDTH, depths=(1, 2), tokens=20, groups=5, hidden=48, joint=JOINT, side=GRID)


def record(weights: dict[str, Tensor], images: int = 4, classes: int = 7) -> dict[str, np.ndarray]:
    """A case in the golden files' format, from the plain reference; it holds every gradient, and a photo of odd sides."""
    generator = torch.Generator().manual_seed(2)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    side = GRID * plain.PATCH
    case = {"image": normal(images, 3, side, side), "cross_image": normal(images, 3, side, side)}
    case |= {f"{name}_features": normal(images, 9, WIDTH) for name in ("caption", "question", "answer", "entity")}
    learns = {
        name: "momentum" not in name and "running" not in name for name, value in weights.items() if value.is_floating_point()
    }
    state = {name: value.clone().requires_grad_(learns.get(name, False)) for name, value in weights.items()}
    losses = plain.losses(state, case)
    losses["loss"].backward()
    gradients = {name: value for name, value in state.items() if value.requires_grad}
    case |= {f"loss/{name}": loss.detach() for name, loss in losses.items()}
    case |= {f"grad/{name}": torch.zeros_like(value) if value.grad is None else value.grad for name, value in gradients.items()}
    with torch.no_grad():
        seen = plain.encode(weights, "img_encoder", case["image"])
        case |= {"encoder/group_features": seen["features"], "encoder/soft_assignment": seen["soft"]}
        case |= {"encoder/q": seen["q"][:, None], "encoder/k": seen["k"][:, None]}  # as official modules have them
        photo, texts = normal(1, 3, 85, 150), F.normalize(normal(classes, JOINT), dim=-1)
        case |= {"infer/image": photo, "infer/text_embeddings": texts}
        for mode, threshold in MODES.items():
            best, labels = plain.segment(weights, photo, texts, threshold).max(dim=0)
            case |= {f"infer/argmax_{mode}": labels.to(torch.uint8), f"infer/max_{mode}": best[::8, ::8]}
    return {key: value.numpy() for key, value in case.items()}


def save(folder: Path, weights: dict[str, Tensor], case: dict[str, np.ndarray]) -> tuple[Path, Path]:
    np.savez(folder / "weights.npz", **{name: value.numpy() for name, value in weights.items()})
    np.savez(folder / "case.npz", **case)
    return folder / "weights.npz", folder / "case.npz"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Weights and a case."""
    return save(tmp_path_factory.mktemp("case"), small_weights(), record(small_weights()))


@needs(GOLDEN)
@pytest.mark.parametrize("case", ["ovsegmentor_case1.npz", "ovsegmentor_case2.npz"])
def test_ours_is_the_official_ovsegmentor(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Encoder, all losses and gradients, labels and scores with and without background."""
    code = run_parity("ovsegmentor", GOLDEN / "ovsegmentor_weights.npz", GOLDEN / case)
    told = capsys.readouterr().out
    assert code == 0, told
    assert "24 of 24 quantities agree" in told
    assert "absent" not in told
    assert "not known" not in told


@needs(GOLDEN)
@pytest.mark.parametrize("case", ["ovsegmentor_case1.npz", "ovsegmentor_case2.npz"])
def test_so_is_the_plain_reference(case: str) -> None:
    """What the other cases here are recorded from."""
    weights, given = (
        {key: torch.from_numpy(value.astype(np.float32)) for key, value in np.load(GOLDEN / name).items()}
        for name in ("ovsegmentor_weights.npz", case)
    )
    with torch.no_grad():
        for name, loss in plain.losses(weights, given).items():
            torch.testing.assert_close(loss, given[f"loss/{name}"], rtol=2e-6, atol=0.0)
        for mode, threshold in {"no_background": None, "background_0.95": 0.95, "background_0.35": 0.35}.items():
            best, labels = plain.segment(weights, given["infer/image"], given["infer/text_embeddings"], threshold).max(dim=0)
            assert (labels == given[f"infer/argmax_{mode}"]).float().mean() >= 0.999
            torch.testing.assert_close(best[::8, ::8], given[f"infer/max_{mode}"], rtol=0.0, atol=1e-5)


def test_another_architecture_agrees_with_the_reference(
    recorded: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Every parameter's gradient, those that the loss does not reach included."""
    code = run_parity("ovsegmentor", *recorded)
    told = capsys.readouterr().out
    assert code == 0, told
    assert "grad/img_encoder.patch_embed.proj.weight" in told
    assert "grad/multimodal_groupingblock.blocks.0.assign.proj.bias" in told
    assert "grad/logit_scale_mask" in told
    assert told.count("grad/") == sum(key.startswith("grad/") for key in np.load(recorded[1]))


@pytest.mark.parametrize(("images", "classes"), [(1, 1), (2, 30)])
def test_so_do_one_image_one_class_and_many_classes(
    images: int,
    classes: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = run_parity("ovsegmentor", *save(tmp_path, small_weights(), record(small_weights(), images, classes)))
    assert code == 0, capsys.readouterr().out


@pytest.mark.parametrize("zeroed", [Q, MOMENTUM_K])
def test_where_the_official_loss_is_not_a_number_neither_is_ours(
    zeroed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Constant maps: the official code divides by their range, and its gradients come to nothing, too."""
    weights = small_weights()
    weights[f"{zeroed}.weight"].zero_()
    weights[f"{zeroed}.bias"].zero_()
    case = record(weights)
    assert np.isnan(case["loss/mask"])
    assert np.isnan(case["grad/img_encoder.pos_embed"]).all()
    assert run_parity("ovsegmentor", *save(tmp_path, weights, case)) == 0, capsys.readouterr().out

    case["loss/mask"] = np.float32(0.2)
    assert run_parity("ovsegmentor", *save(tmp_path, weights, case)) == 1


@pytest.mark.parametrize(
    "key",
    [
        *("encoder/q", "encoder/soft_assignment", "loss/matching", "loss/entity", "loss/mask", "grad/img_encoder.pos_embed"),
        *("grad/img_projector.linear_out.weight", "infer/argmax_no_background", "infer/max_background_0.2"),
    ],
)
def test_a_difference_is_found_and_named(
    recorded: tuple[Path, Path], tmp_path: Path, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Numbers off by little more than the tolerance fail that quantity, and no other."""
    weights, case = recorded
    arrays = dict(np.load(case))
    if arrays[key].dtype == np.uint8:
        arrays[key].flat[:20] = 99  # of 85 x 150 pixels
    else:
        arrays[key] = arrays[key] * (1 + 6e-4)
    np.savez(tmp_path / "off.npz", **arrays)

    assert run_parity("ovsegmentor", weights, tmp_path / "off.npz") == 1
    assert the_failed_quantity(capsys.readouterr().out).startswith(key)


def test_first_stage_files_are_compared_as_far_as_they_go(
    recorded: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No momentum encoder, no other image; loss/loss is the sum of two then. What is absent or unknown is told."""
    weights = {name: value for name, value in np.load(recorded[0]).items() if "momentum" not in name}
    arrays = {key: value for key, value in np.load(recorded[1]).items() if not key.startswith(("grad/", "infer/max_"))}
    del arrays["cross_image"], arrays["loss/mask"], arrays["infer/image"]
    arrays["loss/loss"] = arrays["loss/matching"] + arrays["loss/entity"]
    np.savez(tmp_path / "weights.npz", **weights)
    np.savez(tmp_path / "case.npz", **arrays, surprise=np.zeros(3))

    assert run_parity("ovsegmentor", tmp_path / "weights.npz", tmp_path / "case.npz") == 0
    told = capsys.readouterr().out
    assert "7 of 7 quantities agree" in told
    assert "absent: cross_image" in told
    assert "not compared, for its inputs are absent: infer/argmax_no_background" in told
    assert "not known, not compared: surprise" in told


def test_without_the_other_image_the_first_two_losses_are_compared(
    recorded: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the case's sum and gradients hold the third one, they cannot be."""
    arrays = dict(np.load(recorded[1]))
    del arrays["cross_image"]
    np.savez(tmp_path / "case.npz", **arrays)

    assert run_parity("ovsegmentor", recorded[0], tmp_path / "case.npz") == 0
    told = capsys.readouterr().out
    assert "loss/entity   " in told
    for key in ("loss/mask", "loss/loss", "grad/logit_scale"):
        assert f"not compared, for its inputs are absent: {key}" in told


def damaged(folder: Path, recorded: tuple[Path, Path], what: str) -> tuple[Path, Path]:
    weights, case = recorded
    broken = folder / "broken.npz"
    state, arrays = dict(np.load(weights)), dict(np.load(case))
    if what == "weights of something else":
        return case, case
    if what == "case without inputs":
        return weights, weights
    if what == "weights of other shapes":
        np.savez(broken, **state | {"img_projector.linear_out.weight": np.zeros((JOINT, 16, 1), np.float32)})
        return broken, case
    if what == "weights of one axis":
        np.savez(broken, **state | {"text_projector.linear_hidden.0.weight": np.zeros(48, np.float32)})
        return broken, case
    if what == "weights with something missing":
        del state["img_encoder.layers.0.downsample.norm_x.weight"]
        np.savez(broken, **state)
        return broken, case
    changes = {
        "another width of texts": {"question_features": np.zeros((4, 9, 16), np.float32)},
        "a number for texts": {"answer_features": np.float32(1.0)},
        "images and texts of different numbers": {"image": arrays["image"][:2]},
        "text": {"image": np.array(["a", "b"])},
        "another mode": {"infer/argmax_sometimes": arrays["infer/argmax_no_background"]},
        "labels of another size": {"infer/argmax_no_background": np.zeros((4, 4), np.uint8)},
        "gradient of something else": {"grad/masker.sim2mask.w": np.zeros(3)},
    }
    np.savez(broken, **arrays | changes[what])
    return weights, broken


@pytest.mark.parametrize(
    "what",
    [
        "weights of something else",
        "case without inputs",
        "weights of other shapes",
        "weights of one axis",
        "weights with something missing",
        "another width of texts",
        "a number for texts",
        "images and texts of different numbers",
        "text",
        "another mode",
        "labels of another size",
        "gradient of something else",
    ],
)
def test_bad_input_is_told_in_one_line(
    recorded: tuple[Path, Path], tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = damaged(tmp_path, recorded, what)
    assert run_parity("ovsegmentor", *files) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert any(file.name in line for file in files)
