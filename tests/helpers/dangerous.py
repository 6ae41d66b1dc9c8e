"""Calls that run what a file says and that no linter knows, found by their syntax: those of torch, NumPy and unpicklers."""

import ast
from collections.abc import Iterator


def dangerous_calls(code: str) -> Iterator[tuple[int, str]]:
    """Line and kind of each, under whatever name the module was imported."""
    tree = ast.parse(code)
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("Unpickler") for base in node.bases):
            yield node.lineno, "an unpickler"
        elif isinstance(node, ast.Call):
            first, dot, rest = ast.unparse(node.func).partition(".")
            called = f"{names.get(first, first)}{dot}{rest}"
            given = {word.arg: getattr(word.value, "value", "?") for word in node.keywords}
            if called == "torch.load" and given.get("weights_only") is not True:
                yield node.lineno, "torch.load without weights_only"
            if called == "numpy.load" and given.get("allow_pickle", False) is not False:
                yield node.lineno, "object arrays"
