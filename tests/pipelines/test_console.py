"""The command `owseg` and the package as pip installs it: what each extra brings, and what works outside the clone."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from helpers import tiny
from helpers.chain import environment
from helpers.paths import REPO
from pipelines.app.console import MODULES, VERBS, main
from pipelines.app.extras import EXTRAS, missing_extra

PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
NAME = PROJECT["name"]
PACKAGES = ("cluster", "filtering", "miniature", "owseg", "pipelines", "storage")
HEAVY = {"torch", "ray", "deepspeed", "mlflow", "spacy"}


def declared(extra: str) -> list[Requirement]:
    """The requirements of an extra, those of extras that it names among them."""
    found = []
    for requirement in map(Requirement, PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]):
        if requirement.name == NAME:
            found += [inner for name in requirement.extras for inner in declared(name)]
        else:
            found.append(requirement)
    return found


def brought(extra: str) -> set[str]:
    """The distributions that `pip install .[extra]` installs, by what the installed ones require of each other."""
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [*declared(""), *declared(extra)]
    while waiting:
        requirement = waiting.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key not in seen:
            seen.add(key)
            waiting += required_by(requirement)
    return {name for name, _ in seen}


def required_by(requirement: Requirement) -> Iterator[Requirement]:
    try:
        lines = requires(requirement.name) or []
    except PackageNotFoundError:  # for another system
        return
    for inner in map(Requirement, lines):
        if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras)):
            yield inner


@pytest.mark.parametrize(
    ("extra", "heavy"),
    [
        ("", set()),
        ("filter", {"spacy"}),
        ("download", set()),
        ("train", {"torch"}),
        ("cluster", HEAVY),
    ],
)
def test_an_extra_brings_what_its_stage_takes_and_no_more(extra: str, heavy: set[str]) -> None:
    assert brought(extra) & HEAVY == heavy if extra else not brought("download") & HEAVY


def test_every_module_of_an_extra_is_declared_by_it() -> None:
    """So that the message that names an extra for a missing module is true."""
    distributions = packages_distributions()
    for extra, modules in EXTRAS.items():
        names = {canonicalize_name(requirement.name) for requirement in declared(extra)}
        for module in modules:
            assert names & {canonicalize_name(name) for name in distributions[module]}, (extra, module)


def test_every_library_that_the_packages_import_is_declared() -> None:
    distributions = packages_distributions()
    names = {canonicalize_name(one.name) for extra in ("", "app", "cluster", "img2dataset") for one in declared(extra)}
    for package in PACKAGES:
        for path in (REPO / package).rglob("*.py"):
            for module in imported(path) - {*sys.stdlib_module_names, *PACKAGES}:
                assert names & {canonicalize_name(name) for name in distributions[module]}, f"{path}: {module}"


def imported(path: Path) -> set[str]:
    """The packages that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_a_missing_library_names_its_extra(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'ray'", name="ray.data")

    monkeypatch.setattr("runpy.run_module", without)
    assert main(["filter"]) == 2
    assert capsys.readouterr().err == (
        "error: ray is not installed, which this command needs; in the clone: pip install '.[cluster]'\n"
    )
    assert missing_extra(ModuleNotFoundError("No module named 'typo'", name="typo")) is None


def test_help_and_unknown_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n  {verb} " in printed for verb in VERBS)
    assert main([]) == 0
    assert main(["fliter"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown verb 'fliter' (did you mean 'filter'?); choose from full, ")
    assert {path.stem for path in (REPO / "pipelines").glob("*.py")} - {"__init__", "benchmark_check"} == {
        MODULES.get(verb, verb) for verb in VERBS
    }


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as pip leaves it, in a folder of its own; the libraries are this environment's."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(folder)]
    subprocess.run([*pip, str(REPO)], check=True, capture_output=True, text=True)
    return folder


def outside(installed: Path, folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """`owseg ...` in a folder outside the clone."""
    command = [sys.executable, str(installed / "bin" / "owseg"), *argv]
    given = environment() | {"PYTHONPATH": str(installed)}
    return subprocess.run(command, cwd=folder, env=given, capture_output=True, text=True, check=False, timeout=300)


def test_the_installed_command_outside_the_clone(installed: Path, tmp_path: Path) -> None:
    files = {path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_file()}
    assert {
        "pipelines/configs/demo.yaml",
        "pipelines/configs/miniature_clip.json",
        "filtering/reports/templates/corpus.html",
    } <= files
    assert any(name.startswith("filtering/captions/tagger/model/") for name in files)
    done = outside(installed, tmp_path, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    done = outside(installed, tmp_path, "train", "--help")
    assert done.returncode == 0, done.stderr
    assert "usage: owseg train [--restart] [--verify] [--keys STEP]" in done.stdout
    done = outside(installed, tmp_path, "train", "--config", "nowhere.yaml")
    assert (done.returncode, done.stderr) == (2, "error: nowhere.yaml: no such file; give an existing one with --config FILE\n")


def test_the_installed_command_segments_a_photo(installed: Path, tmp_path: Path) -> None:
    """With a training-free mode on a small CLIP of random weights."""
    from PIL import Image
    from safetensors.torch import save_file

    encoder = tiny.encoder(tmp_path)
    save_file({name: tensor.contiguous() for name, tensor in encoder.clip.state_dict().items()}, tmp_path / "clip.safetensors")
    Image.new("RGB", (48, 40), (200, 30, 30)).save(tmp_path / "photo.png")
    done = outside(
        *(
            installed,
            tmp_path,
            "segment",
            "photo.png",
            "--labels",
            "red wall, blue",
            "--checkpoint",
            "maskclip",
            "--out",
            "out",
        ),
        *("--encoder-model", "model.json", "--encoder-weights", "clip.safetensors", "--no-background"),
        *("--short-side", "32", "--window", "32", "--stride", "16"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"photo.overlay.png", "photo.mask.png", "photo.json"}
