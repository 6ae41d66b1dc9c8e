"""Calls in Python code that run what a file says, write where a file says, or hand words to a shell: found by their syntax."""

import ast
from collections.abc import Callable, Iterator

Call = ast.Call


def _keyword(call: Call, name: str) -> object:
    return next((getattr(word.value, "value", "?") for word in call.keywords if word.arg == name), None)


RULES: dict[str, Callable[[Call, str], bool]] = {
    "torch.load without weights_only": lambda call, name: name == "torch.load" and _keyword(call, "weights_only") is not True,
    "pickle": lambda call, name: (
        name.rpartition(".")[2] in ("loads", "load", "Unpickler")
        and name.partition(".")[0] in ("pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve")
    ),
    "object arrays": lambda call, name: name.endswith(".load") and _keyword(call, "allow_pickle") not in (None, False),
    "YAML that makes objects": lambda call, name: (
        name in ("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load") and not _has_safe_loader(call)
    ),
    "code from text": lambda call, name: name in ("eval", "exec", "compile", "builtins.eval", "builtins.exec"),
    "a shell": lambda call, name: (
        name in ("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput")
        or _keyword(call, "shell") not in (None, False)
    ),
    "an archive unpacked": lambda call, name: name.rpartition(".")[2] in ("extractall", "unpack_archive", "extract"),
    "pages that do not escape": lambda call, name: (
        name.rpartition(".")[2] == "Environment" and _keyword(call, "autoescape") is not True
    ),
    "certificates that nobody checks": lambda call, name: (
        name.rpartition(".")[2] == "_create_unverified_context"
        or any(_keyword(call, word) is False for word in ("verify", "verify_ssl", "ssl", "check_hostname"))
    ),
}


def _has_safe_loader(call: Call) -> bool:
    given = [word.value for word in call.keywords if word.arg == "Loader"] or call.args[1:2]
    return [ast.unparse(loader) for loader in given] in (["yaml.SafeLoader"], ["_Loader"])  # ours is a SafeLoader


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
        if isinstance(node, ast.Call):
            first, dot, rest = ast.unparse(node.func).partition(".")
            called = f"{names.get(first, first)}{dot}{rest}"
            yield from ((node.lineno, kind) for kind, is_so in RULES.items() if is_so(node, called))
        elif isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("Unpickler") for base in node.bases):
            yield node.lineno, "pickle"
