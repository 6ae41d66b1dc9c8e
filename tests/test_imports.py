"""The libraries stay light: importing them brings no infrastructure, and the layers of the house hold."""

import pkgutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import filtering
import miniature
import owseg
from helpers.paths import REPO

INFRASTRUCTURE = ("ray", "mlflow", "deepspeed")


def modules_of(package: str, path: Sequence[str]) -> list[str]:
    return [package, *(module.name for module in pkgutil.walk_packages(path, f"{package}."))]


def brought_along(modules: Sequence[str], unwanted: Sequence[str]) -> list[str]:
    """Which of `unwanted` a fresh process has loaded after importing `modules`."""
    code = (
        "import importlib, sys\n"
        f"for name in {list(modules)!r}: importlib.import_module(name)\n"
        f"print(*[name for name in {list(unwanted)!r} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


@pytest.mark.parametrize(
    ("package", "path", "unwanted"),
    [
        ("filtering", filtering.__path__, INFRASTRUCTURE),
        ("owseg", owseg.__path__, INFRASTRUCTURE),
        ("miniature", miniature.__path__, (*INFRASTRUCTURE, "torch", "pyarrow", "spacy")),
    ],
)
def test_a_library_brings_no_infrastructure(package: str, path: Sequence[str], unwanted: Sequence[str]) -> None:
    assert brought_along(modules_of(package, path), unwanted) == []


def test_the_test_above_can_fail() -> None:
    assert brought_along(["ray"], INFRASTRUCTURE) == ["ray"]


def test_config_sections_are_read_without_ray_or_mlflow() -> None:
    """`--help` and a misspelt key answer without loading what only work needs."""
    light = ["cluster", "cluster.session", "cluster.tracking", "cluster.data", "pipelines.app.stage_marker", "cluster.progress"]
    assert brought_along(light, INFRASTRUCTURE) == []


def test_all_settings_are_read_without_the_libraries_that_only_models_need() -> None:
    heavy = (*INFRASTRUCTURE, "timm", "torchvision", "transformers", "open_clip", "matplotlib")
    assert brought_along(["pipelines.app.settings", "pipelines.app.cli"], heavy) == []


def test_the_layers_of_the_house_hold() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    result = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
