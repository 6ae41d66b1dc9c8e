"""Files that others made are read as data: no call in the packages or benchmarks runs what such a file may hold."""

import ast
from collections.abc import Iterator

import pytest

from helpers.paths import REPO

FOLDERS = ("benchmarks", "cluster", "filtering", "miniature", "owseg", "pipelines", "storage", "tools")
OWN_MESSAGES = {"filtering/images/guard.py", "storage/tar_cache.py"}
"""Unpickle what this program's own processes sent each other, and nothing that came from elsewhere."""
CAREFUL = {"owseg/weights.py"}
"""Unpickles by a table of harmless names (tests/owseg/test_encoders.py)."""


def risks(source: str) -> Iterator[str]:
    """What in a module would run what is in a file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            yield from sorted({"pickle", "joblib", "dill", "cloudpickle", "shelve", "marshal"} & names)
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {one.arg: ast.unparse(one.value) for one in node.keywords}
            if called.endswith(("torch.load", "torch.hub.load")) and given.get("weights_only") != "True":
                yield called
            if called.endswith("yaml.load") or (called.endswith(".load") and given.get("allow_pickle") == "True"):
                yield called


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch\ntorch.load(path)", ["torch.load"]),
        ("torch.load(path, weights_only=False)", ["torch.load"]),
        ("torch.load(path, map_location='cpu', weights_only=True)", []),
        ("from pickle import loads", ["pickle"]),
        ("def f():\n    import joblib", ["joblib"]),
        ("np.load(path, allow_pickle=True)", ["np.load"]),
        ("yaml.load(text, Loader)", ["yaml.load"]),
        ("np.load(path); yaml.safe_load(text); json.load(file)", []),
    ],
)
def test_risks_are_seen(source: str, expected: list[str]) -> None:
    assert list(risks(source)) == expected


def test_no_file_is_run() -> None:
    found = {}
    for path in (path for folder in FOLDERS for path in (REPO / folder).rglob("*.py")):
        name = path.relative_to(REPO).as_posix()
        if (wrong := list(risks(path.read_text(encoding="utf-8")))) and name not in OWN_MESSAGES | CAREFUL:
            found[name] = wrong
    assert found == {}


def test_the_exceptions_are_still_needed() -> None:
    for name in OWN_MESSAGES | CAREFUL:
        assert list(risks((REPO / name).read_text(encoding="utf-8"))) == ["pickle"], name
