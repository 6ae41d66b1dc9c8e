"""The libraries stay light: they bring no infrastructure. The layers of the house hold, and no imports go in a circle."""

import ast
import pkgutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import filtering
import miniature
import owseg
import storage
from helpers.paths import REPO

PACKAGES = ("cluster", "filtering", "miniature", "owseg", "pipelines", "storage")
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
        ("storage", storage.__path__, INFRASTRUCTURE),
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


def test_workers_of_the_filter_and_the_download_load_what_they_need_alone() -> None:
    """There are many of them, and each would hold it: torch alone is 400 MB."""
    heavy = (*INFRASTRUCTURE, "torch", "cv2", "PIL", "spacy", "pandas", "pyarrow.dataset")
    assert brought_along(["cluster.session", "cluster.data", "filtering.images.download"], heavy) == []


def test_all_settings_are_read_without_the_libraries_that_only_models_need() -> None:
    heavy = (*INFRASTRUCTURE, "timm", "torchvision", "transformers", "open_clip", "matplotlib")
    assert brought_along(["pipelines.app.settings", "pipelines.app.cli"], heavy) == []


def test_the_layers_of_the_house_hold() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    result = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def imports_in(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """At any depth, those inside functions included; not those that only type checkers follow."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield from imports_in(ast.Module([other], []))
        else:
            yield from imports_in(child)


def import_graph(root: Path, packages: Sequence[str]) -> dict[str, set[str]]:
    """For each module under `root`, the modules that it names in imports.

    `from a import name` names a.name where that is a module, and otherwise a itself, whose code makes the name. That a.b is
    in package a does not count: `import a.b` asks nothing of a's own code.
    """
    files: dict[str, Path] = {}
    for file in sorted(file for package in packages for file in (root / package).rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    graph: dict[str, set[str]] = {}
    for module, file in files.items():
        named = set()
        for node in imports_in(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
                continue
            source = node.module or ""
            if node.level:  # relative: one dot is the module's own package
                package = module if file.name == "__init__.py" else module.rpartition(".")[0]
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                source = ".".join([*above, *([source] if source else [])])
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                named.add(inner if inner in files else source)
        graph[module] = named & files.keys() - {module}
    return graph


def circles(graph: dict[str, set[str]]) -> list[tuple[str, ...]]:
    """The sets of two and more modules that all reach each other."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        found, left = set[str](), [start]
        while left:
            new = graph[left.pop()] - found
            found |= new
            left += new
        reached[start] = found
    return sorted({tuple(sorted(m for m in reached[n] if n in reached[m])) for n in graph if n in reached[n]})


def test_no_imports_go_in_a_circle() -> None:
    graph = import_graph(REPO, PACKAGES)
    assert "owseg.methods.tcl.method" in graph["owseg.methods.tcl"]
    assert circles(graph) == []


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"one": "import a.two", "two": "import a.three", "three": "import os"}, []),
        ({"one": "import a.two", "two": "def f():\n    from a.one import x"}, [("a.one", "a.two")]),
        (
            {"one": "from a import two", "two": "if True:\n    from . import three", "three": "from .one import x"},
            [("a.one", "a.three", "a.two")],
        ),
        ({"__init__": "from a.one import x\ny = 1", "one": "from a import y"}, [("a", "a.one")]),
        ({"__init__": "from a.one import x\ny = 1", "one": "from a import two", "two": "x = 1"}, []),
        ({"one": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import a.two", "two": "import a.one"}, []),
        (
            {"one": "import typing\nif typing.TYPE_CHECKING:\n    pass\nelse:\n    import a.two", "two": "import a.one"},
            [("a.one", "a.two")],
        ),
        ({"b/__init__": "from ..one import x", "one": "import a.b.c", "b/c": "from . import x"}, [("a.b", "a.b.c", "a.one")]),
    ],
)
def test_circles_are_seen(tmp_path: Path, files: dict[str, str], expected: list[tuple[str, ...]]) -> None:
    for name, text in {"__init__": "", **files}.items():
        file = tmp_path / "a" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert circles(import_graph(tmp_path, ["a"])) == expected


def test_files_and_functions_stay_short() -> None:
    """At most 350 lines a file and 60 a function: what is longer holds two subjects."""
    for path in sorted(
        path for folder in (*PACKAGES, "benchmarks", "tests", "tools") for path in (REPO / folder).rglob("*.py")
    ):
        text = path.read_text()
        assert text.count("\n") <= 350, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert (node.end_lineno or 0) - node.lineno < 60, (path, node.name)
