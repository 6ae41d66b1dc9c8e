"""SECURITY.md keeps its word: each test exists, and fails without its protection. What code may not do is scanned."""

import ast
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from helpers.chain import PLANTED, Chain, environment
from helpers.dangerous import dangerous_calls
from helpers.paths import REPO
from helpers.proofs import PROOFS, Proof

PAGE = (REPO / "SECURITY.md").read_text(encoding="utf-8")
CODE = ("cluster", "filtering", "miniature", "owseg", "pipelines", "storage", "tools")
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py::\w+)`", PAGE)))


def sources() -> dict[str, str]:
    """All code that ships, by its path."""
    paths = [path for folder in CODE for path in (REPO / folder).rglob("*.py")]
    return {path.relative_to(REPO).as_posix(): path.read_text(encoding="utf-8") for path in paths}


@pytest.mark.parametrize("test", NAMED)
def test_what_the_page_names_exists(test: str) -> None:
    file, _, name = test.partition("::")
    tree = ast.parse((REPO / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_each_row_of_the_page_has_a_test_and_each_test_a_proof() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| what |")]
    assert len(rows) > 20
    assert [row for row in rows if "`tests/" not in row.rpartition(" | ")[2]] == []
    assert {proof.test for proof in PROOFS} == set(NAMED)


# ------------------------------------------------------------------------------------------------------------- what is scanned

RULES = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]["lint"]["select"]
KNOWN = {
    "filtering/images/guard.py: S301": 2,
    "storage/tar_cache.py: S301": 1,
    # A reader that knows ten names, all of them tensors' parts.
    "owseg/weights.py: an unpickler": 1,
}
"""Places where such a call does no harm, with why beside it."""


def linted(*paths: str, code: str = "") -> list[str]:
    """The rules of security that lines break, each with its file; `code` stands for a file of the first path's name."""
    security = ",".join(rule for rule in RULES if re.fullmatch(r"S\d+", rule))
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--select",
        security,
        "--output-format",
        "concise",
        "--no-cache",
        "--quiet",
    ]
    given = ["--stdin-filename", *paths, "-"] if code else [*paths, "--ignore-noqa"]
    told = subprocess.run([*command, *given], cwd=REPO, input=code, capture_output=True, text=True, check=False).stdout
    return [f"{line.partition(':')[0]}: {line.split()[1]}" for line in told.splitlines() if line]


def test_no_dangerous_call() -> None:
    found = linted(*CODE) + [f"{path}: {kind}" for path, code in sources().items() for _, kind in dangerous_calls(code)]
    assert Counter(found) == KNOWN


LINTED = {
    "S301": "import pickle\npickle.load(x)",
    "S302": "import marshal\nmarshal.loads(x)",
    "S307": "eval(x)",
    "S102": "exec(x)",
    "S506": "import yaml\nyaml.load(x, Loader=yaml.Loader)",
    "S602": "import subprocess\nsubprocess.run(x, shell=True)",
    "S604": "start(x, shell=True)",
    "S605": "import os\nos.system(x)",
    "S202": "import tarfile\ntarfile.open(x).extractall(x)",
    "S701": "import jinja2\njinja2.Environment(loader=x)",
    "S323": "import ssl\nssl._create_unverified_context()",
    "S501": "import requests\nrequests.get(x, verify=False)",
}


def test_dangerous_calls_are_linted() -> None:
    assert {*LINTED} == {rule for rule in RULES if re.fullmatch(r"S\d+", rule)}
    for rule, code in LINTED.items():
        assert linted("pipelines/new.py", code=code) == [f"pipelines/new.py: {rule}"]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("import torch\ntorch.load(path, weights_only=False)", "torch.load without weights_only"),
        ("import torch as t\nt.load(path)", "torch.load without weights_only"),
        ("from torch import load\nload(path)", "torch.load without weights_only"),
        ("from pickle import Unpickler\nclass Mine(Unpickler): ...", "an unpickler"),
        ("import numpy as np\nnp.load(path, allow_pickle=True)", "object arrays"),
    ],
)
def test_what_no_linter_knows_is_seen(code: str, kind: str) -> None:
    assert [found for _, found in dangerous_calls(code)] == [kind]
    assert list(dangerous_calls("import torch, numpy as np\ntorch.load(p, weights_only=True)\nnp.load(p)")) == []


def test_no_template_switches_escaping_off() -> None:
    templates = [path for folder in CODE for path in (REPO / folder).rglob("*.html")]
    assert templates
    for path in templates:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\|\s*safe\b|autoescape\s+false|<script", text), path


EVERYWHERE = re.compile(r"0\.0\.0\.0(?!/)|\[?::\]?:\d|host=\"\"|bind\(\(\"\"|share=True")
INSIDE_CONTAINERS = {"deploy/mlflow.yaml", "deploy/kuberay.yaml", "deploy/kuberay_cluster.yaml"}
"""A pod and a container have addresses of their own; what of them is reached from outside is said beside."""


def test_servers_listen_on_loopback() -> None:
    files = {path: code for path, code in sources().items() if path != "filtering/images/addresses.py"}
    for folder, pattern in ((".", "Makefile"), ("deploy", "*"), ("configs", "*"), (".", "ray_cluster.yaml")):
        files |= {path.relative_to(REPO).as_posix(): path.read_text() for path in (REPO / folder).glob(pattern)}
    assert {path for path, text in files.items() if EVERYWHERE.search(text)} == INSIDE_CONTAINERS
    assert '"127.0.0.1:5000:5000"' in files["deploy/mlflow.yaml"]
    assert not re.search(r"mlflow (?:ui|server).*--host", files["Makefile"]), "MLflow's own default is loopback"


# ------------------------------------------------------------------------------------------------------------ what a run writes


def planted_in(folder: Path) -> list[str]:
    """The files below a folder with a planted secret in their bytes or names."""
    secrets = [value.rpartition(":")[2].partition("@")[0].encode() for value in PLANTED.values()]
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path.name for path in files if any(secret in os.fsencode(path) + path.read_bytes() for secret in secrets)]


def test_a_run_writes_down_no_secret(chain: Chain) -> None:
    """Of those in its environment: in no file, table, database or name, and not in what it prints."""
    assert len(list(chain.folder.rglob("*"))) > 100
    assert planted_in(chain.folder.parent) == [], "nor in the store beside it"
    assert "planted" not in chain.output


@pytest.mark.parametrize("name", PLANTED)
def test_a_secret_that_is_written_down_is_found(tmp_path: Path, name: str) -> None:
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        store.execute("create table params (value text)")
        store.execute("insert into params values (?)", [PLANTED[name]])
    (tmp_path / "config.yaml").write_text("seed: 0")
    (tmp_path / "environment.json").write_text(json.dumps({name: PLANTED[name]}))
    assert sorted(planted_in(tmp_path)) == ["environment.json", "mlflow.db"]


# ------------------------------------------------------------------------------------------------------- without the protection


@pytest.mark.slow
@pytest.mark.parametrize("proof", [proof for proof in PROOFS if proof.file], ids=lambda proof: proof.test.rpartition("::")[2])
def test_without_the_protection_its_test_fails(tmp_path: Path, proof: Proof) -> None:
    copy = tmp_path / "copy"
    left_out = shutil.ignore_patterns("__pycache__", ".*", "runs", "*.egg-info")
    shutil.copytree(REPO, copy, ignore=left_out, copy_function=os.link, symlinks=True)
    changed = copy / proof.file
    text = changed.read_text(encoding="utf-8")
    assert proof.there in text, "the proof is of other code"
    changed.unlink()  # a link: the repository's own stays as it is
    changed.write_text(text.replace(proof.there, proof.instead), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", proof.test]
    ended = subprocess.run(
        command, cwd=copy, env=environment() | {"PYTHONPATH": ""}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1, ended.stdout[-3000:] + ended.stderr[-1000:]
    assert " failed" in ended.stdout.splitlines()[-1]
